"""A segmentation as a file: its formats, and the endings of their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from denseport.runtime.errors import OutputError
from denseport.runtime.media.images import write_image, write_mask
from denseport.runtime.pipeline.results import Segmentation
from denseport.runtime.system.files import write_atomic

__all__ = [
    "BY_ENDING",
    "encode_npz",
    "save_coco",
    "save_geojson",
    "save_mask",
    "save_npz",
    "save_overlay",
    "save_scores",
]


def save_mask(path: Path, found: Segmentation, *, grey: bool = False) -> None:
    """A PNG whose pixels are class indices.

    Args:
        grey: of 8 or 16 bits, not indexed in the palette's colours; so it is for more than 256 classes anyway.
    """
    write_mask(path, found.mask, None if grey or len(found.palette) > 256 else found.palette)


def save_overlay(path: Path, found: Segmentation, *, opacity: float = 0.5) -> None:
    """The image under the colours of its classes, with a legend."""
    write_image(path, found.overlay(opacity=opacity))


def save_scores(path: Path, found: Segmentation) -> None:
    """A grey PNG of 16 bits: the probability of each pixel's class, times 65535."""
    if found.scores is None:
        raise OutputError(f"{path}: the result has no scores", "Ask for them: segment(image, scores=True).")
    write_image(path, np.rint(found.scores * 65535).astype(np.uint16))


def save_coco(path: Path, found: Segmentation, *, file_name: str = "", image_id: int = 1) -> None:
    """`Segmentation.to_coco` as JSON."""
    _save_json(path, found.to_coco(file_name=file_name, image_id=image_id))


def save_geojson(path: Path, found: Segmentation) -> None:
    """`Segmentation.to_geojson`, in pixels."""
    _save_json(path, found.to_geojson())


def save_npz(path: Path, found: Segmentation) -> None:
    """`encode_npz` as a file."""
    write_atomic(path, encode_npz(found))


def encode_npz(found: Segmentation) -> bytes:
    """``mask``, and ``scores``, ``top_classes`` and ``top_scores`` where there are any, compressed."""
    arrays: dict[str, Any] = {name: getattr(found, name) for name in ("mask", "scores", "top_classes", "top_scores")}
    packed = BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **{name: each for name, each in arrays.items() if each is not None})
    return packed.getvalue()


def _save_json(path: Path, data: dict[str, Any]) -> None:
    # A file's name may hold bytes that are no UTF-8: lone surrogates here, which become JSON's escapes of themselves.
    write_atomic(path, json.dumps(data, ensure_ascii=False).encode(errors="backslashreplace"))


BY_ENDING: dict[str, Callable[[Path, Segmentation], None]] = {
    ".png": save_mask,
    ".jpg": save_overlay,
    ".json": save_coco,
    ".geojson": save_geojson,
    ".npz": save_npz,
}

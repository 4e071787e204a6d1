"""The forms in which a mask leaves the server."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.media.images import encode_palette_png
from denseport.runtime.media.overlay import class_shares, overlay

__all__ = ["Encoded", "Format", "Segmented", "Wish", "encode", "report"]

JPEG_QUALITY = 92


class Format(StrEnum):
    """What is sent back."""

    MASK = "mask"  # PNG: indexed in the model's colours; 16-bit grey when there are more than 256 classes
    OVERLAY = "overlay"  # JPEG: the colours over the image, with a legend
    JSON = "json"  # the classes and their shares
    RAW = "raw"  # the indices themselves, row by row, uint8 or little-endian uint16


@dataclass(frozen=True)
class Wish:
    """What a request asks for besides its image."""

    format: Format = Format.MASK
    artifact: str | None = None  # None: the server's own choice
    opacity: float = 0.5  # of an overlay's colours, [0, 1]
    legend: bool = True  # beside an overlay
    gzip: bool = False  # the client can inflate a raw mask


@dataclass(frozen=True)
class Segmented:
    """One image, its mask, and where the time went."""

    image: NDArray[np.uint8]  # (H, W, 3) BGR
    mask: NDArray[np.unsignedinteger[Any]]  # (H, W)
    artifact: str
    milliseconds: dict[str, float]  # by stage


@dataclass(frozen=True)
class Encoded:
    """The body of an answer."""

    body: bytes
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


def encode(found: Segmented, wish: Wish, manifest: Manifest) -> Encoded:
    """The mask as an image or as raw indices. JSON is `report`, which needs the time that encoding took."""
    if wish.format is Format.OVERLAY:
        image = overlay(
            found.image, found.mask, manifest.classes, manifest.palette, opacity=wish.opacity, legend=wish.legend
        )
        return Encoded(_opencv(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]), "image/jpeg")
    if wish.format is Format.RAW:
        return _raw(found.mask, wish.gzip)
    if len(manifest.palette) > 256:
        return Encoded(_opencv(".png", found.mask.astype(np.uint16), []), "image/png")
    return Encoded(encode_palette_png(found.mask, manifest.palette), "image/png")


def _raw(mask: NDArray[np.unsignedinteger[Any]], gzip: bool) -> Encoded:
    little_endian = mask.astype("<u2" if mask.dtype.itemsize > 1 else "u1", copy=False)
    body = little_endian.tobytes()
    headers = {"X-Mask-Type": f"uint{8 * little_endian.itemsize}", "Vary": "Accept-Encoding"}
    if gzip:
        packer = zlib.compressobj(level=1, wbits=31)  # 31: with gzip's head and tail
        body = packer.compress(body) + packer.flush()
        headers["Content-Encoding"] = "gzip"
    return Encoded(body, "application/octet-stream", headers)


def _opencv(suffix: str, image: NDArray[Any], params: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, params)
    if not done:
        raise RuntimeError(f"OpenCV cannot encode {image.shape} of {image.dtype} as {suffix}")
    return bytes(data)


def report(found: Segmented, manifest: Manifest) -> dict[str, Any]:
    """What was found, for JSON: the classes that occur, largest first."""
    classes = [
        {
            "index": index,
            "name": manifest.classes[index].strip(),
            "colour": "#" + bytes(manifest.palette[index]).hex(),
            "percent": round(100 * share, 4),
        }
        for index, share in class_shares(found.mask, len(manifest.classes))
    ]
    height, width = found.mask.shape
    return {
        "artifact": found.artifact,
        "width": width,
        "height": height,
        "classes": classes,
        "milliseconds": {stage: round(value, 2) for stage, value in found.milliseconds.items()},
    }

"""How results become files, and what is said of them: masks of segmentation, depths of depth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.media.images import write_image
from denseport.runtime.media.inputs import Input
from denseport.runtime.media.overlay import class_shares
from denseport.runtime.pipeline.saving import save_coco, save_geojson, save_mask, save_npz, save_overlay, save_scores

__all__ = ["FORMATS", "DepthPainter", "DepthWriting", "MaskWriting", "Painter", "Writing"]

NOTABLE = 0.05  # share of a video's pixels beyond the colours from which a warning says so


@dataclass
class Painter:
    """Overlays of the frames of one video."""

    opacity: float

    def __call__(self, found: Any) -> NDArray[np.uint8]:
        """(H, W, 3) BGR."""
        painted: NDArray[np.uint8] = found.overlay(opacity=self.opacity)
        return painted

    def told(self) -> dict[str, Any]:
        """What the report says of the colours, after the last frame."""
        return {}


@dataclass
class DepthPainter(Painter):
    """All frames have the colours of the first one's depths, so that a colour means one depth in the whole video."""

    span: tuple[float, float] | None = None
    beyond: float = 0.0  # shares of the frames' pixels that no colour stands for, their sum
    frames: int = 0

    def __call__(self, found: Any) -> NDArray[np.uint8]:
        self.span = low, high = self.span or found.span
        self.beyond += float(np.mean((found.depth < low) | (found.depth > high)))
        self.frames += 1
        painted: NDArray[np.uint8] = found.overlay(opacity=self.opacity, span=self.span)
        return painted

    def told(self) -> dict[str, Any]:
        if self.span is None:
            return {}
        low, high = self.span
        told: dict[str, Any] = {"colours": [low, high]}
        if (share := self.beyond / self.frames) > NOTABLE:
            told["warning"] = (
                f"the colours are of the first frame's depths, {low:.4g} to {high:.4g}: {100 * share:.0f} % of all "
                "pixels lie beyond them"
            )
        return told


@dataclass(frozen=True)
class Writing(ABC):
    """What is written of the results of one task."""

    opacity: float  # of the overlays' colours, 0 to 1

    task: ClassVar[str]
    endings: ClassVar[dict[str, str]]  # of each format: how the name of a result ends

    @abstractmethod
    def save(self, name: str, path: Path, found: Any, item: Input, number: int) -> None:
        """Write a result, of the image or of the frame of that number, in one of the formats."""

    @abstractmethod
    def told(self, found: Any) -> dict[str, Any]:
        """What the report says of an image."""

    def painter(self) -> Painter:
        """What paints the frames of one video."""
        return Painter(self.opacity)

    @classmethod
    def check(cls, formats: Sequence[str]) -> None:
        """Raises InputError for a format that the task does not have."""
        if unknown := [name for name in formats if name not in cls.endings]:
            what = f"--format {unknown[0]} means nothing for a network of {cls.task}"
            raise InputError(what, f"There are {', '.join(cls.endings)}.")


@dataclass(frozen=True)
class MaskWriting(Writing):
    """Masks, and what is made of them."""

    opacity: float = 0.5
    grey: bool = False  # masks without a palette

    task = "segmentation"
    endings: ClassVar[dict[str, str]] = {
        "png": "_mask.png",
        "overlay": "_overlay.png",
        "scores": "_scores.png",
        "coco": "_coco.json",
        "geojson": "_polygons.geojson",
        "npz": "_arrays.npz",
    }

    def save(self, name: str, path: Path, found: Any, item: Input, number: int) -> None:
        if name == "png":
            save_mask(path, found, grey=self.grey)
        elif name == "overlay":
            save_overlay(path, found, opacity=self.opacity)
        elif name == "coco":
            save_coco(path, found, file_name=item.path.name, image_id=number)
        else:
            {"scores": save_scores, "geojson": save_geojson, "npz": save_npz}[name](path, found)

    def told(self, found: Any) -> dict[str, Any]:
        names, shares = found.classes, class_shares(found.mask, len(found.classes))
        return {"classes": [{"index": i, "name": names[i], "percent": round(100 * s, 3)} for i, s in shares]}


@dataclass(frozen=True)
class DepthWriting(Writing):
    """Depths."""

    opacity: float = 1.0
    scale: float | None = None  # of PNGs: values a unit

    task = "depth"
    endings: ClassVar[dict[str, str]] = {
        "png": "_depth.png",
        "overlay": "_overlay.png",
        "npy": "_depth.npy",
        "npz": "_arrays.npz",
    }

    def save(self, name: str, path: Path, found: Any, item: Input, number: int) -> None:
        if name == "overlay":
            write_image(path, found.overlay(opacity=self.opacity))
        else:
            found.save(path, scale=self.scale if name == "png" else None)

    def painter(self) -> Painter:
        return DepthPainter(self.opacity)

    def told(self, found: Any) -> dict[str, Any]:
        least, most = found.span
        return {"unit": found.unit, "larger_is": found.larger_is, "least": least, "most": most}


FORMATS = tuple({**MaskWriting.endings, **DepthWriting.endings})

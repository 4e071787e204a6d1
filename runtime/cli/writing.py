"""How results become files, and what is said of them: masks of segmentation, depths of depth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from denseport.runtime.errors import InputError
from denseport.runtime.media.images import write_image
from denseport.runtime.media.inputs import Input
from denseport.runtime.media.overlay import class_shares
from denseport.runtime.pipeline.saving import save_coco, save_geojson, save_mask, save_npz, save_overlay, save_scores

__all__ = ["FORMATS", "DepthWriting", "MaskWriting", "Writing"]


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

    def told(self, found: Any) -> dict[str, Any]:
        least, most = found.span
        return {"unit": found.unit, "larger_is": found.larger_is, "least": least, "most": most}


FORMATS = tuple({**MaskWriting.endings, **DepthWriting.endings})

"""The counts of an evaluation under way, and their file: written whole or not at all, taken up exactly."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.files import write_atomic
from denseport.runtime.gate import ImageAreas, Predictions
from denseport.runtime.metrics import ConfusionMatrix, mean_iou

__all__ = ["EvaluationState", "load_state", "save_state"]


class EvaluationState:
    """Integer counts by picture; n pictures, C classes.

    Args:
        key: what is measured; a state is taken up only under the same key.
        with_fp32: FP32 runs on the same pictures.
    """

    def __init__(self, key: str, images: int, classes: int, *, with_fp32: bool) -> None:
        self.key = key
        self.done: NDArray[np.bool_] = np.zeros(images, bool)
        self.confusion = ConfusionMatrix(classes)
        self.fp32_confusion = ConfusionMatrix(classes) if with_fp32 else None
        # (n, C): intersection and union with the truth, and predicted pixels, ignored ones included.
        self.counts = {name: np.zeros((images, classes), np.int64) for name in ("intersect", "union", "pixels")}
        if with_fp32:
            for name in ("fp32_intersect", "fp32_union", "fp32_pixels"):
                self.counts[name] = np.zeros((images, classes), np.int64)
        self.agreeing: NDArray[np.int64] = np.zeros(images, np.int64)  # pixels with FP32's class
        self.compared: NDArray[np.int64] = np.zeros(images, np.int64)  # pixels, ignored ones included
        self.non_finite: NDArray[np.bool_] = np.zeros(images, bool)

    def add(self, index: int, truth: Any, mask: Any, fp32_mask: Any, *, finite: bool) -> None:
        """Count picture ``index``."""
        self._add(index, truth, mask, self.confusion, "")
        if fp32_mask is not None and self.fp32_confusion is not None:
            self._add(index, truth, fp32_mask, self.fp32_confusion, "fp32_")
            self.agreeing[index] = np.count_nonzero(mask == fp32_mask)
        self.compared[index] = mask.size
        self.non_finite[index] = not finite
        self.done[index] = True

    def _add(self, index: int, truth: Any, mask: Any, total: ConfusionMatrix, prefix: str) -> None:
        one = ConfusionMatrix(total.n_classes)
        one.update(truth, mask)
        total.merge(one)
        self.counts[f"{prefix}intersect"][index] = one.intersect
        self.counts[f"{prefix}union"][index] = one.union
        self.counts[f"{prefix}pixels"][index] = np.bincount(mask.ravel(), minlength=total.n_classes)[: total.n_classes]

    def mean_iou(self) -> float:
        """mIoU of the pictures so far, percent."""
        return float(mean_iou(self.confusion.intersect, self.confusion.union))

    def areas(self) -> ImageAreas:
        """Areas of each picture, for the artifact."""
        return ImageAreas(self.counts["intersect"], self.counts["union"])

    def fp32_areas(self) -> ImageAreas | None:
        """Areas of each picture, for FP32; None where it was not run."""
        if self.fp32_confusion is None:
            return None
        return ImageAreas(self.counts["fp32_intersect"], self.counts["fp32_union"])

    def predictions(self) -> Predictions:
        """What the collapse detectors look at."""
        with_fp32 = self.fp32_confusion is not None
        return Predictions(
            images=int(self.done.sum()),
            non_finite=int(self.non_finite.sum()),
            pixels=self.counts["pixels"].sum(axis=0),
            fp32_pixels=self.counts["fp32_pixels"].sum(axis=0) if with_fp32 else None,
            agreement=float(self.agreeing.sum() / max(1, self.compared.sum())) if with_fp32 else None,
        )


def save_state(path: Path, state: EvaluationState) -> None:
    """Write the state, replacing an older one only when the new one is whole."""
    arrays: dict[str, Any] = {
        "key": np.array(state.key),
        "done": state.done,
        "matrix": state.confusion.matrix,
        "outside": state.confusion.outside,
        "agreeing": state.agreeing,
        "compared": state.compared,
        "non_finite": state.non_finite,
        **state.counts,
    }
    if state.fp32_confusion is not None:
        arrays |= {"fp32_matrix": state.fp32_confusion.matrix, "fp32_outside": state.fp32_confusion.outside}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path, key: str) -> EvaluationState | None:
    """The state in ``path``; None if there is none, or it is of something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            images, classes = arrays["intersect"].shape
            state = EvaluationState(key, images, classes, with_fp32="fp32_matrix" in arrays)
            for prefix, confusion in (("", state.confusion), ("fp32_", state.fp32_confusion)):
                if confusion is not None:
                    confusion.matrix[:] = arrays[f"{prefix}matrix"]
                    confusion.outside[:] = arrays[f"{prefix}outside"]
            for name in state.counts:
                state.counts[name][:] = arrays[name]
            for name in ("done", "agreeing", "compared", "non_finite"):
                getattr(state, name)[:] = arrays[name]
            return state
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None

"""The counts of an evaluation under way, and their file: written whole or not at all, taken up exactly.

Counts are integers by image, so those of parts that share no image add up to the counts of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.gate import ImageAreas, Predictions
from denseport.runtime.evaluation.metrics import ConfusionMatrix, mean_iou
from denseport.runtime.system.arrays import read_arrays, write_arrays
from denseport.runtime.system.text import count

__all__ = ["EvaluationState", "load_state", "merge_states", "open_state", "save_state"]


class EvaluationState:
    """Integer counts by image; n images, C classes.

    Args:
        key: what is measured; a state is taken up only under the same key.
        with_fp32: FP32 runs on the same images.
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
        """Count image ``index``."""
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

    def merge(self, part: EvaluationState, at: NDArray[np.int64]) -> None:
        """Add the counts of ``part``, whose image i is image ``at[i]`` here.

        Raises:
            InputError: an image is counted in both, or FP32 was run in one alone.
        """
        where = at[part.done]
        if self.done[where].any():
            twice = int(np.count_nonzero(self.done[where]))
            raise InputError(f"counted twice: {count(twice, 'image')}", "Merge each shard once.")
        if self.counts.keys() != part.counts.keys():
            raise InputError("FP32 was run beside one part and not beside the other", "Give all parts the same --gate.")
        self.confusion.merge(part.confusion)
        if self.fp32_confusion is not None and part.fp32_confusion is not None:
            self.fp32_confusion.merge(part.fp32_confusion)
        for name, rows in self._by_image().items():
            rows[where] = part._by_image()[name][part.done]
        self.done[where] = True

    def _by_image(self) -> dict[str, NDArray[Any]]:
        """Every array with a row for each image, but `done`."""
        kept = {"agreeing": self.agreeing, "compared": self.compared, "non_finite": self.non_finite}
        return {**self.counts, **kept}

    def mean_iou(self) -> float:
        """mIoU of the images so far, percent."""
        return float(mean_iou(self.confusion.intersect, self.confusion.union))

    def areas(self) -> ImageAreas:
        """Areas of each image, for the artifact."""
        return ImageAreas(self.counts["intersect"], self.counts["union"])

    def fp32_areas(self) -> ImageAreas | None:
        """Areas of each image, for FP32; None where it was not run."""
        if self.fp32_confusion is None:
            return None
        return ImageAreas(self.counts["fp32_intersect"], self.counts["fp32_union"])

    def image_agreement(self) -> NDArray[np.float64] | None:
        """(n,) share of each image's pixels with FP32's class; None where FP32 was not run."""
        if self.fp32_confusion is None:
            return None
        return self.agreeing / np.maximum(self.compared, 1)

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
    """Write the state, replacing an older one only when the new one is whole. Its size grows with the images done."""
    arrays: dict[str, Any] = {
        "key": np.array(state.key),
        "done": state.done,
        "matrix": state.confusion.matrix,
        "outside": state.confusion.outside,
        **{name: rows[state.done] for name, rows in state._by_image().items()},
    }
    if state.fp32_confusion is not None:
        arrays |= {"fp32_matrix": state.fp32_confusion.matrix, "fp32_outside": state.fp32_confusion.outside}
    write_arrays(path, arrays)


def load_state(path: Path, key: str) -> EvaluationState | None:
    """The state in ``path``; None if there is none, or it is damaged or of something else."""
    arrays = read_arrays(path)
    try:
        if arrays is None or str(arrays["key"]) != key:
            return None
        done, matrix = arrays["done"], arrays["matrix"]
        state = EvaluationState(key, len(done), len(matrix), with_fp32="fp32_matrix" in arrays)
        for prefix, confusion in (("", state.confusion), ("fp32_", state.fp32_confusion)):
            if confusion is not None:
                confusion.matrix[:] = arrays[f"{prefix}matrix"]
                confusion.outside[:] = arrays[f"{prefix}outside"]
        for name, rows in state._by_image().items():
            rows[done] = arrays[name]
        state.done[:] = done
        return state
    except (ValueError, LookupError, TypeError):
        return None


def open_state(
    path: Path | None, key: str, images: int, classes: int, *, with_fp32: bool, resume: bool
) -> EvaluationState:
    """The state in ``path`` if it is to be resumed and is of this measurement, else an empty one."""
    state = load_state(path, key) if resume and path is not None else None
    return state or EvaluationState(key, images, classes, with_fp32=with_fp32)


def merge_states(paths: Sequence[Path], key: str) -> EvaluationState:
    """The state of the whole from those of its shards, in any order.

    Raises:
        InputError: a file is no state of this measurement, or shards overlap or leave images out.
    """
    whole: EvaluationState | None = None
    for path in paths:
        part = load_state(path, key)
        if part is None:
            raise InputError(
                f"{path}: is no state of this measurement",
                "Name the --state files of its shards, and give the bundle, data, protocol and gate as they had them.",
            )
        if whole is None:
            with_fp32, classes = part.fp32_confusion is not None, part.confusion.n_classes
            whole = EvaluationState(key, len(part.done), classes, with_fp32=with_fp32)
        try:
            whole.merge(part, np.arange(len(part.done)))
        except InputError as err:
            raise InputError(f"{path}: {err.message}", err.remedy) from err
    if whole is None:
        raise InputError("there is no state to merge", "Name the --state files of the shards.")
    missing = np.flatnonzero(~whole.done)
    if missing.size:
        raise InputError(
            f"in none of the states: {missing.size} of {count(whole.done.size, 'image')}, "
            f"such as number {missing[0] + 1}",
            "Run the shards that are missing, and those that did not end with --resume; then merge all.",
        )
    return whole

"""The counts of an evaluation, under way or done, and their file: written whole or not at all, taken up exactly.

Counts are integers by image, so those of parts that share no image add up to the counts of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.metrics import ClassDrop, ConfusionMatrix, Scores, mean_iou, worst_drop
from denseport.runtime.evaluation.quality.boundary import boundary_counts, boundary_f
from denseport.runtime.evaluation.quality.confidence import BINS, bin_counts, calibration_error
from denseport.runtime.system.arrays import read_arrays, write_arrays
from denseport.runtime.system.text import count

__all__ = ["MASKS_ONLY", "SAVE_SECONDS", "Extras", "Measurement", "is_state", "load_state", "merge_states"]

SAVE_SECONDS = 10.0  # between two saves


@dataclass(frozen=True)
class Extras:
    """What is counted beside the confusion of classes; each costs time."""

    boundaries: bool = False  # for boundary F-scores
    scores: bool = False  # for the calibration error


MASKS_ONLY = Extras()
_OUTLINES = ("edges", "edges_matched", "truth_edges", "truth_edges_matched")  # of `boundary_counts`, in their order
_BINS = ("bin_pixels", "bin_right", "bin_scores")  # of `bin_counts`, in their order


class Measurement:
    """What was counted of one artifact, and of FP32 where it was run on the same images; n images, C classes.

    Args:
        key: what is measured; a file is taken up only under the same key.
        with_fp32: FP32 runs on the same images.
        file: where the counts are kept; None: nowhere.
        extras: what else is counted.
    """

    def __init__(
        self,
        key: str,
        images: int,
        classes: int,
        *,
        with_fp32: bool,
        file: Path | None = None,
        extras: Extras = MASKS_ONLY,
    ) -> None:
        self.key = key
        self.file = file
        self.extras = extras
        self.confusion = ConfusionMatrix(classes)
        self.fp32_confusion = ConfusionMatrix(classes) if with_fp32 else None
        self.done: NDArray[np.bool_] = np.zeros(images, bool)
        # By image: (n, C) intersection and union with the truth, and predicted pixels, ignored ones included; (n,)
        # pixels with FP32's class, all pixels, 1 where the logits are not finite, and 1 where a GPU computed them.
        # With boundaries also (n, C) boundary pixels; with scores (n, BINS) of the artifact.
        names = ("intersect", "union", "pixels") + _OUTLINES * extras.boundaries
        by_class = [f"{run}{name}" for run in self._confusions() for name in names]
        self.counts: dict[str, NDArray[np.int64]] = {name: np.zeros((images, classes), np.int64) for name in by_class}
        self.counts |= {name: np.zeros(images, np.int64) for name in ("agreeing", "compared", "non_finite", "on_gpu")}
        self.counts |= {name: np.zeros((images, BINS), np.int64) for name in _BINS * extras.scores}
        self.seconds = 0.0  # wall time of the images of this run, without resumed ones and without FP32's sessions
        self.session_seconds = 0.0  # of it, in the artifact's session; a mean where several ran side by side
        self.measured = 0  # images of this run
        self._saved = time.monotonic()

    def _confusions(self) -> dict[str, ConfusionMatrix]:
        """By what names in `counts` begin with."""
        return {"": self.confusion} | ({} if self.fp32_confusion is None else {"fp32_": self.fp32_confusion})

    def add(
        self,
        index: int,
        truth: Any,
        mask: Any,
        fp32_mask: Any,
        *,
        finite: bool,
        on_gpu: bool = False,
        scores: Any = None,
    ) -> None:
        """Count image ``index``; ``scores`` are the probabilities of the mask's classes, where they are counted."""
        for (prefix, total), predicted in zip(self._confusions().items(), (mask, fp32_mask), strict=False):
            one, classes = ConfusionMatrix(total.n_classes), total.n_classes
            one.update(truth, predicted)
            total.merge(one)
            self.counts[f"{prefix}intersect"][index] = one.intersect
            self.counts[f"{prefix}union"][index] = one.union
            self.counts[f"{prefix}pixels"][index] = np.bincount(predicted.ravel(), minlength=classes)[:classes]
            if self.extras.boundaries:
                for name, found in zip(_OUTLINES, boundary_counts(truth, predicted, classes), strict=True):
                    self.counts[f"{prefix}{name}"][index] = found
        if self.extras.scores:
            for name, found in zip(_BINS, bin_counts(truth, mask, scores), strict=True):
                self.counts[name][index] = found
        if self.fp32_confusion is not None:
            self.counts["agreeing"][index] = np.count_nonzero(mask == fp32_mask)
        self.counts["compared"][index] = mask.size
        self.counts["non_finite"][index] = not finite
        self.counts["on_gpu"][index] = on_gpu
        self.done[index] = True

    def merge(self, part: Measurement, at: NDArray[np.int64]) -> None:
        """Add the counts of ``part``, whose image i is image ``at[i]`` here.

        Raises:
            InputError: an image is counted in both, or FP32 was run in one alone.
        """
        where = at[part.done]
        if self.done[where].any():
            twice = int(np.count_nonzero(self.done[where]))
            raise InputError(f"counted twice: {count(twice, 'image')}", "Merge each shard once.")
        if self.counts.keys() != part.counts.keys():
            raise InputError(
                "something else was counted of one part than of the other, such as FP32",
                "Give all parts the same --gate, --boundaries and --ece.",
            )
        for total, more in zip(self._confusions().values(), part._confusions().values(), strict=True):
            total.merge(more)
        for name, rows in self.counts.items():
            rows[where] = part.counts[name][part.done]
        self.done[where] = True

    def scores(self, classes: tuple[str, ...]) -> Scores:
        """mIoU and the rest, of the artifact."""
        return self.confusion.scores(classes)

    def mean_iou(self, prefix: str = "") -> float:
        """mIoU of the images so far, percent; of FP32 with the prefix "fp32_"."""
        confusion = self._confusions()[prefix]
        return float(mean_iou(confusion.intersect, confusion.union))

    @property
    def worst_drop(self) -> ClassDrop | None:
        """The class that lost most IoU against FP32; None where FP32 was not run, or no class has an IoU in both."""
        return None if self.fp32_confusion is None else worst_drop(self.confusion, self.fp32_confusion)

    def boundary_f(self, prefix: str = "") -> NDArray[np.float64] | None:
        """(C,) boundary F-scores in percent, NaN where a class has no boundary; None where they were not counted.

        Args:
            prefix: "fp32_" for FP32, where it was run.
        """
        if not self.extras.boundaries or prefix not in self._confusions():
            return None
        return boundary_f(np.stack([self.counts[f"{prefix}{name}"].sum(axis=0) for name in _OUTLINES]))

    def mean_boundary_f(self, prefix: str = "") -> float | None:
        """The mean of `boundary_f` over the classes that have one; NaN where none has."""
        scores = self.boundary_f(prefix)
        if scores is None:
            return None
        known = scores[~np.isnan(scores)]
        return float(known.mean()) if known.size else float("nan")

    @property
    def boundary_drop(self) -> float | None:
        """How much lower the mean boundary F-score is than FP32's, points; None where either was not counted."""
        own, fp32 = self.mean_boundary_f(), self.mean_boundary_f("fp32_")
        return None if own is None or fp32 is None else fp32 - own

    @property
    def ece(self) -> float | None:
        """Expected calibration error of the scores, percent; NaN without a labelled pixel; None: not counted."""
        if not self.extras.scores:
            return None
        return calibration_error(np.stack([self.counts[name].sum(axis=0) for name in _BINS]))

    @property
    def images(self) -> int:
        """All that are to be measured."""
        return len(self.done)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computed the logits of every image."""
        return bool(self.counts["on_gpu"].all())

    @property
    def ignored(self) -> float:
        """Share of all pixels whose label is ignored, 0..1."""
        pixels = int(self.counts["compared"].sum())
        return (pixels - int(self.confusion.label.sum())) / pixels if pixels else 0.0

    @property
    def image_agreement(self) -> NDArray[np.float64] | None:
        """(n,) share of each image's pixels with FP32's class; None where FP32 was not run."""
        if self.fp32_confusion is None:
            return None
        return self.counts["agreeing"] / np.maximum(self.counts["compared"], 1)

    @property
    def agreement(self) -> float | None:
        """Share of all pixels with FP32's class, 0..1; None where FP32 was not run."""
        if self.fp32_confusion is None:
            return None
        return float(self.counts["agreeing"].sum() / max(1, self.counts["compared"].sum()))

    def save(self, *, every: float = 0.0) -> None:
        """Write the file, unless that was done in the last ``every`` seconds. Its size grows with the images done."""
        if self.file is None or time.monotonic() - self._saved < every:
            return
        arrays: dict[str, Any] = {"key": np.array(self.key), "done": self.done}
        for prefix, confusion in self._confusions().items():
            arrays |= {f"{prefix}matrix": confusion.matrix, f"{prefix}outside": confusion.outside}
        write_arrays(self.file, arrays | {name: rows[self.done] for name, rows in self.counts.items()})
        self._saved = time.monotonic()


def is_state(path: Path) -> bool:
    """Whether a file holds the counts of a measurement, whatever was measured."""
    arrays = read_arrays(path)
    return arrays is not None and {"key", "done", "matrix"} <= arrays.keys()


def load_state(path: Path, key: str) -> Measurement | None:
    """The counts in ``path``; None if there are none, or they are damaged or of something else."""
    arrays = read_arrays(path)
    try:
        if arrays is None or str(arrays["key"]) != key:
            return None
        done, matrix = arrays["done"], arrays["matrix"]
        extras = Extras("edges" in arrays, "bin_pixels" in arrays)
        found = Measurement(key, len(done), len(matrix), with_fp32="fp32_matrix" in arrays, file=path, extras=extras)
        for prefix, confusion in found._confusions().items():
            confusion.matrix[:] = arrays[f"{prefix}matrix"]
            confusion.outside[:] = arrays[f"{prefix}outside"]
        for name, rows in found.counts.items():
            rows[done] = arrays[name]
        found.done[:] = done
        return found
    except (ValueError, LookupError, TypeError):
        return None


def merge_states(paths: Sequence[Path], key: str) -> Measurement:
    """The counts of the whole from those of its shards, in any order.

    Raises:
        InputError: a file holds no counts of this measurement, or shards overlap or leave images out.
    """
    whole: Measurement | None = None
    for path in paths:
        part = load_state(path, key)
        if part is None:
            raise InputError(
                f"{path}: is not a state of this measurement",
                "Name the --state files of its shards. Give the same bundle, data, protocol and gate as there.",
            )
        try:
            if whole is None:
                whole = part
            else:
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

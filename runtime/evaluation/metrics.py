"""mIoU, mAcc and aAcc from one integer confusion matrix.

Equal to mmsegmentation's ``IoUMetric`` (mmseg/evaluation/metrics/iou_metric.py): areas are summed over all
images before the division, a class in neither map has no IoU and the means skip it, and a prediction that
is no class counts as an error of its true class. Upstream sums in float32, which rounds above 2^24 pixels;
here the sums are int64, so that partial results add up to the last integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, InputError

__all__ = [
    "ClassDrop",
    "ClassScore",
    "ConfusionMatrix",
    "LabelMap",
    "Scores",
    "agreement",
    "agreement_words",
    "json_number",
    "mean_iou",
    "worst_drop",
]

LabelMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W) class indices. In a truth the type's largest value, 255 or 65535, marks pixels to ignore."""


class ConfusionMatrix:
    """Pixels by true and predicted class.

    Attributes:
        n_classes: C.
        matrix: (C, C) int64, rows the truth, columns the prediction.
        outside: (C,) int64, pixels of each true class whose prediction is no class (>= C).
    """

    def __init__(self, n_classes: int) -> None:
        if n_classes < 1:
            raise InputError(f"a confusion matrix needs at least one class, not {n_classes}")
        self.n_classes = n_classes
        self.matrix: NDArray[np.int64] = np.zeros((n_classes, n_classes), np.int64)
        self.outside: NDArray[np.int64] = np.zeros(n_classes, np.int64)

    def update(self, truth: LabelMap, pred: LabelMap) -> None:
        """Count one image; predictions from C on are errors.

        Raises:
            DatasetError: the shapes differ, or the truth holds labels that are no class.
        """
        n = self.n_classes
        ignored = _ignored_value(truth, n)
        largest = _ignored_value(pred, 1)
        if truth.shape != pred.shape:
            shapes = [" x ".join(map(str, labels.shape[::-1])) for labels in (truth, pred)]
            raise DatasetError(f"the truth is {shapes[0]}, the prediction {shapes[1]}")
        no_class = (truth >= n) & (truth != ignored)
        if no_class.any():
            raise DatasetError(f"the truth holds labels {np.unique(truth[no_class])[:8].tolist()} outside 0..{n - 1}")
        # One more row takes the ignored pixels, one more column the predictions outside.
        cells = np.minimum(truth, n).astype(np.int64)
        cells *= n + 1  # in place: temporaries of this size cost ten times the counting
        cells += np.minimum(pred, min(n, largest))
        counts = np.bincount(cells.ravel(), minlength=(n + 1) ** 2)
        counts = counts.reshape(n + 1, n + 1)
        self.matrix += counts[:n, :n]
        self.outside += counts[:n, n]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of ``other``, a matrix of the same classes, to this one."""
        if self.n_classes != other.n_classes:
            raise InputError(f"matrices of {self.n_classes} and {other.n_classes} classes do not add up")
        self.matrix += other.matrix
        self.outside += other.outside

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        return np.array_equal(self.matrix, other.matrix) and np.array_equal(self.outside, other.outside)

    @property
    def intersect(self) -> NDArray[np.int64]:
        """(C,) pixels predicted right."""
        return self.matrix.diagonal().copy()

    @property
    def label(self) -> NDArray[np.int64]:
        """(C,) pixels of each class in the truth."""
        return np.asarray(self.matrix.sum(axis=1) + self.outside)

    @property
    def union(self) -> NDArray[np.int64]:
        """(C,) pixels of each class in the truth or the prediction."""
        return np.asarray(self.label + self.matrix.sum(axis=0) - self.intersect)

    def scores(self, classes: Sequence[str]) -> Scores:
        """mIoU, mAcc and aAcc, and those of each class; ``classes`` are the C names."""
        if len(classes) != self.n_classes:
            raise InputError(f"{len(classes)} class names for a confusion matrix of {self.n_classes} classes")
        intersect, label = self.intersect, self.label
        iou, acc = _percent(intersect, self.union), _percent(intersect, label)
        per_class = zip(classes, iou.tolist(), acc.tolist(), label.tolist(), strict=True)
        return Scores(
            mIoU=float(mean_iou(intersect, self.union)),
            mAcc=float(mean_iou(intersect, label)),
            aAcc=float(_percent(intersect.sum(), label.sum())),
            per_class=tuple(ClassScore(*row) for row in per_class),
        )


class ClassScore(NamedTuple):
    """One class: IoU and accuracy in percent (NaN where absent), and its pixels in the truth."""

    name: str
    IoU: float
    Acc: float
    pixels: int


@dataclass(frozen=True)
class ClassDrop:
    """How much IoU a class lost against FP32."""

    index: int
    IoU: float  # percent
    fp32_IoU: float  # percent

    @property
    def points(self) -> float:
        """What was lost; below zero where it was gained."""
        return self.fp32_IoU - self.IoU


@dataclass(frozen=True)
class Scores:
    """What mmsegmentation's ``IoUMetric`` reports, in percent and not rounded."""

    mIoU: float  # mean IoU of the classes that occur in the truth or the prediction
    mAcc: float  # mean accuracy of the classes that occur in the truth
    aAcc: float  # pixels predicted right, of all that count
    per_class: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON, which has no NaN: absent values are null."""
        return {
            "mIoU": json_number(self.mIoU),
            "mAcc": json_number(self.mAcc),
            "aAcc": json_number(self.aAcc),
            "per_class": [
                {**row._asdict(), "IoU": json_number(row.IoU), "Acc": json_number(row.Acc)} for row in self.per_class
            ],
        }


def worst_drop(found: ConfusionMatrix, fp32: ConfusionMatrix) -> ClassDrop | None:
    """The class that lost most IoU, of those that have one in both; None where there is none."""
    own, other = (_percent(each.intersect, each.union) for each in (found, fp32))
    if np.isnan(other - own).all():
        return None
    worst = int(np.nanargmax(other - own))
    return ClassDrop(worst, float(own[worst]), float(other[worst]))


def agreement(expected: NDArray[Any], found: NDArray[Any], output: str) -> float:
    """How far what a network gives for some images is what FP32 gives, 0..1.

    Of classes the share of places with the same class; of depths what their mean change, as a share of FP32's mean
    depth, lacks to 1: a relative depth has no unit, and may be 0.

    Args:
        expected, found: (N, C, h, w) logits, or (N, 1, h, w) depths; (N, h, w) classes.
        output: "logits", "mask" or "depth".
    """
    if output != "depth":
        one, other = (each if each.dtype.kind == "i" else each.argmax(1) for each in (expected, found))
        return float((one == other).mean())
    change = np.abs(expected - found, dtype=np.float64).mean()
    mean = np.abs(expected, dtype=np.float64).mean()
    if not np.isfinite(change):
        return 0.0
    return max(0.0, 1 - float(change / mean)) if mean else float(change == 0)


def agreement_words(share: float, output: str, digits: int = 2) -> str:
    """An `agreement`, in words."""
    if output == "depth":
        return f"depths differ from FP32's by {100 * (1 - share):.{digits}f} % of their mean"
    return f"{100 * share:.{digits}f} % of the pixels get the class that FP32 gives"


def json_number(value: float) -> float | None:
    """None for NaN and the infinities, which JSON cannot hold."""
    return value if np.isfinite(value) else None


def mean_iou(intersect: NDArray[Any], union: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the last axis of 100 * intersect / union where the union is not empty.

    Args:
        intersect, union: (..., C) pixels.

    Returns:
        (...) float64 percent, NaN where every union is empty.
    """
    iou = _percent(intersect, union)
    return _ratio(np.nansum(iou, axis=-1), np.count_nonzero(union, axis=-1))


def _percent(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    return 100.0 * _ratio(part, whole)


def _ratio(part: NDArray[Any], whole: NDArray[Any] | int) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    whole = np.asarray(whole)
    missing = np.full(whole.shape, np.nan)
    return np.asarray(np.divide(part, whole, out=missing, where=whole != 0))


def _ignored_value(labels: LabelMap, n_classes: int) -> int:
    """The largest value of the type, once it is known to be no class."""
    if labels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"a label map is uint8 or uint16, not {labels.dtype}")
    largest = int(np.iinfo(labels.dtype).max)
    if n_classes > largest:
        raise TypeError(f"{n_classes} classes do not fit a {labels.dtype} truth, where {largest} is ignored")
    return largest

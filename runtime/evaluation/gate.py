"""The accuracy gate: does an artifact lose more mIoU than its precision may?

Two comparisons: with the published mIoU, when the whole data set was measured with the protocol that the
number belongs to; and with the FP32 artifact on the same images, where a paired bootstrap over images
(Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13) says how sure the difference
is. Collapse detectors fail either. Everything here is arithmetic on counts; nothing is read or printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, InputError
from denseport.runtime.evaluation.metrics import json_number, mean_iou
from denseport.runtime.system.text import count

__all__ = [
    "ADE20K_VALIDATION_IMAGES",
    "AGREEMENTS",
    "BUDGETS",
    "ImageAreas",
    "Predictions",
    "Verdict",
    "against_fp32",
    "against_published",
    "check_collapse",
    "threshold",
    "why_not_published",
]

ADE20K_VALIDATION_IMAGES = 2000

# Points of mIoU that a precision may lose. BF16 has 3 bits of mantissa less than FP16.
BUDGETS = {"fp32": 0.05, "fp16": 0.1, "bf16": 0.2, "int8": 0.5, "fp8": 0.5}

# Share of pixels that must have the class FP32 gives them.
AGREEMENTS = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.98, "int8": 0.9, "fp8": 0.9}

_COVERS_ALL = 0.999  # a class with more of all pixels than this has swallowed the others
_SEEN = 0.01  # FP32 sees a class when it has more of all pixels than this
_RESAMPLES = 1000
_CONFIDENCE = 95  # percent


@dataclass(frozen=True)
class Verdict:
    """What the gate says."""

    passed: bool
    reasons: tuple[str, ...]  # why it failed; empty when it passed
    compared_with: str
    delta: float  # points of mIoU, measured minus compared: a loss is negative
    budget: float  # points of mIoU that may be lost
    interval: tuple[float, float] | None = None  # of the delta, 95 % confidence; None when not estimated
    notes: tuple[str, ...] = ()  # what a reader must know to trust the verdict

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON: a delta that does not exist (NaN) is null."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "compared_with": self.compared_with,
            "delta": json_number(self.delta),
            "budget": self.budget,
            "interval": None if self.interval is None else list(self.interval),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ImageAreas:
    """The pixels of each class in each image, all that the mIoU of any choice of images needs."""

    intersect: NDArray[np.int64]  # (n, C) predicted right
    union: NDArray[np.int64]  # (n, C) in the truth or the prediction

    def __post_init__(self) -> None:
        if self.intersect.ndim != 2 or self.intersect.shape != self.union.shape:
            raise InputError(
                f"the areas of n images are two arrays (n, classes), not {self.intersect.shape} and {self.union.shape}"
            )
        if not len(self.intersect):
            raise DatasetError("no image was measured")

    def __len__(self) -> int:
        return len(self.intersect)

    def mean_iou(self) -> float:
        """Percent, over all the images together."""
        return float(mean_iou(self.intersect.sum(axis=0), self.union.sum(axis=0)))


@dataclass(frozen=True)
class Predictions:
    """What an artifact predicted over a whole run, for the collapse detectors."""

    images: int
    non_finite: int  # images whose logits held a NaN or an infinity
    pixels: NDArray[np.int64]  # (C,) predicted pixels of each class
    # FP32 on the same images; None when it was not run
    fp32_pixels: NDArray[np.int64] | None = None  # (C,)
    agreement: float | None = None  # share of pixels with the class that FP32 gives them, 0..1


def threshold(table: dict[str, float], precision: str, override: float | None = None) -> float:
    """The entry of ``BUDGETS`` or ``AGREEMENTS`` for a precision, unless one was given.

    Raises:
        InputError: no default for this precision, or the given value is negative or NaN.
    """
    if override is not None:
        if not override >= 0:
            raise InputError(
                f"the threshold {override} of the gate is not a number from 0 on", "Give --budget or --agreement."
            )
        return override
    if precision not in table:
        raise InputError(
            f"the gate has no default for precision {precision!r}; it knows {', '.join(table)}",
            "Give the budget and the agreement by option, or in the manifest.",
        )
    return table[precision]


def why_not_published(images: int) -> str | None:
    """Why a measurement of so many images cannot be compared with the published mIoU; None when it can."""
    if images == ADE20K_VALIDATION_IMAGES:
        return None
    return f"the published mIoU is of {ADE20K_VALIDATION_IMAGES} images; {images} were measured"


def against_published(measured: float, published: float, budget: float, name: str) -> Verdict:
    """Compare with a published mIoU, both in percent, once ``why_not_published`` found none.

    Args:
        name: what the number is, such as ``published mIoU of vit-b16_dpt``.
    """
    return _verdict(measured, published, budget, f"{name}, {published:.2f}")


def against_fp32(
    candidate: ImageAreas,
    fp32: ImageAreas,
    budget: float,
    *,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Verdict:
    """Compare with the FP32 artifact on the same images, in the same order.

    The point estimate decides. The 95 % interval of the difference comes from 1000 resamples of the images,
    drawn alike for both; a pass whose interval reaches beyond the budget is noted as unsure.

    Args:
        notes: why this comparison was made, such as the obstacle to the published one.

    Raises:
        DatasetError: the two were not measured on the same number of images and classes.
    """
    if candidate.intersect.shape != fp32.intersect.shape:
        raise DatasetError(
            "images and classes of the artifact and of FP32 differ: "
            f"{candidate.intersect.shape} and {fp32.intersect.shape}"
        )
    interval = _paired_bootstrap(candidate, fp32, seed)
    compared_with = f"FP32 on the same {count(len(fp32), 'image')}, {fp32.mean_iou():.2f}"
    verdict = _verdict(candidate.mean_iou(), fp32.mean_iou(), budget, compared_with)
    notes = list(notes)
    if interval is None:
        notes.append("no confidence interval: it takes at least two images with labels")
    elif verdict.passed and interval[0] < -budget:
        notes.append(
            f"{len(fp32)} images are too few to be sure: the {_CONFIDENCE} % interval of the difference, "
            f"{interval[0]:+.3f} to {interval[1]:+.3f} points, reaches beyond the budget of {budget:g}"
        )
    return replace(verdict, interval=interval, notes=tuple(notes))


def check_collapse(
    verdict: Verdict, predictions: Predictions, least_agreement: float, classes: Sequence[str]
) -> Verdict:
    """Fail the verdict, with a reason each, for what no mIoU excuses.

    That is: logits that are not finite; one class on more than 99.9 % of all pixels where FP32 has at least
    two above 1 %; fewer pixels than ``least_agreement`` (0..1) with the class of FP32. Without FP32 the last
    two cannot be looked for, and a note says so.
    """
    found = [_non_finite(predictions)]
    notes = verdict.notes
    if predictions.fp32_pixels is None:
        notes += ("FP32 was not run beside it: a collapse to one class was not looked for",)
    else:
        found.append(_one_class(predictions.pixels, predictions.fp32_pixels, classes))
    if predictions.agreement is None:
        notes += ("FP32 was not run beside it: the agreement with it is unknown",)
    else:
        found.append(_low_agreement(predictions.agreement, least_agreement))
    reasons = verdict.reasons + tuple(reason for reason in found if reason)
    return replace(verdict, passed=not reasons, reasons=reasons, notes=notes)


def _verdict(measured: float, compared: float, budget: float, compared_with: str) -> Verdict:
    delta = measured - compared
    if np.isnan(delta):
        reasons: tuple[str, ...] = ("there is no mIoU to compare: no pixel counts",)
    elif -delta > budget:
        reasons = (f"mIoU {measured:.2f} is {-delta:.3f} points below {compared_with}; the budget is {budget:g}",)
    else:
        reasons = ()
    return Verdict(not reasons, reasons, compared_with, delta, budget)


def _paired_bootstrap(candidate: ImageAreas, fp32: ImageAreas, seed: int) -> tuple[float, float] | None:
    """The percentile interval of the difference of mIoU, in points; None for fewer than two images."""
    n = len(fp32)
    if n < 2:
        return None
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    # float64 goes through BLAS and is exact: the sums stay far below 2^53.
    weights = draws.astype(np.float64)  # (resamples, n) how often each image was drawn
    measured, reference = (mean_iou(weights @ areas.intersect, weights @ areas.union) for areas in (candidate, fp32))
    deltas = measured - reference
    deltas = deltas[~np.isnan(deltas)]  # a draw of nothing but ignored pixels has no mIoU
    if not len(deltas):
        return None
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(deltas, [tail, 100 - tail])
    return float(low), float(high)


def _non_finite(predictions: Predictions) -> str | None:
    if predictions.non_finite == 0:
        return None
    return f"non-finite logits in {predictions.non_finite} of {predictions.images} images"


def _one_class(pixels: NDArray[np.int64], fp32_pixels: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    share = pixels / max(pixels.sum(), 1)
    seen = np.count_nonzero(fp32_pixels > _SEEN * fp32_pixels.sum())
    if share.max() <= _COVERS_ALL or seen < 2:
        return None
    return (
        f"class {classes[int(share.argmax())]!r} covers {100 * share.max():.2f} % of the pixels, "
        f"where FP32 sees {seen} classes on more than {100 * _SEEN:g} % each"
    )


def _low_agreement(agreement: float, least: float) -> str | None:
    if agreement >= least:
        return None
    return f"{100 * agreement:.2f} % of the pixels agree with FP32; at least {100 * least:g} % must"

"""The accuracy gate: does an artifact lose more mIoU than its precision may?

The comparison is chosen, or refused, before the work, and judged after it. It is with the published mIoU, when the
whole data set was measured with the protocol that the number belongs to; or with the FP32 artifact on the same images,
where a paired bootstrap over images (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13)
says how sure the difference is. Collapse detectors fail either.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.layouts import some
from denseport.runtime.evaluation.metrics import json_number
from denseport.runtime.evaluation.quality.interval import CONFIDENCE, drop_interval
from denseport.runtime.evaluation.state import Measurement
from denseport.runtime.system.arguments import real
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.segmenter import Segmenter

__all__ = [
    "AGREEMENTS",
    "BUDGETS",
    "Comparison",
    "Gate",
    "Verdict",
    "against_fp32",
    "against_miou",
    "check_collapse",
    "check_labels",
    "check_limits",
    "choose_comparison",
    "published_miou",
    "threshold",
]

# Points of mIoU that a precision may lose. BF16 has 3 bits of mantissa less than FP16.
BUDGETS = {"fp32": 0.05, "fp16": 0.1, "bf16": 0.2, "int8": 0.5, "fp8": 0.5}

# Share of pixels that must have the class FP32 gives them.
AGREEMENTS = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.98, "int8": 0.9, "fp8": 0.9}

ADE20K_VALIDATION_IMAGES = 2000
_COVERS_ALL = 0.999  # a class with more of all pixels than this has swallowed the others
_MOST_IGNORED = 0.1  # of the labels: beyond it a figure says little of the images
_SEEN = 0.01  # FP32 sees a class when it has more of all pixels than this


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
        return {**asdict(self), "delta": json_number(self.delta)}


@dataclass(frozen=True)
class Gate:
    """What an artifact must keep to pass.

    Raises:
        InputError: a number out of range.
    """

    against: str | float = "reference"  # the published mIoU; or an artifact ("model.onnx"), or a mIoU in percent
    budget: float | None = None  # points of mIoU that may be lost; None: the manifest's, else by precision (`BUDGETS`)
    agreement: float | None = None  # smallest share of pixels that get FP32's class; None: by precision (`AGREEMENTS`)
    strict: bool = False  # fail, not only note, where masks lack a class of the model or a tenth is ignored
    # Limits that are judged only where they are given.
    max_boundary_drop: float | None = None  # points of the mean boundary F-score that may be lost against FP32
    max_class_drop: float | None = None  # points of IoU that any one class may lose against FP32
    max_ece: float | None = None  # largest expected calibration error of the scores, percent

    def __post_init__(self) -> None:
        if not isinstance(self.against, str | Real):
            raise InputError(f"gate cannot be {self.against!r}", "Give reference, an artifact's name, or a number.")
        with suppress(ValueError):  # an artifact's name is no number
            against = real("the gate's mIoU in percent or AbsRel", float(self.against), 0, 100)
            object.__setattr__(self, "against", against)
        limits = dict.fromkeys(("budget", "max_boundary_drop", "max_class_drop", "max_ece"), 100) | {"agreement": 1}
        for name, most in limits.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(f"the gate's {name}", getattr(self, name), 0, most))


@dataclass(frozen=True)
class Comparison:
    """A comparison that can be made, and how much may be lost in it."""

    budget: float  # points of mIoU
    agreement: float  # smallest share of pixels that get FP32's class, 0..1
    gate: Gate  # that was asked for
    is_fp32: bool  # what is judged is the FP32 artifact itself
    yardstick: tuple[str, float] | None = None  # what it is, and the mIoU in percent; None: FP32 on the same images
    notes: tuple[str, ...] = ()

    def judge(self, measurement: Measurement, classes: tuple[str, ...]) -> Verdict:
        """The verdict on what was measured, of FP32 beside the artifact too where it is the yardstick."""
        if self.yardstick is not None:
            name, miou = self.yardstick
            verdict = against_miou(measurement.scores(classes).mIoU, miou, self.budget, name)
        else:
            verdict = against_fp32(measurement, self.budget, notes=self.notes)
        verdict = check_labels(verdict, measurement, classes, strict=self.gate.strict)
        verdict = check_limits(verdict, measurement, classes, self.gate)
        return check_collapse(verdict, measurement, self.agreement, classes, is_fp32=self.is_fp32)


def choose_comparison(gate: Gate, segmenter: Segmenter, images: int) -> Comparison:
    """The comparison that a gate asks for.

    Args:
        segmenter: of the artifact that is judged.
        images: images that will be measured.

    Raises:
        InputError: nothing to compare with, or no budget for the artifact's precision.
        BundleError: the gate names an artifact that the bundle does not have.
    """
    bundle, source = segmenter.bundle, segmenter.manifest.source
    precision = bundle.artifact(segmenter.artifact).precision
    budget = segmenter.manifest.budgets.get(precision) if gate.budget is None else gate.budget
    least = threshold(AGREEMENTS, precision, gate.agreement)
    found = Comparison(threshold(BUDGETS, precision, budget), least, gate, segmenter.artifact == source)
    for name in ("max_boundary_drop", "max_class_drop"):
        if found.is_fp32 and getattr(gate, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: {source} is FP32 itself, and loses nothing", "Name another --artifact.")
    if isinstance(gate.against, float):
        return replace(found, yardstick=("the given mIoU", gate.against))
    if gate.against == "reference":
        return _with_published(found, segmenter, images)
    bundle.artifact(str(gate.against))  # raises where there is none
    if gate.against == segmenter.artifact:
        raise InputError(
            f"--gate {gate.against}: an artifact cannot be compared with itself", "Name another --artifact."
        )
    if gate.against != source:
        raise InputError(
            f"--gate {gate.against}: artifacts are compared with the FP32 artifact only, {source}",
            f"Give --gate {source}.",
        )
    return found


def _with_published(comparison: Comparison, segmenter: Segmenter, images: int) -> Comparison:
    """With the published mIoU or, where this measurement is not comparable with it, with FP32."""
    bundle, reference, published = segmenter.bundle, segmenter.manifest.reference, published_miou(segmenter)
    if reference is None:
        raise InputError(
            f"{bundle.path}: has no published mIoU to compare with: it is not recognised as a published model",
            f"Give the mIoU itself (--gate 41.92), or compare with FP32 (--gate {segmenter.manifest.source}).",
        )
    if published is None:
        obstacle = f"no mIoU was published for protocol {segmenter.protocol.name}"
    elif images != ADE20K_VALIDATION_IMAGES:
        obstacle = f"the published mIoU is of {ADE20K_VALIDATION_IMAGES} images; {images} were measured"
    else:
        return replace(comparison, yardstick=(f"published mIoU of {reference.preset}", published))
    if segmenter.artifact == segmenter.manifest.source:
        raise InputError(
            f"--gate reference: {obstacle}", "Measure all images with that protocol, or give the mIoU (--gate 41.92)."
        )
    return replace(comparison, notes=(f"compared with FP32 instead: {obstacle}",))


def published_miou(segmenter: Segmenter) -> float | None:
    """The published mIoU that belongs to the protocol, percent; None where none does."""
    reference = segmenter.manifest.reference
    if reference is None:
        return None
    if segmenter.protocol.name in ("ms-flip", "ms-flip:0.x"):
        return reference.mIoU_ms_flip
    return reference.mIoU if segmenter.protocol.name == "reference" else None


def threshold(table: dict[str, float], precision: str, override: float | None = None) -> float:
    """The entry of ``BUDGETS`` or ``AGREEMENTS`` for a precision, unless one was given.

    Raises:
        InputError: no default for this precision, or the given value is negative or NaN.
    """
    if override is not None and not override >= 0:
        raise InputError(f"the gate's threshold {override} is not a number from 0 up", "Give --budget or --agreement.")
    if override is not None:
        return override
    if precision not in table:
        raise InputError(
            f"the gate has no default for precision {precision!r}; it knows {', '.join(table)}",
            "Give the budget and the agreement by option, or in the manifest.",
        )
    return table[precision]


def against_miou(measured: float, other: float, budget: float, name: str) -> Verdict:
    """Compare two mIoU in percent.

    Args:
        name: what the other is, such as ``published mIoU of vit-b16_dpt``.
    """
    delta, compared_with = measured - other, f"{name}, {other:.2f}"
    if np.isnan(delta):
        reasons: tuple[str, ...] = ("there is no mIoU: the masks label no pixel",)
    elif -delta > budget:
        reasons = (f"mIoU {measured:.2f} is {-delta:.3f} points below {compared_with}; the budget is {budget:g}",)
    else:
        reasons = ()
    return Verdict(not reasons, reasons, compared_with, delta, budget)


def against_fp32(found: Measurement, budget: float, *, seed: int = 0, notes: tuple[str, ...] = ()) -> Verdict:
    """Compare with the FP32 artifact, which was run on the same images.

    The point estimate decides. The 95 % interval of the difference comes from 1000 resamples of the images,
    drawn alike for both; a pass whose interval reaches beyond the budget is noted as unsure.

    Args:
        notes: why this comparison was made, such as the obstacle to the published one.
    """
    name, interval = f"the mIoU of FP32 on the same {count(found.images, 'image')}", drop_interval(found, seed)
    verdict = against_miou(found.mean_iou(), found.mean_iou("fp32_"), budget, name)
    if interval is None:
        notes += ("no confidence interval: it takes at least two images with labels",)
    elif verdict.passed and interval[0] < -budget:
        notes += (
            f"{found.images} images are too few to be sure: the {CONFIDENCE} % interval of the difference, "
            f"{interval[0]:+.3f} to {interval[1]:+.3f} points, reaches beyond the budget of {budget:g}",
        )
    return replace(verdict, interval=interval, notes=notes)


def check_labels(verdict: Verdict, found: Measurement, classes: Sequence[str], *, strict: bool) -> Verdict:
    """Note, or fail the verdict with ``strict``, what the masks leave unknown.

    That is: classes of the model that never occur in them; more than a tenth of the labels ignored.
    """
    told, absent = list[str](), [classes[i] for i in np.flatnonzero(found.confusion.label == 0).tolist()]
    if absent:
        told.append(
            f"{len(absent)} of {count(len(classes), 'class', 'es')} never occurred in the masks: {some(absent)}"
        )
    if found.ignored > _MOST_IGNORED:
        told.append(f"{100 * found.ignored:.1f} % of the labels were ignored")
    if not strict:
        return replace(verdict, notes=verdict.notes + tuple(told))
    reasons = verdict.reasons + tuple(f"{each} (strict)" for each in told)
    return replace(verdict, passed=not reasons, reasons=reasons)


def check_limits(verdict: Verdict, found: Measurement, classes: Sequence[str], gate: Gate) -> Verdict:
    """Fail the verdict, with a reason each, for the limits of a gate that are passed, or cannot be judged."""
    reasons, worst = list(verdict.reasons), found.worst_drop
    if gate.max_class_drop is not None:
        if worst is None:
            reasons.append("no class can be compared with FP32: none has an IoU in both")
        elif worst.points > gate.max_class_drop:
            reasons.append(
                f"class {classes[worst.index]!r} lost {worst.points:.2f} points of IoU, from {worst.fp32_IoU:.2f} to "
                f"{worst.IoU:.2f}; a class may lose {gate.max_class_drop:g}"
            )
    told = (
        ("boundary F-score", "lost {:.2f} points; it may lose {:g}", found.boundary_drop, gate.max_boundary_drop),
        ("calibration error of the scores", "is {:.2f} %; the limit is {:g} %", found.ece, gate.max_ece),
    )
    for name, words, value, most in told:
        if most is not None and (value is None or not value <= most):  # NaN fails
            unknown = value is None or np.isnan(value)
            found_so = f"cannot be told; the limit is {most:g}" if unknown else words.format(value, most)
            reasons.append(f"the {name} {found_so}")
    return replace(verdict, passed=not reasons, reasons=tuple(reasons))


def check_collapse(
    verdict: Verdict, found: Measurement, least_agreement: float, classes: Sequence[str], *, is_fp32: bool = False
) -> Verdict:
    """Fail the verdict, with a reason each, for what no mIoU excuses.

    That is: logits that are not finite; one class on more than 99.9 % of all pixels where FP32 has at least
    two above 1 %; fewer pixels than ``least_agreement`` (0..1) with the class of FP32. Without FP32 the last
    two cannot be looked for, and a note says so, unless FP32 itself was measured.
    """
    reasons, notes = list(verdict.reasons), verdict.notes
    if bad := int(found.counts["non_finite"].sum()):
        reasons.append(f"the logits of {bad} of {found.images} images are not finite")
    if found.agreement is None and not is_fp32:
        notes += ("FP32 was not run beside it: neither a collapse to one class nor the agreement with FP32 is known",)
    if found.agreement is not None:
        pixels, fp32_pixels = (found.counts[name].sum(axis=0) for name in ("pixels", "fp32_pixels"))
        share = pixels / max(pixels.sum(), 1)
        seen = np.count_nonzero(fp32_pixels > _SEEN * fp32_pixels.sum())
        if share.max() > _COVERS_ALL and seen >= 2:
            reasons.append(
                f"class {classes[int(share.argmax())]!r} covers {100 * share.max():.2f} % of the pixels, "
                f"where FP32 sees {seen} classes on more than {100 * _SEEN:g} % each"
            )
        if not found.agreement >= least_agreement:
            reasons.append(
                f"{100 * found.agreement:.2f} % of the pixels get the class that FP32 gives; "
                f"at least {100 * least_agreement:g} % must"
            )
    return replace(verdict, passed=not reasons, reasons=tuple(reasons), notes=notes)

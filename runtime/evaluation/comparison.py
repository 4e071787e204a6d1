"""What a gate compares an artifact with: chosen, and refused, before the work; judged after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.gate import (
    AGREEMENTS,
    BUDGETS,
    Verdict,
    against_fp32,
    against_published,
    check_collapse,
    threshold,
)
from denseport.runtime.evaluation.state import Measurement
from denseport.runtime.segmenter import Segmenter

__all__ = ["Comparison", "Gate", "choose_comparison", "published_miou"]

ADE20K_VALIDATION_IMAGES = 2000


@dataclass(frozen=True)
class Gate:
    """What an artifact must keep to pass.

    Raises:
        InputError: a number out of range.
    """

    against: str | float = "reference"  # the published mIoU; or an artifact ("model.onnx"), or a mIoU in percent
    budget: float | None = None  # points of mIoU that may be lost; None: the manifest's, else by precision (`BUDGETS`)
    agreement: float | None = None  # least share of pixels with FP32's class, 0..1; None: by precision (`AGREEMENTS`)

    def __post_init__(self) -> None:
        if not isinstance(self.against, str) and not 0 <= self.against <= 100:
            raise InputError(f"Gate(against={self.against}): is not a mIoU in percent", "Give a number from 0 to 100.")
        for name, most in (("budget", 100), ("agreement", 1)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise InputError(f"Gate({name}={value}): is not from 0 to {most}", "Leave it out for the default.")


@dataclass(frozen=True)
class Comparison:
    """A comparison that can be made, and how much may be lost in it."""

    budget: float  # points of mIoU
    agreement: float  # least share of pixels with FP32's class, 0..1
    yardstick: tuple[str, float] | None = None  # what it is, and the mIoU in percent; None: FP32 on the same images
    notes: tuple[str, ...] = ()

    def judge(self, measurement: Measurement, classes: tuple[str, ...]) -> Verdict:
        """The verdict on what was measured, of FP32 beside the artifact too where it is the yardstick."""
        if self.yardstick is not None:
            name, miou = self.yardstick
            verdict = against_published(measurement.scores(classes).mIoU, miou, self.budget, name)
        else:
            verdict = against_fp32(measurement, self.budget, notes=self.notes)
        return check_collapse(verdict, measurement, self.agreement, classes)


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
    budget = segmenter.manifest.budgets.get(precision) if gate.budget is None else float(gate.budget)
    found = Comparison(threshold(BUDGETS, precision, budget), threshold(AGREEMENTS, precision, gate.agreement))
    if (miou := _percent(gate.against)) is not None:
        return replace(found, yardstick=("the given mIoU", miou))
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


def _percent(against: str | float) -> float | None:
    try:
        value = float(against)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None

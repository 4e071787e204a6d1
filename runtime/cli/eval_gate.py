"""What ``denseport eval --gate`` compares an artifact with: chosen, and refused, before the work; judged after it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from denseport.runtime.cli.arguments import real

if TYPE_CHECKING:
    from denseport.runtime.evaluation.evaluate import Evaluation
    from denseport.runtime.evaluation.gate import Verdict
    from denseport.runtime.segmenter import Segmenter

__all__ = ["Gate", "add_arguments", "choose_gate", "published_miou"]


def add_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gate",
        metavar="WITH",
        help="compare with: reference (the published mIoU), the FP32 artifact (model.onnx), or a mIoU in percent",
    )
    group.add_argument(
        "--budget", type=real(0, 100), metavar="POINTS", help="mIoU that may be lost; default: by precision"
    )
    group.add_argument(
        "--agreement", type=real(0, 1), metavar="SHARE", help="least share of pixels with FP32's class, 0 to 1"
    )


@dataclass(frozen=True)
class Gate:
    """A comparison that can be made, and how much may be lost in it."""

    budget: float  # points of mIoU
    agreement: float  # least share of pixels with FP32's class, 0..1
    yardstick: tuple[str, float] | None = None  # what a mIoU in percent is, and it; None: FP32 on the same images
    notes: tuple[str, ...] = ()

    def judge(self, evaluation: Evaluation, classes: tuple[str, ...]) -> Verdict:
        """The verdict on what was measured, of FP32 beside the artifact too where it is the yardstick."""
        from denseport.runtime.evaluation.gate import against_fp32, against_published, check_collapse

        if self.yardstick is not None:
            name, miou = self.yardstick
            verdict = against_published(evaluation.scores(classes).mIoU, miou, self.budget, name)
        elif evaluation.fp32_areas is not None:
            verdict = against_fp32(evaluation.areas, evaluation.fp32_areas, self.budget, notes=self.notes)
        else:
            raise ValueError("FP32 was not measured beside the artifact")
        return check_collapse(verdict, evaluation.predictions, self.agreement, classes)


def choose_gate(arguments: argparse.Namespace, segmenter: Segmenter, images: int) -> Gate | None:
    """The comparison that ``--gate`` asks for; None where it was not given.

    Args:
        images: images that will be measured.

    Raises:
        InputError: nothing to compare with, or no budget for the artifact's precision.
        BundleError: ``--gate`` names an artifact that the bundle does not have.
    """
    from denseport.runtime.evaluation.gate import AGREEMENTS, BUDGETS, threshold

    if arguments.gate is None:
        return None
    manifest = segmenter.manifest
    precision = segmenter.bundle.artifact(segmenter.artifact).precision
    given = manifest.budgets.get(precision) if arguments.budget is None else float(arguments.budget)
    budget, agreement = threshold(BUDGETS, precision, given), threshold(AGREEMENTS, precision, arguments.agreement)
    if (miou := _percent(arguments.gate)) is not None:
        return Gate(budget, agreement, ("the given mIoU", miou))
    if arguments.gate != "reference":
        _refuse_yardstick(arguments.gate, segmenter)
        return Gate(budget, agreement)
    return _published_gate(arguments, segmenter, images, Gate(budget, agreement))


def _refuse_yardstick(gate: str, segmenter: Segmenter) -> None:
    """Of artifacts only FP32 is one, for the others."""
    from denseport.runtime.errors import InputError

    segmenter.bundle.artifact(gate)
    source = segmenter.manifest.source
    if gate == segmenter.artifact:
        raise InputError(f"--gate {gate}: an artifact cannot be compared with itself", "Name another --artifact.")
    if gate != source:
        raise InputError(f"--gate {gate}: only the FP32 artifact, {source}, is a yardstick", f"Give --gate {source}.")


def _published_gate(arguments: argparse.Namespace, segmenter: Segmenter, images: int, gate: Gate) -> Gate:
    """The published mIoU as the yardstick or, where this measurement is not comparable with it, FP32."""
    from dataclasses import replace

    from denseport.runtime.errors import InputError
    from denseport.runtime.evaluation.gate import why_not_published

    bundle, published = segmenter.bundle, published_miou(segmenter)
    reference = bundle.manifest.reference
    if reference is None:
        raise InputError(
            f"{bundle.path}: has no published mIoU to compare with: it is not recognised as a published model",
            f"Give the mIoU itself (--gate 41.92), or compare with FP32 (--gate {bundle.manifest.source}).",
        )
    if published is None:
        obstacle: str | None = f"no mIoU was published for protocol {segmenter.protocol.name}"
    else:
        obstacle = why_not_published(images)
        if obstacle is None:
            return replace(gate, yardstick=(f"published mIoU of {reference.preset}", published))
    if segmenter.artifact == bundle.manifest.source:
        raise InputError(
            f"--gate reference: {obstacle}", "Measure the full set with that protocol, or give --gate MIOU."
        )
    return replace(gate, notes=(f"compared with FP32 instead: {obstacle}",))


def published_miou(segmenter: Segmenter) -> float | None:
    """The published mIoU that belongs to the protocol, percent; None where none does."""
    reference = segmenter.manifest.reference
    if reference is None:
        return None
    if segmenter.protocol.name in ("ms-flip", "ms-flip:0.x"):
        return reference.mIoU_ms_flip
    return reference.mIoU if segmenter.protocol.name == "reference" else None


def _percent(gate: str) -> float | None:
    try:
        value = float(gate)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None

"""What evaluations of both tasks share: a bundle that can be measured, what is said of it, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.artifact import FOR_OPENVINO, Artifact
from denseport.runtime.bundle.bundle import Bundle, refuse_other_task
from denseport.runtime.bundle.comparison import proof_here
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.system.files import refuse_unwritable

__all__ = ["Judged", "float_warnings", "measurable", "note_accuracy"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What an evaluation says beside its figures."""

    artifact: str
    session: str  # what ran it, in words
    protocol: Protocol
    measurement: Any  # image by image: a `Measurement` or a `DepthMeasurement`
    gate: Verdict | None  # `passed`, `reasons`; None: nothing was to be judged
    warnings: tuple[str, ...]  # what a reader must know to trust the figures
    data: str = ""  # what was found of the images and their truth, and by which rule
    report: Path | None = None  # the page; None: not asked for

    def with_figures(self, figures: Mapping[str, Any], images: int) -> dict[str, Any]:
        """What ``denseport eval --json`` prints; ``images``: that this run measured."""
        found, seconds = self.measurement, max(self.measurement.seconds, 1e-9)  # 0: nothing was left to measure
        result = {
            "artifact": self.artifact,
            "session": self.session,
            "protocol": {"name": self.protocol.name, "description": self.protocol.description},
            "images": found.images,
            "data": self.data,
            **figures,
            "gate": None if self.gate is None else self.gate.to_dict(),
            "warnings": list(self.warnings),
            "seconds": round(found.seconds, 3),
            "images_per_second": round(images / seconds, 3),
            "session_share": round(found.session_seconds / seconds, 4),
        }
        return result | ({} if self.report is None else {"report": str(self.report)})


def measurable(bundle: Path | str | Bundle, task: str, report: Path | None, *, record: bool, otherwise: str) -> Bundle:
    """The bundle, once the places that will be written are found to be writable.

    Args:
        otherwise: what measures bundles of the other task.
    """
    if report is not None:
        refuse_unwritable(report, "report.html")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    refuse_other_task(bundle, task, otherwise)
    if record:
        refuse_unwritable(bundle.path)
    return bundle


def float_warnings(artifact: Artifact, *, on_gpu: bool) -> list[str]:
    """What an accuracy is not, where ONNX Runtime computed 16 bits in FP32."""
    floats = artifact.float_precision
    if floats == "fp32" or on_gpu or artifact.target == FOR_OPENVINO:
        return []
    return [
        f"ONNX Runtime computes {floats} in FP32 on a CPU and skips most of its rounding: this is not the "
        f"accuracy of an engine, and no comparison in {floats.upper()}. denseport build audits with the rounding "
        "emulated"
    ]


def note_accuracy(
    bundle: Bundle,
    name: str,
    kept: Mapping[str, Any],
    *,
    on_gpu: bool,
    elsewhere: bool = False,
    fp32: Mapping[str, Any] | None = None,
) -> list[str]:
    """Record an accuracy, unless the record has one in the artifact's arithmetic and this is in another: a warning.

    Args:
        on_gpu, elsewhere: as of `denseport.runtime.bundle.comparison.proof_here`.
        fp32: the source's accuracy beside it, for its record if that has none.
    """
    artifact, source = bundle.artifact(name), bundle.manifest.source
    how = {"on_gpu": on_gpu, "elsewhere": elsewhere}
    proof = proof_here("labels", "accuracy", artifact.float_precision, **how, target=artifact.target)
    accuracies = [each for each in artifact.proof if each.figures == "accuracy"]
    if any(each.arithmetic == artifact.float_precision != proof.arithmetic for each in accuracies):
        return [
            f"not recorded: the accuracy in the record was measured in {artifact.float_precision.upper()} on "
            f"{accuracies[0].machine}; what {proof.arithmetic.upper()} gives does not replace it"
        ]
    bundle.note(name, {"accuracy": {**kept, "date": proof.date}}, proof)
    if fp32 is not None and "accuracy" not in bundle.artifact(source).record:
        bundle.note(source, {"accuracy": {**fp32, "date": proof.date}}, replace(proof, arithmetic="fp32"))
    return []

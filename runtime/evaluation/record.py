"""An accuracy in the record of an artifact, and what is to be known of how it was computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from denseport.runtime.bundle.artifact import FOR_OPENVINO, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.comparison import proof_here

__all__ = ["float_warnings", "note_accuracy"]


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

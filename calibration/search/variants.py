"""The files that one decision is written as: the portable graph, and for INT8 the one that a CPU computes fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from denseport.calibration.quantize.cpu import lower_for_cpu
from denseport.calibration.search.search import Search
from denseport.calibration.search.sensitivity import Loss, Reference
from denseport.runtime.bundle.artifact import ANY, FOR_CPU, FOR_TENSORRT

__all__ = ["Variant", "variants_of"]


@dataclass(frozen=True)
class Variant:
    """One file."""

    name: str  # of the artifact
    target: str  # what it is made for (`denseport.runtime.bundle.artifact`)
    model: ir.Model
    loss: Loss  # against FP32, on what the search measured on
    floats: Mapping[str, str]  # nodes of the decision that this variant computes in float, with the reason

    def to_dict(self) -> dict[str, Any]:
        """The variant for the manifest."""
        return {"loss": self.loss.to_dict(), "float": dict(self.floats)}


def variants_of(
    quantized: ir.Model, found: Search, source: ir.Model, thresholds: Mapping[str, float], reference: Reference
) -> list[Variant]:
    """All variants of a quantized model.

    Args:
        source: the float model that was quantized.
        thresholds: of its tensors, those that convolutions write included.
        reference: measures the loss of a variant that rounds otherwise than the portable one.
    """
    precision = found.quantization.kind
    # ONNX Runtime runs FP8 without its optimizations alone: that graph is for TensorRT.
    target = ANY if precision == "int8" else FOR_TENSORRT
    variants = [Variant(f"{precision}.onnx", target, quantized, found.loss, {})]
    if precision == "int8":
        model = quantized.clone()
        record = lower_for_cpu(model, source, thresholds)
        variants.append(Variant("int8.cpu.onnx", FOR_CPU, model, reference.measure(model), dict(record.floats)))
    return variants

"""Make activations easier to quantize without changing what the network computes.

A transformer's LayerNorm puts out a few channels that are far larger than the others, and one scale for the tensor
spends the 127 levels on them. Dividing each channel by a factor in the LayerNorm and multiplying the next weight's rows
by the same factor is exact, and moves the difficulty into the weight, whose channels have scales of their own.

Source: Xiao et al., "SmoothQuant" (ICML 2023), equation 4: s = max|X|^a / max|W|^(1 - a). Here the strength a is chosen
for each layer by the error of its quantized output on calibration activations, and a layer that gains nothing stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.observers import LEVELS, ChannelMaximum, RowSample
from denseport.calibration.quantize.qdq import weight_scales
from denseport.export.graph.edit import new_constant, weight_of

__all__ = ["STRENGTHS", "Smoothing", "SmoothingRecord", "find_norms", "smooth"]

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_SMALLEST = 1e-5  # of a channel's largest magnitude; smaller ones count as this

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Smoothing:
    """What was done at one LayerNorm."""

    norm: str  # the LayerNorm node
    strength: float  # 0: left as it was
    error_before: float  # relative L2 error of the next layers' outputs when both inputs are INT8
    error: float  # the same with the chosen strength


@dataclass(frozen=True)
class SmoothingRecord:
    """What was done to a model."""

    norms: tuple[Smoothing, ...]  # in the graph's order


def find_norms(model: ir.Model) -> dict[str, tuple[ir.Node, list[ir.Node]]]:
    """LayerNorms whose output only linear layers read, by the output's name, with those layers."""
    found = {}
    for node in model.graph:
        if node.op_type != "LayerNormalization" or weight_of(node.inputs[1]) is None:
            continue
        output = node.outputs[0]
        linears = list(output.consumers())
        if linears and not output.is_graph_output() and all(_is_linear(use, output) for use in linears):
            found[str(output.name)] = (node, linears)
    return found


def smooth(model: ir.Model, maxima: Mapping[str, ChannelMaximum], rows: Mapping[str, RowSample]) -> SmoothingRecord:
    """Migrate every LayerNorm of `find_norms` at its best strength.

    Args:
        maxima: by output of the LayerNorms: the largest magnitude of each channel.
        rows: by output of the LayerNorms: some of its rows, to measure the error on.

    Raises:
        CalibrationError: a LayerNorm was not observed.
    """
    done = []
    for name, (norm, linears) in find_norms(model).items():
        if name not in maxima or name not in rows or not len(rows[name].rows):
            raise CalibrationError(f"{name}: nothing was observed of this tensor")
        largest, sample = maxima[name].maximum, rows[name].rows
        weight = np.concatenate([_linear_weight(node) for node in linears], axis=1)
        errors = {0.0: quantized_error(sample, largest, weight)}
        for strength in STRENGTHS:
            factors = _factors(largest, weight, strength)
            errors[strength] = quantized_error(sample / factors, largest / factors, weight * factors[:, None])
        best = min(errors, key=lambda strength: errors[strength])
        if best:
            _migrate(model, norm, linears, _factors(largest, weight, best))
        done.append(Smoothing(str(norm.name), best, errors[0.0], errors[best]))
    RemoveUnusedNodesPass()(model)
    return SmoothingRecord(tuple(done))


def _migrate(model: ir.Model, norm: ir.Node, linears: Iterable[ir.Node], factors: Array) -> None:
    """Divide a LayerNorm's output by ``factors`` (C,) and multiply the next layers' rows by them: exact."""
    for index in (1, 2):
        if index < len(norm.inputs) and norm.inputs[index] is not None:
            _replace(model, norm, index, lambda array: array / factors)
    # No comparison by name may take this tensor for the original's.
    norm.outputs[0].name = f"{norm.outputs[0].name}.smoothed"
    for node in linears:
        rows = factors[None, :] if node.attributes.get_int("transB", 0) else factors[:, None]
        _replace(model, node, 1, lambda array, rows=rows: array * rows)  # type: ignore[misc]


def quantized_error(rows: Array, largest: Array, weight: Array) -> float:
    """Relative L2 error of ``rows`` (n, C) @ ``weight`` (C, K) when both are INT8."""
    scale = np.float32(max(float(largest.max()), 1e-30) / LEVELS)
    scales = weight_scales(weight, 1)
    quantized = np.clip(np.rint(rows / scale), -LEVELS, LEVELS) * scale
    expected = rows @ weight
    found = quantized @ (np.rint(weight / scales) * scales)
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def _factors(largest: Array, weight: Array, strength: float) -> Array:
    """(C,) what each channel is divided by."""
    activation = np.maximum(largest, _SMALLEST * max(float(largest.max()), 1e-30))
    rows = np.abs(weight).max(axis=1)
    rows = np.maximum(rows, _SMALLEST * max(float(rows.max()), 1e-30))
    factors: Array = (activation**strength / rows ** (1 - strength)).astype(np.float32)
    return factors


def _is_linear(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is not value:
        return False
    weight = weight_of(node.inputs[1])
    return weight is not None and weight.ndim == 2 and not node.attributes.get_int("transA", 0)


def _linear_weight(node: ir.Node) -> Array:
    """(in, out)."""
    weight = weight_of(node.inputs[1])
    assert weight is not None  # find_norms saw it
    return weight.T if node.attributes.get_int("transB", 0) else weight


def _replace(model: ir.Model, node: ir.Node, index: int, change: Callable[[Array], Array]) -> None:
    """Give one input of a node a changed constant of its own."""
    value = node.inputs[index]
    array = weight_of(value)
    assert value is not None and array is not None  # find_norms saw it
    name = f"{value.name}.smoothed" if len(value.uses()) == 1 else f"{node.name}.smoothed{index}"
    node.replace_input_with(index, new_constant(model.graph, name, change(array).astype(array.dtype)))

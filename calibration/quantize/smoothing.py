"""Make activations easier to quantize without changing what the network computes.

A few channels of what a linear layer reads are far larger than the others, and one scale for the tensor spends the 127
levels on them. Dividing each channel by a factor and multiplying the layer's rows by the same factor is exact, and
moves the difficulty into the weight, whose channels have scales of their own. A LayerNorm takes the division into its
scale and bias. Behind anything else, such as a GELU, a Mul does it; it costs time, so it has to be worth it.

Source: Xiao et al., "SmoothQuant" (ICML 2023), equation 4: s = max|X|^a / max|W|^(1 - a). Here the strength a is chosen
for each tensor by the error of the next layers' quantized outputs on calibration activations; one that gains nothing
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.observers import LEVELS, ChannelMaximum, RowSample
from denseport.calibration.quantize.qdq import weight_scales
from denseport.export.graph.edit import insert_behind, new_constant, new_node, weight_of

__all__ = ["STRENGTHS", "Smoothing", "SmoothingRecord", "linear_inputs", "linear_weight", "smooth"]

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SMALLEST = 1e-5  # of a channel's largest magnitude; smaller ones count as this
_WORTH_A_MUL = 0.8  # share of the error that may be left when a node more is to compute

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Smoothing:
    """What was done at one tensor."""

    tensor: str  # that the layers read, by its name before
    by: str  # operator that divides its channels: "LayerNormalization", which was there, or "Mul", a new node
    strength: float  # 0: left as it was
    error_before: float  # relative L2 error of the next layers' outputs when both inputs are INT8
    error: float  # the same with the chosen strength


@dataclass(frozen=True)
class SmoothingRecord:
    """What was done to a model."""

    tensors: tuple[Smoothing, ...]  # in the graph's order


def linear_inputs(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Tensors that linear layers with constant weights read, by name, with those layers, in the graph's order."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if value is not None and _is_linear(node, value):
            found.setdefault(str(value.name), []).append(node)
    return found


def smooth(model: ir.Model, maxima: Mapping[str, ChannelMaximum], rows: Mapping[str, RowSample]) -> SmoothingRecord:
    """Migrate the observed tensors of `linear_inputs`, each at its best strength.

    Args:
        maxima: by tensor: the largest magnitude of each channel.
        rows: by tensor, the same ones: some of its rows, to measure the error on.

    Raises:
        CalibrationError: nothing was seen of a tensor.
    """
    done = []
    for name, linears in linear_inputs(model).items():
        if name not in maxima:
            continue
        if name not in rows or not len(rows[name].rows):
            raise CalibrationError(f"{name}: nothing was observed of this tensor")
        largest, sample = maxima[name].maximum, rows[name].rows
        weight = np.concatenate([linear_weight(node) for node in linears], axis=1)
        errors = {0.0: quantized_error(sample, largest, weight)}
        for strength in STRENGTHS:
            factors = _factors(largest, weight, strength)
            errors[strength] = quantized_error(sample / factors, largest / factors, weight * factors[:, None])
        best = min(errors, key=lambda strength: errors[strength])
        norm = _norm_of(linears)
        if norm is None and errors[best] > _WORTH_A_MUL * errors[0.0]:
            best = 0.0
        if best:
            factors = _factors(largest, weight, best)
            if norm is None:  # a common factor changes nothing; without it FP16 could not hold some of these
                factors = factors / np.sqrt(factors.max() * factors.min())
            _divide(model, linears, factors) if norm is None else _absorb(model, norm, factors)
            _multiply(model, linears, factors)
        done.append(Smoothing(name, "Mul" if norm is None else norm.op_type, best, errors[0.0], errors[best]))
    RemoveUnusedNodesPass()(model)
    return SmoothingRecord(tuple(done))


def _norm_of(linears: Sequence[ir.Node]) -> ir.Node | None:
    """The LayerNorm that computes what these layers read, and nothing else reads."""
    value = linears[0].inputs[0]
    norm = value.producer() if value is not None else None
    if norm is None or norm.op_type != "LayerNormalization" or weight_of(norm.inputs[1]) is None:
        return None
    output = norm.outputs[0]
    return norm if len(output.uses()) == len(linears) and not output.is_graph_output() else None


def _absorb(model: ir.Model, norm: ir.Node, factors: Array) -> None:
    """Divide a LayerNorm's output by ``factors`` (C,) in its scale and bias."""
    for index in (1, 2):
        if index < len(norm.inputs) and norm.inputs[index] is not None:
            _replace(model, norm, index, lambda array: array / factors)
    # No comparison by name may take this tensor for the original's.
    norm.outputs[0].name = f"{norm.outputs[0].name}.smoothed"


def _divide(model: ir.Model, linears: Sequence[ir.Node], factors: Array) -> None:
    """Divide what the layers read by ``factors`` (C,) in a node of its own."""
    value = linears[0].inputs[0]
    assert value is not None  # linear_inputs saw it
    inverse = new_constant(model.graph, f"{value.name}.factors", (1 / factors).astype(np.float32))
    node = new_node("Mul", [value, inverse], name=f"{value.name}.smoothed", dtype=value.dtype)
    insert_behind(model.graph, value, [node])
    for linear in linears:
        linear.replace_input_with(0, node.outputs[0])


def _multiply(model: ir.Model, linears: Iterable[ir.Node], factors: Array) -> None:
    """Multiply the rows of the layers' weights by ``factors`` (C,)."""
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


def linear_weight(node: ir.Node) -> Array:
    """The weight of a layer of `linear_inputs`, (in, out)."""
    weight = weight_of(node.inputs[1])
    assert weight is not None  # linear_inputs saw it
    return weight.T if node.attributes.get_int("transB", 0) else weight


def _replace(model: ir.Model, node: ir.Node, index: int, change: Callable[[Array], Array]) -> None:
    """Give one input of a node a changed constant of its own."""
    value = node.inputs[index]
    array = weight_of(value)
    assert value is not None and array is not None  # linear_inputs saw it
    name = f"{value.name}.smoothed" if len(value.uses()) == 1 else f"{node.name}.smoothed{index}"
    node.replace_input_with(index, new_constant(model.graph, name, change(array).astype(array.dtype)))

"""Write INT8 or FP8 into a graph: explicit QuantizeLinear and DequantizeLinear on both inputs of the chosen layers.

Everything is symmetric: int8 with zero point 0, as TensorRT demands (it reads a uint8 zero point as int8 without an
error). An activation has one scale. A weight has one scale for each output channel and is stored as int8, so that the
file shrinks. Biases stay float: TensorRT accepts no INT32 behind DequantizeLinear. FP8 is e4m3, for GPUs from sm_89 on.

A convolution without bias that several nodes read gets one of `NO_BIAS`, for OpenVINO. Up to 2026.4.1 its CPU plugin
moves the scales of such a convolution behind it, to each reader apart, and then puts one reader's back into the
convolution: the others get them twice. A bias stands between the scales and the readers. One of 0 would be taken out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.observers import LEVELS
from denseport.calibration.quantize.placement import Group
from denseport.export.graph.edit import insert_behind, new_constant, new_node, weight_of

__all__ = ["KINDS", "NO_BIAS", "Kind", "Quantization", "RoundedWeight", "quantize", "weight_scales"]

NO_BIAS = np.float32(1e-30)  # so small that adding it changes no sum but 0


@dataclass(frozen=True)
class Kind:
    """An 8-bit type."""

    dtype: ir.DataType
    largest: float  # number that a threshold becomes


KINDS = {"int8": Kind(ir.DataType.INT8, LEVELS), "fp8": Kind(ir.DataType.FLOAT8E4M3FN, 448.0)}


@dataclass(frozen=True)
class RoundedWeight:
    """A linear layer's weight in INT8, as the model holds it: (in, out), or (out, in) of a Gemm with transB."""

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]  # (out,)


@dataclass(frozen=True)
class Quantization:
    """Which groups of a model compute in 8 bits, and which stay float and why."""

    kind: str  # of `KINDS`
    narrow: tuple[Group, ...]  # in 8 bits
    floats: tuple[tuple[Group, str], ...]  # with the reason

    @property
    def narrow_macs(self) -> int:
        """Multiply-adds in 8 bits, for one image."""
        return sum(group.macs for group in self.narrow)

    @property
    def macs(self) -> int:
        """Multiply-adds of all groups, for one image."""
        return self.narrow_macs + sum(group.macs for group, _ in self.floats)

    @property
    def share(self) -> float:
        """Share of the multiply-adds in 8 bits, 0..1."""
        return self.narrow_macs / max(1, self.macs)


def quantize(
    model: ir.Model,
    thresholds: Mapping[str, float],
    groups: Iterable[Group],
    chosen: Iterable[str],
    *,
    reasons: Mapping[str, str] | None = None,
    kind: str = "int8",
    rounded: Mapping[str, RoundedWeight] | None = None,
) -> Quantization:
    """Let the chosen groups of a float model compute in 8 bits.

    Args:
        thresholds: by tensor: the magnitude that becomes 127 (INT8) or 448 (FP8), for all of `placement.activations`.
        groups: all groups of the model, as `placement.find_groups` gives them.
        chosen: names of those that compute in 8 bits.
        reasons: by name: why groups stay float that could be in 8 bits, for the record.
        kind: of `KINDS`: "int8", or "fp8" (e4m3).
        rounded: by name: weights that `rounding.round_weights` rounded; the others go to the nearest step. INT8 only.

    Raises:
        CalibrationError: an unknown kind or group, a group that no engine computes in 8 bits, or a tensor without a
            threshold.
    """
    if kind not in KINDS:
        raise CalibrationError(f"unknown 8-bit type {kind!r}", f"Choose one of {', '.join(KINDS)}.")
    groups, names = tuple(groups), set(chosen)
    if unknown := names - {group.name for group in groups}:
        raise CalibrationError(f"no layer {min(unknown)!r} to quantize", "denseport inspect lists the layers.")
    wanted = tuple(group for group in groups if group.name in names)
    for group in wanted:
        if not group.possible:
            raise CalibrationError(f"{group.name}: cannot be quantized: {group.float_reason}")
    nodes = {str(node.name): node for node in model.graph}
    writer = _Writer(model.graph, thresholds, KINDS[kind], rounded or {})
    for name in (name for group in wanted for name in group.nodes):
        if nodes[name].op_type == "Conv" and kind == "int8":
            writer.part_readers(nodes[name])
        writer.quantize_input(nodes[name], 0)
        writer.quantize_input(nodes[name], 1)
    RemoveUnusedNodesPass()(model)
    given = reasons or {}
    floats = tuple((g, given.get(g.name) or g.float_reason or "not chosen") for g in groups if g not in wanted)
    return Quantization(kind, wanted, floats)


def weight_scales(weight: NDArray[np.float32], axis: int, largest_number: float = LEVELS) -> NDArray[np.float32]:
    """(C,) scales of a weight's channels: the largest magnitude of each becomes 127, or another number."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    return np.where(largest > 0, largest / np.float32(largest_number), np.float32(1)).astype(np.float32)


class _Writer:
    """Inserts Q/DQ into a graph; a tensor or weight that several layers read gets one pair."""

    def __init__(
        self, graph: ir.Graph, thresholds: Mapping[str, float], kind: Kind, rounded: Mapping[str, RoundedWeight]
    ) -> None:
        self.graph = graph
        self.rounded = rounded
        self.kind = kind
        self.thresholds = thresholds
        self.made: dict[tuple[str, int | None], ir.Value] = {}

    def quantize_input(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        assert value is not None and value.name is not None  # both inputs are required by ONNX
        weight = weight_of(value)
        axis = None if weight is None else _output_axis(node, weight.ndim)
        if (value.name, axis) not in self.made:
            self.made[value.name, axis] = (
                self._activation(value) if weight is None or axis is None else self._weight(value, weight, axis, node)
            )
        node.replace_input_with(index, self.made[value.name, axis])

    def part_readers(self, node: ir.Node) -> None:
        """Give a convolution without bias that is read several times one of `NO_BIAS`."""
        bias = weight_of(node.inputs[2]) if len(node.inputs) > 2 else np.float32(0)
        output, weight = node.outputs[0], weight_of(node.inputs[1])
        if bias is None or bias.any() or weight is None or len(output.uses()) + output.is_graph_output() < 2:
            return
        node.resize_inputs(3)
        name, array = f"{node.name}.no_bias", np.full(len(weight), NO_BIAS, np.float32)
        node.replace_input_with(2, new_constant(self.graph, name, array))

    def _activation(self, value: ir.Value) -> ir.Value:
        name = str(value.name)
        if name not in self.thresholds:
            raise CalibrationError(f"{name}: no threshold was collected for this tensor")
        limit = self.thresholds[name]
        if not np.isfinite(limit) or limit < 0:
            raise CalibrationError(f"{name}: {limit} is not a threshold")
        # A tensor that was always 0 is exact in any scale.
        step = np.array(limit / self.kind.largest if limit else 1, np.float32)
        scale = new_constant(self.graph, f"{name}.scale", step)
        zero = new_constant(self.graph, f"{name}.zero_point", np.array(0, self.kind.dtype.numpy()))
        inputs = [value, scale, zero]
        quantized = new_node("QuantizeLinear", inputs, name=f"{name}/QuantizeLinear", dtype=self.kind.dtype)
        back = new_node("DequantizeLinear", [*quantized.outputs, scale, zero], name=f"{name}/DequantizeLinear")
        insert_behind(self.graph, value, [quantized, back])
        return back.outputs[0]

    def _weight(self, value: ir.Value, weight: NDArray[Any], axis: int, node: ir.Node) -> ir.Value:
        name, dtype = str(value.name), self.kind.dtype
        known = self.rounded.get(name) if dtype.is_integer() else None
        if known is not None:
            rounded, scales = known.integers, known.scales
        else:
            rounded, scales = self._nearest(weight, axis)
        stored = new_constant(self.graph, f"{name}.{dtype.name.lower()}", rounded)
        scale = new_constant(self.graph, f"{name}.scale", scales)
        zero = new_constant(self.graph, f"{name}.zero_point", np.zeros(len(scales), rounded.dtype))
        inputs = [stored, scale, zero]
        back = new_node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}/DequantizeLinear")
        self.graph.insert_before(node, back)
        return back.outputs[0]

    def _nearest(self, weight: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """A weight's numbers in the 8-bit type, and the scales of its channels."""
        dtype, largest = self.kind.dtype, self.kind.largest
        scales = weight_scales(weight, axis, largest)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        clipped = (weight / scales.reshape(shape)).astype(np.float32).clip(-largest, largest)
        return (np.rint(clipped) if dtype.is_integer() else clipped).astype(dtype.numpy()), scales


def _output_axis(node: ir.Node, rank: int) -> int:
    """The axis of a layer's weight that counts its outputs."""
    transposed = node.attributes.get_int("transB", 0)
    return 0 if node.op_type == "Conv" or transposed else rank - 1

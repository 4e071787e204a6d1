"""The variant of an INT8 graph that ONNX Runtime's CPU back end computes in integers, made of the portable one.

TensorRT and this back end need different graphs of the same decision. TensorRT takes Q/DQ of int8 with zero point 0 and
refuses an INT32 bias. ONNX Runtime fuses a convolution only with an INT32 bias and a quantized output, and on x86
multiplies int8 by int8 four times slower than uint8 by int8. Here the integer operators are written out, so that
nothing depends on a fusion:

- Activations are uint8 with zero point 128, the same numbers as int8 with zero point 0. Activations that cannot be
  negative have zero point 0 and the same scale.
- A Conv, with a Relu behind it, becomes QLinearConv. Its output takes the scale of the next layer, or one of its own if
  no layer reads it directly: the only rounding that the portable graph does not have.
- A MatMul or Gemm with its bias becomes MatMulIntegerToFloat, whose output is float.
- Weights that could saturate on some machine are rounded again so that they cannot (`saturation`).
- Sums, norms, softmax and the rest stay float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.calibration.observe.observers import LEVELS
from denseport.calibration.quantize.placement import with_relu
from denseport.calibration.quantize.saturation import can_saturate, unsaturated
from denseport.export.graph.edit import new_constant, new_node, weight_of

__all__ = ["CpuRecord", "lower_for_cpu"]

LARGEST_BIAS = 2.0**30  # of an INT32 bias: the sum of the products must fit beside it
_MICROSOFT = "com.microsoft"
_MIDDLE = 128  # uint8 for int8's 0
_NOT_NEGATIVE = frozenset({"Relu", "Softmax", "Sigmoid"})

Array = NDArray[Any]


@dataclass(frozen=True)
class CpuRecord:
    """Which layers compute in integers, and which in float although the portable graph has them in INT8."""

    integer: tuple[str, ...]  # nodes
    floats: tuple[tuple[str, str], ...]  # with the reason


def lower_for_cpu(model: ir.Model, source: ir.Model, thresholds: Mapping[str, float]) -> CpuRecord:
    """Put a Q/DQ model, as `qdq.quantize` makes it, into the operators of ONNX Runtime's CPU back end.

    Args:
        source: the float model that was quantized, for its weights.
        thresholds: by tensor: the magnitude that becomes 127, for all of `placement.activations`; a convolution whose
            output has none computes in float, on the integers' values.
    """
    model.opset_imports.setdefault(_MICROSOFT, 1)
    weights = {f"{name}/DequantizeLinear": weight_of(value) for name, value in source.graph.initializers.items()}
    writer = _Writer(model.graph, weights, thresholds)
    writer.unsign()
    integer: list[str] = []
    floats: list[tuple[str, str]] = []
    for node in list(model.graph):
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        given, factor = map(_dequantizer, node.inputs[:2])
        if given is not None and factor is not None:
            replace = writer.convolution if node.op_type == "Conv" else writer.product
            reason = replace(node, given, factor)
            if reason is None:
                integer.append(str(node.name))
            else:
                floats.append((str(node.name), reason))
    RemoveUnusedNodesPass()(model)
    return CpuRecord(tuple(integer), tuple(floats))


class _Writer:
    """Puts integer operators into a graph in place of operators on dequantized tensors; unread nodes stay."""

    def __init__(self, graph: ir.Graph, weights: Mapping[str, Array | None], thresholds: Mapping[str, float]) -> None:
        self.graph = graph
        self.weights = weights  # float, by the name of their DequantizeLinear
        self.thresholds = thresholds

    def unsign(self) -> None:
        """Make activations uint8."""
        for node in self.graph:
            if node.op_type != "QuantizeLinear":
                continue
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            middle = 0 if source is not None and source.op_type in _NOT_NEGATIVE else _MIDDLE
            zero = self.constant(node, "uint8", np.array(middle, np.uint8))
            node.replace_input_with(2, zero)
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)  # not .dtype: a clone shares the type
            for use in node.outputs[0].consumers():
                use.replace_input_with(2, zero)

    def convolution(self, node: ir.Node, given: ir.Node, factor: ir.Node) -> str | None:
        """Replace a Conv by QLinearConv, or return why not; ``given`` and ``factor`` dequantize its inputs."""
        last = with_relu(node)
        output = last.outputs[0]
        quantizer = next((use for use in output.consumers() if use.op_type == "QuantizeLinear"), None)
        if quantizer is None and output.name not in self.thresholds:
            return f"no threshold was collected for its output, {output.name}"
        scale, zero = quantizer.inputs[1:3] if quantizer is not None else self.output_scale(last)
        constants = [self.constant(node, *pair) for pair in self.integers(node, given, factor).items()]
        inputs = [*given.inputs, *constants[:3], scale, zero, constants[3]]
        outputs = [ir.val(f"{node.name}.uint8", ir.DataType.UINT8)]
        made = ir.Node("", "QLinearConv", inputs, node.attributes.values(), outputs=outputs, name=node.name)
        name, inputs = f"{node.name}/DequantizeLinear", [made.outputs[0], scale, zero]
        back = new_node("DequantizeLinear", inputs, name=name, dtype=ir.DataType.FLOAT)
        self.graph.insert_after(last, (made, back))
        if quantizer is not None:
            quantizer.outputs[0].replace_all_uses_with(made.outputs[0])
        output.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
        return None

    def product(self, node: ir.Node, given: ir.Node, factor: ir.Node) -> str | None:
        """Replace a MatMul and the bias behind it, or a Gemm, by MatMulIntegerToFloat, or return why not."""
        options = {name: attribute.value for name, attribute in node.attributes.items()}
        if options.get("transA") or options.get("alpha", 1) != 1 or options.get("beta", 1) != 1:
            return "a Gemm that scales or transposes its input"
        second, scales, zeros = factor.inputs
        weight = self.weights.get(str(factor.name))
        if weight is not None:
            integers, steps = weight_of(second), weight_of(scales)
            assert integers is not None and steps is not None  # `qdq.quantize` made them
            integers, weight = (integers.T, weight.T) if options.get("transB") else (integers, weight)
            if can_saturate(integers):
                integers, steps = unsaturated(weight)
            second = self.constant(node, "int8", np.ascontiguousarray(integers))
            scales = self.constant(node, "scale", steps)
        last, bias = _with_bias(node, None if weight is None else weight.shape[1])
        inputs = [given.inputs[0], second, given.inputs[1], scales, given.inputs[2], zeros]
        inputs += [] if bias is None else [bias]
        made = ir.Node(_MICROSOFT, "MatMulIntegerToFloat", inputs, name=node.name)
        made.outputs[0].name, made.outputs[0].dtype = f"{node.name}.float", ir.DataType.FLOAT
        self.graph.insert_after(last, made)
        last.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
        return None

    def output_scale(self, last: ir.Node) -> tuple[ir.Value, ir.Value]:
        limit = self.thresholds[str(last.outputs[0].name)]
        scale = np.array(limit / LEVELS if limit else 1, np.float32)
        zero = np.array(0 if last.op_type in _NOT_NEGATIVE else _MIDDLE, np.uint8)
        return self.constant(last, "output.scale", scale), self.constant(last, "output.zero_point", zero)

    def integers(self, node: ir.Node, given: ir.Node, factor: ir.Node) -> dict[str, Array]:
        """Weight, its scales and zero points, and the INT32 bias of a convolution."""
        weight, scale = self.weights[str(factor.name)], weight_of(given.inputs[1])
        assert weight is not None and scale is not None  # `qdq.quantize` made them of constants
        bias = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
        bias = np.zeros(len(weight), np.float32) if bias is None else bias
        # ONNX Runtime sums over the channels of a pixel first.
        columns = np.moveaxis(weight, 1, -1)
        # A channel of weights that are all next to nothing would have a scale in which its bias does not fit.
        integers, scales = unsaturated(columns.reshape(len(weight), -1).T, np.abs(bias) / (scale * LARGEST_BIAS))
        return {
            "int8": np.ascontiguousarray(np.moveaxis(integers.T.reshape(columns.shape), -1, 1)),
            "scale": scales,
            "zero_point": np.zeros(len(scales), np.int8),
            "bias": np.rint(bias / (np.float64(scale) * scales)).astype(np.int32),
        }

    def constant(self, node: ir.Node, what: str, array: Array) -> ir.Value:
        return new_constant(self.graph, f"{node.name}.cpu.{what}", array)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives a tensor."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _with_bias(node: ir.Node, width: int | None) -> tuple[ir.Node, ir.Value | None]:
    """The Add of a constant (width,) behind a linear layer, and the constant; else the layer itself and its bias."""
    if node.op_type == "Gemm":
        return node, node.inputs[2] if len(node.inputs) > 2 else None
    uses = node.outputs[0].consumers()
    if width is not None and len(uses) == 1 and uses[0].op_type == "Add" and not node.outputs[0].is_graph_output():
        for value in uses[0].inputs:
            bias = weight_of(value)
            if bias is not None and bias.shape == (width,):
                return uses[0], value
    return node, None

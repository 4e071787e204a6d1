"""Make ONNX Runtime's CPU back end round as an FP16 engine does.

ONNX Runtime has hardly any FP16 kernels on CPUs: it computes such nodes in FP32 and leaves the casts between them
out (``InsertedPrecisionFreeCast``), so that a typed graph shows FP16's weights there, but neither its rounding nor its
overflow. After this pass every node computes in FP32, as tensor cores accumulate, and every tensor that was narrow
passes through a pair of casts, which ONNX Runtime keeps because they lose digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from denseport.export.graph.edit import new_node, weight_of

__all__ = ["RoundingRecord", "emulate_rounding"]

FLOAT = ir.DataType.FLOAT
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class RoundingRecord:
    """What became FP32."""

    constants: int
    tensors: int  # each rounded by casts behind it


def emulate_rounding(model: ir.Model) -> RoundingRecord:
    """Turn a graph typed by `export.graph.precision` into an FP32 graph that rounds where that one does.

    For measuring on a CPU, not for deployment: it is slower than both.
    """
    graph = model.graph
    constants = [value for value in graph.initializers.values() if value.dtype in NARROW]
    for constant in constants:
        weight = weight_of(constant)
        assert weight is not None  # an initializer's
        constant.const_value = ir.tensor(weight.astype("float32"), name=constant.name)
        constant.dtype = FLOAT
    narrow = [(node, value) for node in graph for value in node.outputs if value.dtype in NARROW]
    for node, value in narrow:
        _round(graph, node, value)
    return RoundingRecord(len(constants), len(narrow))


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Put a cast to FP32 behind what a node gives and, unless it is a Cast itself, one to the narrow type before it."""
    narrow, casts = value.dtype, []
    assert narrow is not None  # one of NARROW
    back = new_node("Cast", [None], {"to": FLOAT}, name=f"{value.name}.rounded", dtype=FLOAT)
    value.replace_all_uses_with(back.outputs[0])
    if node.op_type != "Cast":
        value.dtype = FLOAT
        casts = [new_node("Cast", [value], {"to": narrow}, name=f"{value.name}.{narrow.name.lower()}", dtype=narrow)]
    back.replace_input_with(0, casts[0].outputs[0] if casts else value)
    graph.insert_after(node, [*casts, back])

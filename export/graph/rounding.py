"""Make ONNX Runtime's CPU back end round as an FP16 engine does.

ONNX Runtime has hardly any FP16 kernels on CPUs: it computes such nodes in FP32 and leaves the casts between them
out (``InsertedPrecisionFreeCast``), so that a typed graph shows FP16's weights there, but neither its rounding nor its
overflow. This pass says the same explicitly: every node computes in FP32, as tensor cores accumulate, and every tensor
that was narrow passes through a pair of casts, which ONNX Runtime keeps because they lose digits.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["emulate_rounding"]

FLOAT = ir.DataType.FLOAT
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulate_rounding(model: ir.Model) -> ir.Model:
    """Turn a graph typed by `export.graph.precision` into an FP32 graph that rounds where that one does, in place.

    For measuring on a CPU, not for deployment: it is slower than both.
    """
    graph = model.graph
    for constant in graph.initializers.values():
        if constant.dtype in NARROW and constant.const_value is not None:
            constant.const_value = ir.tensor(constant.const_value.numpy().astype("float32"), name=constant.name)
            constant.dtype = FLOAT
    for node in list(graph):
        for value in node.outputs:
            if value.dtype in NARROW:
                _round(graph, node, value)
    return model


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    narrow = value.dtype
    assert narrow is not None  # one of NARROW
    back = ir.node("Cast", [value], {"to": FLOAT}, name=f"{value.name}.rounded")
    rounded = back.outputs[0]
    rounded.name, rounded.dtype = back.name, FLOAT
    if node.op_type == "Cast":  # it rounds by itself
        value.replace_all_uses_with(rounded)
        back.replace_input_with(0, value)
        graph.insert_after(node, back)
        return
    down = ir.node("Cast", [value], {"to": narrow}, name=f"{value.name}.{narrow.name.lower()}")
    down.outputs[0].name, down.outputs[0].dtype = down.name, narrow
    value.replace_all_uses_with(rounded)
    value.dtype = FLOAT
    down.replace_input_with(0, value)
    back.replace_input_with(0, down.outputs[0])
    graph.insert_after(node, (down, back))

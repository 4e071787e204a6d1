"""Rewrite a graph for an older opset of ONNX, or refuse the operator that has no form there.

Between opsets most operators differ in types or in inputs that are not used here. Each node is compared with the older
definition: its inputs and attributes must exist there, or have the value that the older one implies. LayerNormalization
and a cut Shape are written in steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.export.errors import ExportError
from denseport.export.graph.edit import new_constant, new_node, weight_of

__all__ = ["OpsetRecord", "lower_opset"]


@dataclass(frozen=True)
class OpsetRecord:
    """What became of a graph for an older opset."""

    opset: int
    changed: int  # nodes that were written in another way


def lower_opset(model: ir.Model, opset: int) -> OpsetRecord:
    """Rewrite ``model`` for ``opset``, which is at most its own.

    Raises:
        ExportError: an operator that has no form in ``opset``; it names both.
    """
    newest = model.opset_imports[""]
    changed = 0
    if opset < newest:
        for node in list(model.graph):
            changed += _lower(model.graph, node, newest, opset)
        model.graph.opset_imports[""] = opset
        RemoveUnusedNodesPass()(model)  # and constants that nothing reads
    return OpsetRecord(opset, changed)


def _lower(graph: ir.Graph, node: ir.Node, newest: int, opset: int) -> bool:
    """Rewrite one node; whether its definition is another one in ``opset``."""
    new = onnx.defs.get_schema(node.op_type, newest)
    if node.op_type == "LayerNormalization" and opset < new.since_version:
        _normalise_in_steps(graph, node)
        return True
    try:
        old = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError as err:
        raise _no_form(node, f"{node.op_type} came with opset {new.since_version}", new) from err
    if new.since_version == old.since_version:
        return False
    axes = weight_of(node.inputs[1]) if node.op_type.startswith("Reduce") and len(node.inputs) == 2 else None
    if axes is not None and old.max_input == 1:  # they are an input since opset 18
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())
        node.resize_inputs(1)
    if node.op_type == "Shape" and "end" not in old.attributes:
        _cut_shape(graph, node)
        return True
    for name in [name for name in node.attributes if name not in old.attributes]:
        default: onnx.AttributeProto = new.attributes[name].default_value
        value = node.attributes[name].value
        # Without num_outputs, older ONNX cuts into as many equal parts as there are outputs. allowzero says what a 0
        # in a shape means; no tensor here has a side of 0.
        is_implied = (name, value) in (("num_outputs", len(node.outputs)), ("allowzero", 1))
        if not is_implied and (not default.type or ir.serde.deserialize_attribute(default).value != value):
            raise _no_form(node, f"{node.op_type} has no {name} in opset {opset}", new)
        del node.attributes[name]
    if len(node.inputs) > old.max_input:
        raise _no_form(node, f"{node.op_type} has at most {old.max_input} inputs in opset {opset}", new)
    return True


def _normalise_in_steps(graph: ir.Graph, node: ir.Node) -> None:
    """LayerNormalization over the last axis: (x - mean) / sqrt(variance + epsilon) * scale + bias."""
    x, scale, bias = (*node.inputs, None)[:3]
    if node.attributes.get_int("axis", -1) != -1 or len(node.outputs) != 1:
        raise ExportError(
            f"{node.name}: only LayerNormalization over the last axis is written in steps", "Give --opset 17."
        )
    epsilon = new_constant(
        graph, f"{node.name}.epsilon", np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
    )
    last = {"axes": [-1], "keepdims": 1}
    nodes: list[ir.Node] = []

    def step(operator: str, *inputs: ir.Value | None, attributes: dict[str, Any] | None = None) -> ir.Value:
        nodes.append(new_node(operator, inputs, attributes, name=f"{node.name}.{len(nodes)}/{operator}"))
        return nodes[-1].outputs[0]

    centred = step("Sub", x, step("ReduceMean", x, attributes=last))
    variance = step("ReduceMean", step("Mul", centred, centred), attributes=last)
    result = step("Mul", step("Div", centred, step("Sqrt", step("Add", variance, epsilon))), scale)
    result = result if bias is None else step("Add", result, bias)
    _replace(graph, node, nodes)


def _cut_shape(graph: ir.Graph, node: ir.Node) -> None:
    """Shape with start and end: Shape, then Slice."""
    bounds = [node.attributes.get_int("start", 0), node.attributes.get_int("end", 2**31 - 1)]
    constants = [
        new_constant(graph, f"{node.name}.{name}", np.array([value], np.int64))
        for name, value in zip(("start", "end"), bounds, strict=True)
    ]
    whole = new_node("Shape", [node.inputs[0]], name=f"{node.name}.whole")
    _replace(graph, node, [whole, new_node("Slice", [whole.outputs[0], *constants], name=f"{node.name}.part")])


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put nodes in a node's place; the last one's output takes its name."""
    (old,), (new,) = node.outputs, nodes[-1].outputs
    name = old.name
    graph.insert_before(node, nodes)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.type, new.shape = name, old.type, old.shape


def _no_form(node: ir.Node, reason: str, new: onnx.defs.OpSchema) -> ExportError:
    return ExportError(f"{node.name}: {reason}", f"Give --opset {new.since_version} or a newer one.")

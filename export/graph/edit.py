"""What several passes do to a graph: read constants, make constants and nodes, insert them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["insert_behind", "new_constant", "new_node", "of_sizes", "weight_of"]


def weight_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer; None for what is computed."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def of_sizes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute something from the input's size and from constants alone, not from the image."""
    found, values = set[ir.Node](), set[ir.Value | None]()
    for node in graph:
        varying = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if varying and (node.op_type in ("Shape", "Size") or all(value in values for value in varying)):
            found.add(node)
            values.update(node.outputs)
    return found


def new_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer of a graph."""
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def new_node(
    operator: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
    dtype: ir.DataType | None = None,
) -> ir.Node:
    """A node, not yet in a graph, whose one output has its name."""
    return ir.node(operator, inputs, attributes, outputs=[ir.val(name, dtype)], name=name)


def insert_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put nodes right behind what computes a tensor, at the beginning for an input or a constant."""
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)

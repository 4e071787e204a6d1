"""The casts of a graph of two floating-point types: where the fewest are needed, and how they are put in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import count
from typing import TypeVar

import onnx_ir as ir

from denseport.export.graph.edit import insert_behind, new_constant, new_node, weight_of

__all__ = ["Caster", "fewest_casts"]

T = TypeVar("T", bound=Hashable)

WIDE, NARROW = 0, 1  # vertices for the nodes that have no choice
FLOAT = ir.DataType.FLOAT


def fewest_casts(tensors: Iterable[tuple[T, Iterable[T]]], fixed: Mapping[T, bool]) -> set[T]:
    """The nodes to be wide; of several choices with the fewest casts, the one with the fewest wide nodes.

    A tensor needs one Cast if any of its consumers has another type than its producer, however many they are. The
    choice with the fewest casts is a minimum cut between the nodes that must be narrow and those that must be wide,
    in a network where cutting one edge is inserting one Cast.

    Args:
        tensors: producer and consumers of each tensor.
        fixed: the nodes that have no choice, and whether they are wide.
    """
    import networkx

    numbers = count(2)
    vertex = {node: WIDE if wide else NARROW for node, wide in fixed.items()}
    network = networkx.DiGraph()
    network.add_nodes_from((WIDE, NARROW))
    for producer, consumers in tensors:
        start = vertex.setdefault(producer, next(numbers))
        down, up = next(numbers), next(numbers)
        network.add_edge(down, start, capacity=1)  # cut where the producer is wide and a consumer is narrow
        network.add_edge(start, up, capacity=1)  # cut where the producer is narrow and a consumer is wide
        for consumer in consumers:
            end = vertex.setdefault(consumer, next(numbers))
            network.add_edge(end, down)  # without a capacity: never cut
            network.add_edge(up, end)
    # Of the minimum cuts networkx gives the one with the fewest vertices on the sink's side.
    wide = networkx.minimum_cut(network, NARROW, WIDE)[1][1]
    return {node for node, number in vertex.items() if number in wide}


class Caster:
    """Gives tensors in the type that is asked for: one Cast, or one copy of a constant, for all who ask.

    Args:
        suffix: of the names of tensors in the narrow type, ``fp16`` say.

    Attributes:
        casts: nodes put in so far.
    """

    def __init__(self, graph: ir.Graph, narrow: ir.DataType, suffix: str) -> None:
        self.casts = 0
        self._graph = graph
        self._narrow = narrow
        self._suffix = suffix
        self._made: dict[ir.Value, ir.Value] = {}

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` in ``dtype``."""
        if value.dtype == dtype:
            return value
        if value not in self._made:
            self._made[value] = self._make(value, dtype)
        return self._made[value]

    def finish(self) -> None:
        """Put FP32 back on the model's outputs, and drop constants that nobody reads any more."""
        for i, value in enumerate(self._graph.outputs):
            if value.dtype == self._narrow:
                name, producer = value.name, value.producer()
                value.name = str(producer.name) if producer else f"{name}.{self._suffix}"
                output = self.cast(value, FLOAT)
                output.name, output.shape = name, value.shape
                self._graph.outputs[i] = output
        for value, copy in self._made.items():
            if value.is_initializer() and not value.uses():
                del self._graph.initializers[str(value.name)]
                copy.name = value.name

    def _make(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'fp32' if dtype == FLOAT else self._suffix}"
        weight = weight_of(value)
        if weight is not None:
            return new_constant(self._graph, name, weight.astype(dtype.numpy()))
        node = new_node("Cast", [value], {"to": dtype}, name=name, dtype=dtype)
        insert_behind(self._graph, value, [node])
        self.casts += 1
        return node.outputs[0]

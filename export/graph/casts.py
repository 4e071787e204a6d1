"""The casts of a graph of two floating-point types: where the fewest are needed, and how they are put in.

A tensor needs one Cast if any of its consumers has another type than its producer, however many they are. The
choice with the fewest casts is a minimum cut (Ford and Fulkerson, 1956) between the nodes that must be wide and
those that must be narrow, in a network where cutting one edge is inserting one Cast.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from itertools import count
from typing import Any, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray

from denseport.export.graph.edit import drop_unread, insert_behind, new_constant, new_node, weight_of

__all__ = ["Caster", "fewest_casts"]

T = TypeVar("T", bound=Hashable)
Network = defaultdict[int, dict[int, int]]  # what each edge can still carry

WIDE, NARROW = 0, 1  # the two ends of the network
UNBOUNDED = 2**31
FLOAT = ir.DataType.FLOAT


def fewest_casts(tensors: Iterable[tuple[T, Iterable[T]]], fixed: Mapping[T, bool]) -> set[T]:
    """The nodes to be wide; of several choices with the fewest casts, the one with the fewest wide nodes.

    Args:
        tensors: producer and consumers of each tensor.
        fixed: the nodes that have no choice, and whether they are wide.
    """
    numbers = count(2)
    vertex = {node: WIDE if wide else NARROW for node, wide in fixed.items()}
    network: Network = defaultdict(dict)
    for producer, consumers in tensors:
        start = vertex.setdefault(producer, next(numbers))
        down, up = next(numbers), next(numbers)
        _connect(network, start, down, 1)  # cut where the producer is wide and a consumer is narrow
        _connect(network, up, start, 1)  # cut where the producer is narrow and a consumer is wide
        for consumer in consumers:
            end = vertex.setdefault(consumer, next(numbers))
            _connect(network, down, end, UNBOUNDED)
            _connect(network, end, up, UNBOUNDED)
    while path := _path(network):
        for start, end in path:
            network[start][end] -= 1
            network[end][start] += 1
    wide = set(_search(network))
    return {node for node, number in vertex.items() if number in wide}


def _connect(network: Network, start: int, end: int, limit: int) -> None:
    network[start][end] = limit
    network[end].setdefault(start, 0)


def _search(network: Network) -> dict[int, int]:
    """Every vertex that more flow from the wide end could reach, and the one it would come from."""
    came_from = {WIDE: WIDE}
    queue = deque([WIDE])
    while queue and NARROW not in came_from:
        start = queue.popleft()
        for end, left in network[start].items():
            if left and end not in came_from:
                came_from[end] = start
                queue.append(end)
    return came_from


def _path(network: Network) -> list[tuple[int, int]]:
    """The edges of a shortest way from end to end that can carry one unit more; none if the flow is at its greatest."""
    came_from = _search(network)
    if NARROW not in came_from:
        return []
    edges, end = [], NARROW
    while end != WIDE:
        edges.append((came_from[end], end))
        end = came_from[end]
    return edges


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
            weight = weight_of(value)
            self._made[value] = self._insert(value, dtype) if weight is None else self._copy(value, weight, dtype)
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
                drop_unread(self._graph, [value])
                copy.name = value.name

    def _copy(self, value: ir.Value, weight: NDArray[Any], dtype: ir.DataType) -> ir.Value:
        return new_constant(self._graph, f"{value.name}.{self._suffix}", weight.astype(dtype.numpy()))

    def _insert(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'fp32' if dtype == FLOAT else self._suffix}"
        node = new_node("Cast", [value], {"to": dtype}, name=name, dtype=dtype)
        insert_behind(self._graph, value, [node])
        self.casts += 1
        return node.outputs[0]

"""Give a foreign graph the ends of the house: ``image`` (N, C, H, W) float32 in, ``logits`` (N, classes, h, w) out, or
``depth`` (N, 1, h, w).

What a graph does behind its logits the runtime does itself, and better where it knows the logits: an argmax, a softmax
or a resize to the input's size at the end is cut off. Where they cannot be found behind other operators, a node or two
make logits of what there is: the logarithm of probabilities, ones and zeros of classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.export.graph.edit import new_constant, new_node
from denseport.export.graph.model import DEPTH, LOGITS
from denseport.runtime.backends.onnxruntime import INPUT

__all__ = ["CLASSES", "NCHW", "NHW", "NHWC", "PROBABILITIES", "TO_NCHW", "TO_NHWC", "Ends", "EndsRecord", "adapt_ends"]

NCHW, NHWC, NHW = "NCHW", "NHWC", "NHW"
PROBABILITIES, CLASSES = "probabilities", "classes"  # what a graph gives, beside `LOGITS`
FLOAT = ir.DataType.FLOAT
TINY = 1e-12  # the least probability whose logarithm is taken
# The runtime resizes by these rules too. They differ for a side of one pixel only.
RULES = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


@dataclass(frozen=True)
class Ends:
    """What a graph takes and gives, as it was found by running it."""

    shape: tuple[int | None, int, int | None, int | None]  # of the input: N, channels, H, W; None: any
    layout: str  # of the input: NCHW or NHWC
    gives: str  # LOGITS, PROBABILITIES, CLASSES or DEPTH
    output_layout: str  # NCHW, NHWC or, of classes or a single channel, NHW
    channels: int  # of the output; 1 of classes and of depth
    classes: int  # that are told apart: of one channel with a threshold two; 1 of depth
    full_size: bool  # the output has the input's height and width
    threshold: float | None = None  # of one channel: the probability above which a pixel is of the second class


@dataclass(frozen=True)
class EndsRecord:
    """What was changed at the ends."""

    cut: tuple[str, ...]  # operators behind the logits that the runtime does itself, the last one first
    added: tuple[str, ...]  # operators
    align_corners: bool | None  # of a resize that was cut; None: none was
    scores: bool  # a softmax over the logits gives the network's own probabilities


@dataclass(frozen=True)
class _Tail:
    """A place in the graph from which the runtime can go on."""

    value: ir.Value
    layout: str
    gives: str
    cut: tuple[str, ...] = ()
    align_corners: bool | None = None
    scores: bool = True
    ranked: bool = False  # what follows depends on which channel is the largest only

    def before(self, node: ir.Node, **changes: object) -> _Tail:
        """The place before a node."""
        value = node.inputs[0]
        assert value is not None  # the operators that are cut all have a first input
        return replace(self, value=value, cut=(*self.cut, node.op_type), **changes)  # type: ignore[arg-type]


def adapt_ends(model: ir.Model, ends: Ends) -> EndsRecord:
    """Rename, transpose and cast both ends, cut off what lies behind the logits, and make logits of what else there is.

    Args:
        ends: of the one input and the one output that the graph has.
    """
    graph = model.graph
    front = _front(graph, ends)
    tail = _cut(graph.outputs[0], ends)
    value, back = _logits(graph, tail, ends)
    if value.is_graph_input() or value.is_initializer():
        back.append(new_node("Identity", [value], name="ends/Identity", dtype=FLOAT))
        value = back[-1].outputs[0]
    graph.extend([node for node in back if node.graph is None])
    graph.outputs[0] = value
    value.name, value.dtype = DEPTH if ends.gives == DEPTH else LOGITS, FLOAT
    value.shape = ir.Shape(["batch" if ends.shape[0] is None else ends.shape[0], ends.classes, "rows", "columns"])
    RemoveUnusedNodesPass()(model)
    added = tuple(node.op_type for node in (*front, *back))
    return EndsRecord(tail.cut, added, tail.align_corners, tail.scores and tail.gives != CLASSES)


def _front(graph: ir.Graph, ends: Ends) -> list[ir.Node]:
    """Let the graph take ``image``; the nodes that make of it what it took."""
    old, names = graph.inputs[0], ("batch", "channels", "height", "width")
    dims = [name if size is None else size for name, size in zip(names, ends.shape, strict=True)]
    nodes: list[ir.Node] = []
    if ends.layout == NCHW and old.dtype == FLOAT:
        old.name, old.shape = INPUT, ir.Shape(dims)
        return nodes
    image = ir.val(INPUT, FLOAT, dims)
    value = image
    if ends.layout == NHWC:
        nodes.append(new_node("Transpose", [value], {"perm": TO_NHWC}, name="ends/image/Transpose", dtype=FLOAT))
        value = nodes[-1].outputs[0]
    between = _until_cast(old)
    if old.dtype != FLOAT and between is not None:
        for each in between:  # a Cast to what it is already: engines have no whole numbers between layers
            each.dtype = FLOAT
    elif old.dtype != FLOAT:
        nodes.append(new_node("Cast", [value], {"to": old.dtype}, name="ends/image/Cast", dtype=old.dtype))
        value = nodes[-1].outputs[0]
    old.replace_all_uses_with(value)
    graph.inputs[0] = image
    if len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)
    return nodes


def _until_cast(value: ir.Value) -> list[ir.Value] | None:
    """A tensor and what only moves it, if all that computes with it casts it to float first; else None."""
    found = [value]
    for each in found:  # grows
        for node in each.consumers():
            if node.op_type in ("Transpose", "Identity"):
                found.append(node.outputs[0])
            elif node.op_type != "Cast" or node.attributes.get_int("to") != FLOAT:
                return None
    return None if any(each.is_graph_output() for each in found) else found


def _cut(output: ir.Value, ends: Ends) -> _Tail:
    """The last place behind which there is nothing but what the runtime does itself."""
    found = _Tail(output, ends.output_layout, ends.gives)
    for at in _upwards(found, ends):
        if at.gives != CLASSES:  # what lies between the classes and their argmax is cut with it or not at all
            found = at
    if found.ranked and _squashed(found.value):
        found = replace(found, scores=False)
    return found


def _squashed(value: ir.Value) -> bool:
    """Whether a tensor holds probabilities, perhaps resized, so that a softmax over it means nothing."""
    node = _without_moves(value)
    if node is not None and node.op_type == "Resize":
        node = _without_moves(node.inputs[0])
    return node is not None and node.op_type in ("Softmax", "Sigmoid")


def _upwards(at: _Tail, ends: Ends) -> Iterator[_Tail]:
    """The places before each node that can be cut, from the output on."""
    while (node := at.value.producer()) is not None and node.domain in ("", "ai.onnx"):
        if len(node.inputs) == 0 or node.inputs[0] is None:
            return
        step = _step(at, node, ends)
        if step is None:
            return
        at = step
        yield at


def _step(at: _Tail, node: ir.Node, ends: Ends) -> _Tail | None:
    """The place before a node, or None where the node has to stay."""
    kind, axis = node.op_type, node.attributes.get_int("axis", -1)
    if kind == "Identity":
        return at.before(node)
    if at.gives == CLASSES:
        if kind in ("Cast", "Squeeze", "Unsqueeze", "Reshape"):  # none of them moves a pixel of one channel
            return at.before(node)
        layout = {1: NCHW, -3: NCHW, 3: NHWC, -1: NHWC}.get(node.attributes.get_int("axis", 0))
        takes_last = node.attributes.get_int("select_last_index", 0)
        if kind != "ArgMax" or layout is None or takes_last:
            return None
        return at.before(node, gives=LOGITS, layout=layout, ranked=True)
    of_classes = axis in ((1, -3) if at.layout == NCHW else (3, -1))
    if kind == "Transpose":
        perm = node.attributes.get_ints("perm", [])
        if (at.layout, [*perm]) in ((NCHW, TO_NCHW), (NHWC, TO_NHWC)):
            return at.before(node, layout=NHWC if at.layout == NCHW else NCHW)
        return None
    if at.align_corners is not None:  # a resize was cut: what makes probabilities cannot be cut before it
        return None
    if kind == "Softmax" and of_classes and (at.gives == PROBABILITIES or at.ranked):
        return at.before(node, gives=LOGITS, ranked=False)
    if kind == "LogSoftmax" and of_classes and at.gives == LOGITS:
        return at.before(node)
    if kind == "Sigmoid" and at.gives == PROBABILITIES and ends.channels == 1:
        return at.before(node, gives=LOGITS)
    if kind == "Sigmoid" and at.ranked:  # each channel has its own probability: no softmax tells them
        return at.before(node, scores=False)
    if kind == "Resize" and ends.full_size and at.gives == LOGITS:
        return _before_resize(at, node)
    return None


def _before_resize(at: _Tail, node: ir.Node) -> _Tail | None:
    rule = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    plain = node.attributes.get_string("mode", "nearest") == "linear" and not node.attributes.get_int("antialias", 0)
    above = _without_moves(node.inputs[0])
    if not plain or rule not in RULES or (above is not None and above.op_type in ("Softmax", "LogSoftmax", "Sigmoid")):
        return None
    return at.before(node, align_corners=RULES[rule])


def _without_moves(value: ir.Value | None) -> ir.Node | None:
    """What computes a tensor, seen through what only moves or casts it."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Identity", "Cast", "Transpose"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _logits(graph: ir.Graph, tail: _Tail, ends: Ends) -> tuple[ir.Value, list[ir.Node]]:
    """(N, classes, h, w) float32 of what the tail gives, and the nodes that make it."""
    nodes: list[ir.Node] = []

    def step(operator: str, inputs: Sequence[ir.Value], dtype: ir.DataType = FLOAT, **attributes: object) -> ir.Value:
        name = f"ends/{operator}_{len(nodes)}"
        nodes.append(new_node(operator, inputs, attributes, name=name, dtype=dtype))
        return nodes[-1].outputs[0]

    def constant(name: str, array: np.ndarray) -> ir.Value:
        return new_constant(graph, f"ends/{name}", array)

    value, is_classes = tail.value, tail.gives == CLASSES
    kind = ir.DataType.INT32 if is_classes else FLOAT
    if value.dtype != kind:
        value = step("Cast", [value], kind, to=kind)
    if tail.layout == NHWC:
        value = step("Transpose", [value], kind, perm=TO_NCHW)
    elif tail.layout == NHW:
        value = step("Unsqueeze", [value, constant("axes", np.array([1], np.int64))], kind)
    if is_classes:
        numbers = np.arange(ends.classes, dtype=np.int32).reshape(1, -1, 1, 1)
        value = step("Equal", [value, constant("classes", numbers)], ir.DataType.BOOL)
        return step("Cast", [value], to=FLOAT), nodes
    if tail.gives == PROBABILITIES:
        least = constant("least", np.array(TINY, np.float32))
        positive = step("Max", [value, least])
        if ends.channels == 1:
            rest = step("Max", [step("Sub", [constant("one", np.array(1, np.float32)), value]), least])
            value = step("Sub", [step("Log", [positive]), step("Log", [rest])])
        else:
            value = step("Log", [positive])
    if ends.channels == 1 and ends.threshold is not None:
        odds = math.log(ends.threshold / (1 - ends.threshold))
        nothing = step("Mul", [value, constant("zero", np.array(0, np.float32))])
        value = step("Concat", [step("Add", [nothing, constant("odds", np.array(odds, np.float32))]), value], axis=1)
    return value, nodes

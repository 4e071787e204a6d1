"""Which layers of a network can compute in INT8, what each costs, and which stay float by default.

A group is the unit of decision: a convolution, a linear layer, or both products of one attention block, since engines
fuse an attention only when both are of one kind. Costs are multiply-adds of one image, from the shapes that ONNX
Runtime finds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from denseport.calibration.errors import CalibrationError
from denseport.export.graph.edit import of_sizes, weight_of
from denseport.export.graph.probe import Probe

__all__ = ["FLOAT_LAYERS", "Group", "activations", "find_groups", "with_relu"]

# Of the last ones: no later layer can mend their loss. The last three are of depth.
FLOAT_LAYERS = (
    "decode_head.conv_seg",
    "decode_head.project",
    "decode_head.head.2",
    "decode_head.head.4",
    "decode_head.output_conv2",
)
SMALLEST_SHARE = 1e-4  # of all multiply-adds; conversions around a smaller layer cost more than it saves

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_COSTLY = _WEIGHTED | {"ConvTranspose"}
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger"})
_BETWEEN = frozenset({"Mul", "Div", "Add", "Cast"})  # may stand between the scores and their softmax


@dataclass(frozen=True)
class Group:
    """Layers that compute in 8 bits together or not at all."""

    name: str  # the layer's, such as backbone.layers.3.attn.attn/qkv
    kind: str  # "convolution", "linear", "attention", "transposed convolution" or "product"
    nodes: tuple[str, ...]  # of the graph
    macs: int  # multiply-adds of one image
    float_reason: str | None = None  # why it stays float unless asked for; None: it is a candidate
    possible: bool = True  # False: no engine computes it in 8 bits

    @property
    def is_candidate(self) -> bool:
        """Whether the search may put it in 8 bits."""
        return self.possible and self.float_reason is None


def find_groups(model: ir.Model, size: tuple[int, int]) -> tuple[Group, ...]:
    """All groups of a float model in the graph's order, those that stay float included.

    Args:
        size: (height, width) in pixels of the network input that costs are counted for.

    Raises:
        CalibrationError: the model is quantized already, or has nothing to quantize.
    """
    quantized = sorted({node.op_type for node in model.graph if node.op_type in _QUANTIZED})
    if quantized:
        raise CalibrationError(
            f"the model is quantized already: it holds {', '.join(quantized)}", "Calibrate the FP32 model, model.onnx."
        )
    sizes = of_sizes(model.graph)  # a position embedding that is resized by products
    costly = [node for node in model.graph if node.op_type in _COSTLY and node not in sizes]
    macs = _multiply_adds(model, costly, size)
    attention = _attention_products(model)
    together: dict[ir.Node, tuple[ir.Node, ...]] = {**attention, **_projections(costly, attention)}
    firsts = [node for node in costly if together.get(node, (node,))[0] is node]
    scopes = Counter(_scope(node) for node in firsts if node not in attention)
    total, last = sum(macs.values()), _last_layers(model)
    groups = []
    for node in firsts:
        members = together.get(node, (node,))
        cost = sum(macs[str(member.name)] for member in members)
        name = _group_name(node, scopes, {_scope(first) for first in attention})
        names = tuple(str(member.name) for member in members)
        is_first, is_last = node is costly[0], node in last
        kind, reason, possible = _judge(node, node in attention, is_first, is_last, cost / max(total, 1))
        groups.append(Group(name, kind, names, cost, reason, possible))
    if not any(group.possible for group in groups):
        raise CalibrationError("the model has no convolution and no linear layer to quantize")
    return tuple(groups)


def activations(model: ir.Model, groups: Iterable[Group]) -> tuple[str, ...]:
    """Names of the tensors that need a threshold when ``groups`` are quantized, each once, in the graph's order.

    Behind the layers' inputs come the outputs of convolutions, which `cpu.lower_for_cpu` needs.
    """
    wanted = {name for group in groups for name in group.nodes}
    names = []
    for node in model.graph:
        if node.name in wanted:
            names += [str(value.name) for value in node.inputs[:2] if value is not None and weight_of(value) is None]
    convolutions = (node for node in model.graph if node.op_type == "Conv" and node.name in wanted)
    names += [str(with_relu(node).outputs[0].name) for node in convolutions]
    return tuple(dict.fromkeys(names))


def with_relu(node: ir.Node) -> ir.Node:
    """The node whose output a quantized convolution writes: the Relu that alone reads ``node``, else ``node``."""
    uses = node.outputs[0].consumers()
    return uses[0] if len(uses) == 1 and uses[0].op_type == "Relu" and not node.outputs[0].is_graph_output() else node


def _last_layers(model: ir.Model) -> set[ir.Node]:
    """The layers with weights behind which the logits need no other one; foreign networks call them as they like."""
    found, seen = set[ir.Node](), set[ir.Node]()
    ahead = [value.producer() for value in model.graph.outputs]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in _WEIGHTED and weight_of(node.inputs[1]) is not None:
            found.add(node)
        else:
            ahead += [value.producer() for value in node.inputs if value is not None]
    return found


def _judge(
    node: ir.Node, is_attention: bool, is_first: bool, is_last: bool, share: float
) -> tuple[str, str | None, bool]:
    """Kind of a group, why it stays float by default, whether it could be INT8 at all."""
    scope = _scope(node)
    if node.op_type == "ConvTranspose":
        return "transposed convolution", "engines compute transposed convolutions in float", False
    if is_attention:
        return "attention", None, True
    if weight_of(node.inputs[1]) is None:
        return "product", "a product of two computed tensors outside of attention", False
    kind = "convolution" if node.op_type == "Conv" else "linear"
    if is_last or any(scope == layer or scope.startswith(f"{layer}.") for layer in FLOAT_LAYERS):
        return kind, "one of the last layers", True
    if is_first and node.op_type == "Conv" and with_relu(node) is node:
        # A patch embedding. The CPU variant has a convolution's output in INT8 too: this one doubled its whole loss.
        return kind, "the first layer: all others add to its output", True
    if share < SMALLEST_SHARE:
        return kind, f"it is {100 * share:.2g} % of the multiply-adds: nothing to gain", True
    return kind, None, True


def _scope(node: ir.Node) -> str:
    return str(node.name).rpartition("/")[0]


def _group_name(node: ir.Node, scopes: Mapping[str, int], attentions: set[str]) -> str:
    scope = _scope(node)
    if weight_of(node.inputs[1]) is None and scope in attentions:
        return f"{scope}/scores"
    if scope in attentions:
        return f"{scope}/qkv" if scopes[scope] == 1 else str(node.name)
    return scope if scope and scopes[scope] == 1 else str(node.name)


def _attention_products(model: ir.Model) -> dict[ir.Node, tuple[ir.Node, ir.Node]]:
    """Both products around each softmax, under each of the two."""
    found: dict[ir.Node, tuple[ir.Node, ir.Node]] = {}
    for node in model.graph:
        if node.op_type != "Softmax" or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        while before is not None and before.op_type in _BETWEEN and before.inputs[0] is not None:
            before = before.inputs[0].producer()
        after = [use for use in node.outputs[0].consumers() if use.op_type == "MatMul"]
        if before is not None and before.op_type == "MatMul" and len(after) == 1:
            pair = (before, after[0])
            if all(weight_of(value) is None for product in pair for value in product.inputs):
                found |= dict.fromkeys(pair, pair)
    return found


def _projections(
    nodes: Sequence[ir.Node], attention: Mapping[ir.Node, tuple[ir.Node, ...]]
) -> dict[ir.Node, tuple[ir.Node, ...]]:
    """Linear layers in an attention's scope that read one tensor (query, key, value), under each of them."""
    scopes = {_scope(node) for node in attention}
    readers: dict[tuple[str, ir.Value | None], list[ir.Node]] = {}
    for node in nodes:
        if _scope(node) in scopes and node not in attention:
            readers.setdefault((_scope(node), node.inputs[0]), []).append(node)
    return {node: tuple(members) for members in readers.values() for node in members}


def _multiply_adds(model: ir.Model, nodes: Sequence[ir.Node], size: tuple[int, int]) -> dict[str, int]:
    values = [value for node in nodes for value in (*node.inputs[:2], node.outputs[0]) if value is not None]
    names = list(dict.fromkeys(str(value.name) for value in values if not value.is_initializer()))
    probe = Probe(model, (), shapes=names)
    found = probe.run(np.zeros((1, probe.channels, *size), np.float32))
    shapes = {name: tuple(shape.tolist()) for name, shape in zip(names, found, strict=True)}

    def shape(value: ir.Value | None) -> tuple[int, ...]:
        assert value is not None and value.name is not None  # required by ONNX
        weight = value.const_value if value.is_initializer() else None
        return tuple(weight.shape.numpy()) if weight is not None else shapes[value.name]

    macs = {}
    for node in nodes:
        given, weight, made = shape(node.inputs[0]), shape(node.inputs[1]), shape(node.outputs[0])
        if node.op_type == "Conv":
            cost = math.prod(made) * math.prod(weight[1:])
        elif node.op_type == "ConvTranspose":
            cost = math.prod(given) * math.prod(weight[1:])
        else:
            cost = math.prod(made) * given[0 if node.attributes.get_int("transA", 0) else -1]
        macs[str(node.name)] = cost
    return macs

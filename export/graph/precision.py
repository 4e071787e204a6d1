"""Type a graph FP16 or BF16, with FP32 islands where the narrow type is known, or seen, to fail.

TensorRT 11 has no precision flags: an engine computes in the types that the graph has. A cast of everything to FP16
collapses Vision Transformers (NVIDIA/TensorRT#4723), so each node gets its type for a reason:

1. `POLICY` says what each kind of node computes in.
2. A tensor that comes near the end of FP16's range on calibration images, and a weight that FP16 cannot hold, keep
   the nodes around them in FP32: an island.
3. Nodes that only move values take the type that needs the fewest casts (`denseport.export.graph.casts`).

Inputs and outputs of the model keep their types. Integers and shapes are not touched. ONNX Runtime's CPU back end runs
the result, but computes most of it in FP32: `denseport.export.graph.rounding` has the form that shows FP16's errors
there.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from denseport.export.errors import ExportError
from denseport.export.graph.casts import Caster, fewest_casts
from denseport.export.graph.edit import of_sizes
from denseport.export.graph.model import DEPTH
from denseport.export.graph.probe import Ranges
from denseport.runtime.errors import InputError

__all__ = ["FORMATS", "POLICY", "Format", "Group", "Island", "PrecisionRecord", "Rule", "precision_table", "set_types"]

FLOAT = ir.DataType.FLOAT
HEADROOM = 2.0  # other images may reach further than those of the calibration


@dataclass(frozen=True)
class Format:
    """A narrow floating-point type."""

    name: str
    dtype: ir.DataType
    largest: float  # finite number
    smallest: float  # number with all its digits; below it they are lost one by one
    rounding: float  # relative error of a single number, at most


FORMATS = {
    "fp16": Format("fp16", ir.DataType.FLOAT16, 65504.0, 2.0**-14, 2.0**-11),
    "bf16": Format("bf16", ir.DataType.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-8),
}

WIDE, NARROW, EITHER = "fp32", "narrow", "either"


@dataclass(frozen=True)
class Rule:
    """What some kinds of nodes compute in."""

    kinds: tuple[str, ...]  # ONNX operators, or a kind that `_kinds` makes of them
    type: str  # WIDE, NARROW or EITHER
    why: str


RESIDUAL, CONSTANT_RESIZE, MOVE = "Add (residual stream)", "Resize (of a constant)", "(moves)"
OF_SIZES, OF_DEPTH = "(of sizes)", "(of the depth)"
ENDS = ("Add", "Clip", "Div", "Max", "Mul", "Reciprocal", "Sigmoid")  # that make a depth of the last layer's numbers
NORMS = ("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization")
MOVES = (
    "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "ArgMax", "Cast", "Gather", "MaxPool", "Relu", "Slice", "TopK",
)  # fmt: skip

POLICY = (
    Rule(("MatMul", "Gemm", "Conv", "ConvTranspose"), NARROW, "products for tensor cores, which sum them in FP32"),
    Rule(("Add", "Sub", "Mul"), NARROW, "bias, scale or sum of features, fused into the product beside it"),
    Rule(("Gelu",), NARROW, "bounded by its input; fused into the product before it"),
    Rule(("Resize",), NARROW, "a mean of neighbours, within the range of its input"),
    Rule(NORMS, WIDE, "squares a ViT's outliers: FP16 overflows 256 away from the mean (TensorRT#4723)"),
    Rule(("Softmax",), WIDE, "a sum over all tokens; TensorRT-RTX fuses attention with it as without"),
    Rule((RESIDUAL,), WIDE, "sums over all layers, where a ViT's outliers live; the norms on it are FP32 anyway"),
    Rule((CONSTANT_RESIZE,), WIDE, "position embedding: part of the FP32 residual stream, tiny"),
    Rule(("ReduceL2", "Clip"), WIDE, "a vector's length: squares, which overflow FP16 above 256; one number a vector"),
    Rule(("Div",), WIDE, "by an image's size, for pooling, or by a vector's length"),
    Rule((OF_SIZES,), WIDE, "computed from the input's size and constants alone: places, which FP16 cannot tell apart"),
    Rule((OF_DEPTH,), WIDE, "turns one number a pixel into a depth: its rounding would be the depth's"),
    Rule(("QuantizeLinear", "DequantizeLinear"), EITHER, "the type of the float side, which the scale has too"),
    Rule(MOVES, EITHER, "moves or selects values, in the type that needs fewer casts"),
)
OTHER = Rule((), WIDE, "no rule for this operator")


@dataclass(frozen=True)
class Island:
    """A node that the policy would have made narrow, and that stays FP32."""

    node: str
    why: str


@dataclass(frozen=True)
class Group:
    """Nodes of the same layer kind, type and reason: a row of ``--explain-precision``."""

    layers: str  # layers' names, with * for their numbers
    operator: str  # or a kind of `POLICY`
    type: str  # "fp16", "bf16" or "fp32"
    count: int
    why: str


@dataclass(frozen=True)
class PrecisionRecord:
    """What a typed graph computes in, and why."""

    precision: str  # "fp16" or "bf16"
    nodes: dict[str, int]  # floating-point nodes by type, casts not counted
    casts: int  # between FP32 and the narrow type
    observed_images: int  # 0: no activation was checked for overflow, only the weights
    islands: tuple[Island, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class _Choice:
    """What one node computes in."""

    kind: str
    wide: bool
    why: str
    island: bool = False


def set_types(model: ir.Model, precision: str, ranges: Ranges | None = None) -> PrecisionRecord:
    """Give every floating-point node of an FP32 model its type.

    Args:
        precision: "fp16" or "bf16".
        ranges: of its tensors; without them only the weights are checked for overflow.

    Raises:
        InputError: unknown precision.
        ExportError: a node holds a graph of its own, or a tensor is narrow already or of unknown type.
    """
    if precision not in FORMATS:
        raise InputError(f"unknown precision {precision!r}", f"Choose one of {', '.join(FORMATS)}.")
    narrow, ranges = FORMATS[precision], ranges or Ranges()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    _require_types(model)
    slots = {node: _slots(node, model.opset_imports, narrow) for node in graph if _is_float(node)}
    choices = _choose(graph, slots, narrow, ranges)
    casts = _apply(graph, slots, choices, narrow)
    return _record(choices, narrow, casts, ranges)


def precision_table(record: PrecisionRecord) -> str:
    """The record as a table for people: node group, type, count, why."""
    rows = [("layers", "operator", "type", "nodes", "why")]
    rows += [(group.layers, group.operator, group.type, str(group.count), group.why) for group in record.groups]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) for row in rows]
    counts = ", ".join(f"{count} {name}" for name, count in record.nodes.items())
    lines.append(f"floating-point nodes: {counts}; casts between them: {record.casts}")
    lines += [f"island: {island.node}: {island.why}" for island in record.islands]
    if not record.observed_images:
        lines.append("activations were not observed: only weights were checked for overflow (give calibration images)")
    return "\n".join(lines)


def _require_types(model: ir.Model) -> None:
    """Every tensor's type is known, none is narrow, and there is no graph within the graph."""
    for node in model.graph:
        kinds = {attribute.type for attribute in node.attributes.values()}
        if kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            raise ExportError(f"{node.name}: a {node.op_type}, whose inner graph cannot be typed")
    values = [value for node in model.graph for value in node.outputs if value.name]
    if any(value.dtype is None for value in values):
        ShapeInferencePass()(model)
    for value in values:
        if value.dtype is None:
            raise ExportError(f"{value.name}: neither the model nor the inference of onnx says which type it has")
        if value.dtype in [each.dtype for each in FORMATS.values()]:
            raise ExportError(f"{value.name} is {value.dtype.name} already", "Start from the FP32 model.onnx.")


def _is_fp32(value: ir.Value | None) -> TypeGuard[ir.Value]:
    return value is not None and value.dtype == FLOAT


def _is_float(node: ir.Node) -> bool:
    """Whether a node reads or writes FP32 numbers, and not only the shape of their tensor."""
    return node.op_type not in ("Shape", "Size") and any(map(_is_fp32, (*node.inputs, *node.outputs)))


@dataclass(frozen=True)
class _Slots:
    """Positions of the inputs and outputs that take a node's type; any other (a Resize's scales) is FP32 for ever."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def _slots(node: ir.Node, opsets: Mapping[str, int], narrow: Format) -> _Slots:
    """From the operator's own type constraints; no position where it has no narrow form."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return _Slots(frozenset(), frozenset())
    wanted = f"tensor({narrow.dtype.name.lower()})"
    free = {each.type_param_str for each in schema.type_constraints if wanted in each.allowed_type_strs}

    def positions(values: Sequence[ir.Value | None], formal: Sequence[Any]) -> frozenset[int]:
        # The last formal parameter may stand for any number of values.
        kinds = [formal[min(i, len(formal) - 1)].type_str for i in range(len(values))]
        return frozenset(i for i, value in enumerate(values) if _is_fp32(value) and kinds[i] in free)

    return _Slots(positions(node.inputs, schema.inputs), positions(node.outputs, schema.outputs))


def _kinds(graph: ir.Graph) -> dict[ir.Node, str]:
    """The kind of each node in the words of `POLICY`."""
    kinds, stream, sizes, ends = {}, set[ir.Value | None](), of_sizes(graph), _ends(graph)
    for node in graph:
        kinds[node] = node.op_type
        carries = any(value in stream for value in node.inputs)
        constant = any(value is not None and value.is_initializer() for value in node.inputs)
        if node.op_type == "Add" and (_feeds_norm(node) or (carries and not constant)):
            kinds[node] = RESIDUAL
        elif node.op_type == "Resize" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            kinds[node] = CONSTANT_RESIZE
        elif node in ends:
            kinds[node] = OF_DEPTH
        elif node in sizes and node.op_type not in MOVES:
            kinds[node] = OF_SIZES
        if kinds[node] == RESIDUAL or (carries and node.op_type in MOVES):
            stream.update(node.outputs)
    return kinds


def _ends(graph: ir.Graph) -> set[ir.Node]:
    """What a depth network does, number by number, to what its last layer gives."""
    ends, value = set[ir.Node](), graph.outputs[0]
    while value.name == DEPTH or ends:
        node = value.producer()
        if node is None or node.op_type not in ENDS:
            break
        inputs = [each for each in node.inputs if each is not None and not each.is_initializer()]
        if len(inputs) != 1:
            break
        ends.add(node)
        (value,) = inputs
    return ends


def _feeds_norm(node: ir.Node) -> bool:
    """Whether a norm reads the node's output, be it after moves."""
    consumers = [use.node for value in node.outputs for use in value.uses()]
    return any(user.op_type in NORMS or (user.op_type in MOVES and _feeds_norm(user)) for user in consumers)


def _choose(graph: ir.Graph, slots: dict[ir.Node, _Slots], narrow: Format, ranges: Ranges) -> dict[ir.Node, _Choice]:
    """The type of every floating-point node."""
    rules = {kind: rule for rule in POLICY for kind in rule.kinds}
    choices: dict[ir.Node, _Choice] = {}
    free: dict[ir.Node, Rule] = {}
    kinds = _kinds(graph)
    for node, own in slots.items():
        rule = rules.get(kinds[node], OTHER)
        if rule.type != WIDE and not (own.inputs or own.outputs):
            choices[node] = _Choice(kinds[node], True, f"{node.op_type} has no {narrow.name} form in this opset")
        elif rule.type != WIDE and (why := _misfit(node, own, narrow, ranges)):
            choices[node] = _Choice(kinds[node], True, why, island=rule.type == NARROW)
        elif rule.type == EITHER:
            free[node] = rule
        else:
            choices[node] = _Choice(kinds[node], rule.type == WIDE, rule.why)
    wide = fewest_casts(_tensors(graph, slots), {None: True} | {node: each.wide for node, each in choices.items()})
    moved = {node: MOVE if node.op_type in MOVES else kinds[node] for node in free}
    return choices | {node: _Choice(moved[node], node in wide, rule.why) for node, rule in free.items()}


def _misfit(node: ir.Node, own: _Slots, narrow: Format, ranges: Ranges) -> str | None:
    """Why a node's tensors do not fit the narrow type, if they do not."""
    values = [*(node.inputs[i] for i in sorted(own.inputs)), *(node.outputs[i] for i in sorted(own.outputs))]
    # A Cast between DequantizeLinear and its layer would keep engines from fusing them: both are narrow or none.
    sources = [value.producer() for value in values[: len(own.inputs)] if value is not None]
    values += [source.inputs[1] for source in sources if source is not None and source.op_type == "DequantizeLinear"]
    for value in values:
        if value is None:
            continue
        # What is added may vanish beside what it is added to; what is multiplied, or handed on, may not.
        added = node.op_type in ("Add", "Sub") and value in node.inputs
        added |= node.op_type in ("Conv", "ConvTranspose", "Gemm") and value in node.inputs[2:]
        if value.const_value is not None:
            change = _change(value.const_value.numpy(), narrow)
            if not change <= (sys.float_info.max if added else 4 * narrow.rounding):
                return f"{narrow.name} changes the weight {value.name} by {change:.1%}"
            continue
        largest = ranges.largest.get(str(value.name), 0.0)
        if not largest <= narrow.largest / HEADROOM:
            return (
                f"{value.name} reaches {largest:.3g} on calibration images; {narrow.name} ends at {narrow.largest:.3g}"
            )
        if 0 < largest < narrow.smallest and not added:
            return f"{value.name} reaches only {largest:.3g} on calibration images, where {narrow.name} loses digits"
    return None


def _change(weight: NDArray[np.float32], narrow: Format) -> float:
    """Relative change of a weight, in the Euclidean norm, when it is cast; infinite where it overflows."""
    scale = float(np.abs(weight).max(initial=0))
    if scale == 0:
        return 0.0
    with np.errstate(over="ignore"):
        change = weight.astype(narrow.dtype.numpy()).astype(np.float32) - weight
        return float(np.linalg.norm(change / scale) / np.linalg.norm(weight / scale))


def _tensors(graph: ir.Graph, slots: dict[ir.Node, _Slots]) -> Iterator[tuple[ir.Node | None, list[ir.Node | None]]]:
    """Producer and consumers of every tensor that a Cast could be put on; None is who always has FP32."""
    for value in (*graph.inputs, *(value for node in slots for value in node.outputs)):
        if not _is_fp32(value):
            continue
        producer = value.producer()
        uses = [use for use in value.uses() if use.node in slots]
        consumers = [use.node if use.idx in slots[use.node].inputs else None for use in uses]
        if value.is_graph_output():
            consumers.append(None)
        yield producer if producer and value.index() in slots[producer].outputs else None, consumers


def _apply(graph: ir.Graph, slots: dict[ir.Node, _Slots], choices: dict[ir.Node, _Choice], narrow: Format) -> int:
    """Set the types, cast constants, insert casts; their number."""
    caster = Caster(graph, narrow.dtype, narrow.name)
    for node, own in slots.items():  # in the graph's order, so that a producer has its type before its consumers
        wide = choices[node].wide
        for i in own.outputs if not wide else ():
            node.outputs[i].dtype = narrow.dtype
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(narrow.dtype))
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, narrow.dtype):
                node.replace_input_with(i, caster.cast(value, FLOAT if wide or i not in own.inputs else narrow.dtype))
    caster.finish()
    return caster.casts


def _record(choices: dict[ir.Node, _Choice], narrow: Format, casts: int, ranges: Ranges) -> PrecisionRecord:
    groups: Counter[tuple[str, str, str, str]] = Counter()
    for node, choice in choices.items():
        layers = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", str(node.name).rpartition("/")[0])
        if choice.kind == MOVE:
            layers = layers.partition(".")[0]  # one row is enough
        groups[layers, choice.kind, "fp32" if choice.wide else narrow.name, choice.why] += 1
    types = Counter("fp32" if choice.wide else narrow.name for choice in choices.values())
    return PrecisionRecord(
        precision=narrow.name,
        nodes=dict(types),
        casts=casts,
        observed_images=ranges.images,
        islands=tuple(Island(str(node.name), choice.why) for node, choice in choices.items() if choice.island),
        groups=tuple(Group(layers, kind, name, n, why) for (layers, kind, name, why), n in groups.items()),
    )

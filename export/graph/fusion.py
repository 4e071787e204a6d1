"""Fuse what the project's TensorRT plugin computes in one kernel: the last pass over a graph.

    Resize (x2, bilinear) + Add             UpsampleAdd      DPT's fusion blocks; at one size UPerNet's top-down path
                                                             and SegFormer's second level
    Resize (x2, x4, x16) + ArgMax + Cast    UpsampleArgmax   the end of a graph that gives masks, at one size
    Resize (to the input) + ArgMax + Cast   ResizeArgmax     the same at any size

Each becomes one node that calls a function kept in the model itself, whose body are the nodes it replaced. ONNX Runtime
runs the body, so results stay as they are to the bit. TensorRT's parser looks for a plugin of the node's name first,
with the attributes that `denseport.export.plugin.tensorrt_plugin` documents; TensorRT-RTX, which has no plugins, runs
the body.

Only neighbours are fused. A Cast or a QuantizeLinear between a Resize and its Add rounds; moving it would change
results, so such a pair stays and the record says why. The Cast from FP16 to FP32 in front of the last Resize is the one
that moves: the kernel reads FP16 and computes in FP32, and so does the body.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from denseport.export.errors import ExportError
from denseport.export.graph.edit import new_constant, new_node
from denseport.export.plugin.launch import SCALES

__all__ = ["DOMAIN", "OPERATORS", "FusionRecord", "fuse", "fused_nodes"]

DOMAIN = "denseport"  # of the functions, and the plugin's namespace
CALL: dict[str, int | str] = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
OPERATORS = ("UpsampleAdd", "UpsampleArgmax", "ResizeArgmax")
GRIDS = ("half_pixel", "pytorch_half_pixel", "align_corners")  # the first two differ for an output of one pixel only
EXTRAS = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}  # defaults of a Resize
ROUNDINGS = ("Cast", "QuantizeLinear", "DequantizeLinear")
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
Sizes = tuple[int | None, ...]  # None: any
Types = dict[str | None, tuple[ir.DataType | None, Sizes | None]]  # by the tensor's name; None: unknown

RESIZE = 'Resize <mode = "linear", coordinate_transformation_mode = "{grid}">'
# A function has one body for FP32 and FP16. The first Cast of the two argmaxes does nothing to FP32.
BODIES = {
    "UpsampleAdd": f"""
UpsampleAdd <align_corners, plugin_namespace, plugin_version, aot> (x, residual) => (sum) {{{{
  scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
  upsampled = {RESIZE} (x, , scales)
  sum = Add (upsampled, residual)
}}}}""",
    "UpsampleArgmax": f"""
UpsampleArgmax <scale, plugin_namespace, plugin_version, aot> (logits) => (mask) {{{{
  wide = Cast <to = 1> (logits)
  scales = Constant <value_floats = [1.0, 1.0, {{scale}}.0, {{scale}}.0]> ()
  upsampled = {RESIZE} (wide, , scales)
  winner = ArgMax <axis = 1, keepdims = 0> (upsampled)
  mask = Cast <to = 6> (winner)
}}}}""",
    # Sizes reach a plugin as shapes alone: the mask's are those of `rows` and `columns`, which equal the image's here.
    "ResizeArgmax": f"""
ResizeArgmax <plugin_namespace, plugin_version, aot> (logits, image, rows, columns) => (mask) {{{{
  wide = Cast <to = 1> (logits)
  kept = Shape <start = 0, end = 2> (logits)
  height = Shape (rows)
  width = Shape (columns)
  sizes = Concat <axis = 0> (kept, height, width)
  resized = {RESIZE} (wide, , , sizes)
  winner = ArgMax <axis = 1, keepdims = 0> (resized)
  mask = Cast <to = 6> (winner)
}}}}""",
}


@dataclass(frozen=True)
class FusionRecord:
    """What was fused, and what was not although it looks like it."""

    fused: dict[str, int]  # operator of `OPERATORS` to its number of nodes
    left: dict[str, str]  # name of a Resize to the reason why it stays


@dataclass(frozen=True)
class _Match:
    """Nodes that one call of a function replaces."""

    operator: str
    body: str
    nodes: tuple[ir.Node, ...]  # in the graph's order; the last one gives the result
    inputs: tuple[ir.Value, ...]
    attributes: dict[str, int]


def fused_nodes(model: ir.Model) -> dict[str, int]:
    """The fused nodes of a graph: operator to number."""
    return dict(sorted(Counter(node.op_type for node in model.graph if node.domain == DOMAIN).items()))


def fuse(model: ir.Model) -> FusionRecord:
    """Fuse a graph, FP32, typed or quantized; a second time changes nothing.

    Raises:
        ExportError: there is nothing to fuse, and nothing was fused before.
    """
    graph, left = model.graph, dict[str, str]()
    bodies = {function.name: "" for function in model.functions.values() if function.domain == DOMAIN}
    types = _types(model)
    for resize in [node for node in graph if node.op_type == "Resize" and node.domain == ""]:
        found = _match(resize, graph, types)
        if isinstance(found, _Match) and bodies.setdefault(found.operator, found.body) != found.body:
            # ONNX finds a function by its name, so there is one body of each in a model.
            found = f"the model's {found.operator} has another grid or scale"
        if isinstance(found, _Match):
            last, attributes = found.nodes[-1], {**found.attributes, **CALL}
            call = ir.node(found.operator, found.inputs, attributes, domain=DOMAIN, name=last.name)
            ir.convenience.replace_nodes_and_values(graph, last, found.nodes, [call], last.outputs, call.outputs)
        elif found is not None:
            left[str(resize.name)] = found
    for operator, body in bodies.items():
        if body:
            _add_function(model, operator, body)
    passes.RemoveUnusedNodesPass()(model)
    fused = fused_nodes(model)
    if not fused:
        reasons = "".join(f"\n  {node}: {reason}" for node, reason in left.items())
        raise ExportError(
            f"nothing to fuse: no bilinear x2 upsampling before an addition, no argmax of resized logits{reasons}",
            "Leave --plugin out, or build for one size (--profile fixed:WxH), at which more upsamplings are x2.",
        )
    return FusionRecord(fused, left)


def _types(model: ir.Model) -> Types:
    """What inference knows of each tensor; the model itself stays as it is."""
    clone = model.clone()
    passes.ShapeInferencePass()(clone)
    every = [*clone.graph.inputs, *clone.graph.initializers.values()]
    every += [value for node in clone.graph for value in node.outputs]
    return {value.name: (value.dtype, _sizes(value.shape)) for value in every}


def _sizes(shape: ir.Shape | None) -> Sizes | None:
    return None if shape is None else tuple(n if isinstance(n, int) else None for n in shape)


def _match(resize: ir.Node, graph: ir.Graph, types: Types) -> _Match | str | None:
    """The nodes that go with a Resize; why it stays; or None, if no kernel is for it."""
    grid, output = _grid(resize), resize.outputs[0]
    readers = [use.node for use in output.uses()]
    behind = {_behind(reader) for reader in readers}
    if grid is None or not behind & {"Add", "ArgMax"}:
        return None
    factor = _factor(resize, types)
    if "ArgMax" not in behind and factor != 2:
        return None
    if len(readers) > 1 or output.is_graph_output():
        return "its result is read more than once"
    (reader,) = readers
    if reader.op_type == "Add":
        return _upsample_add(resize, reader, grid, types)
    if reader.op_type == "ArgMax":
        return _argmax(resize, reader, grid, factor, graph, types)
    return f"a {reader.op_type} behind it rounds before anything is added"


def _behind(node: ir.Node) -> str:
    """A node's operator, or the first that is no rounding behind it."""
    while node.op_type in ROUNDINGS and (reader := next(iter(node.outputs[0].uses()), None)) is not None:
        node = reader.node
    return node.op_type


def _grid(resize: ir.Node) -> str | None:
    """How a bilinear Resize lays its grid, if it is one of `GRIDS` without extras."""
    given = {name: attribute.value for name, attribute in resize.attributes.items()}
    plain = given.get("mode") == "linear" and "axes" not in given
    plain = plain and all(given.get(name, default) == default for name, default in EXTRAS.items())
    grid = given.get("coordinate_transformation_mode", "half_pixel")
    return grid if plain and grid in GRIDS else None


def _factor(resize: ir.Node, types: Types) -> int | None:
    """The whole factor by which a Resize makes height and width larger at every size that can come."""
    scales, sizes = (_constant(resize, i) for i in (2, 3))
    source = resize.inputs[0]
    if scales is None and sizes is not None and source is not None:
        shape = types[source.name][1]
        if shape is None or None in shape:
            return None
        scales = sizes / np.array(shape, np.float64)
    if scales is None or scales.shape != (4,) or scales[0] != 1 or scales[1] != 1 or scales[2] != scales[3]:
        return None
    return int(scales[2]) if scales[2] == int(scales[2]) else None


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    array = constant.numpy() if constant is not None else None
    return array if array is not None and array.size else None


def _upsample_add(resize: ir.Node, add: ir.Node, grid: str, types: Types) -> _Match | str:
    upsampled = resize.outputs[0]
    x, (residual,) = resize.inputs[0], [value for value in add.inputs if value is not upsampled]
    if x is None or residual is None:
        return "an input is missing"
    dtype = types[x.name][0]
    if dtype not in (FLOAT, HALF) or types[residual.name][0] != dtype:
        return f"it computes in {dtype.name if dtype else 'an unknown type'}; the kernel has FP32 and FP16"
    if not _same_size(types[x.name][1], types[residual.name][1]):
        return f"{residual.name} is not known to have the size of what it is added to"
    body = BODIES["UpsampleAdd"].format(grid=grid)
    return _Match("UpsampleAdd", body, (resize, add), (x, residual), {"align_corners": int(grid == GRIDS[2])})


def _same_size(x: Sizes | None, residual: Sizes | None) -> bool:
    """Whether an Add of x, upsampled by 2, and a residual broadcasts nothing.

    Heights and widths that vary are taken as equal: an image of one row is no residual.
    """
    if x is None or residual is None or len(x) != 4 or len(residual) != 4 or x[1] is None:
        return False
    wanted = (x[0], x[1], x[2] and 2 * x[2], x[3] and 2 * x[3])
    pairs = zip(wanted, residual, strict=True)
    return residual[1] is not None and all(have in (want, None) or (want is None and have != 1) for want, have in pairs)


def _argmax(
    resize: ir.Node, argmax: ir.Node, grid: str, factor: int | None, graph: ir.Graph, types: Types
) -> _Match | str:
    attributes, readers = argmax.attributes, [use.node for use in argmax.outputs[0].uses()]
    axis, keeps = attributes.get_int("axis", 0), attributes.get_int("keepdims", 1)
    if axis not in (1, -3) or keeps or attributes.get_int("select_last_index", 0):
        return "the ArgMax behind it is not the first maximum over the classes, without their axis"
    if len(readers) != 1 or readers[0].op_type != "Cast" or readers[0].attributes.get_int("to") != ir.DataType.INT32:
        return "the classes behind it are not INT32"
    logits = resize.inputs[0]
    if grid != "half_pixel" or logits is None or types[logits.name][0] != FLOAT:
        return "the kernels resize with half-pixel centres, and in FP32"
    nodes = (resize, argmax, readers[0])
    producer = logits.producer()
    narrow = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    if narrow is not None and types[narrow.name][0] == HALF:
        logits = narrow  # the body casts; the Cast stays for other readers
    if factor in SCALES:
        body = BODIES["UpsampleArgmax"].format(grid=grid, scale=factor)
        return _Match("UpsampleArgmax", body, nodes, (logits,), {"scale": int(factor)})
    image = graph.inputs[0]
    if types[image.name][0] != FLOAT or not _has_size_of(resize, image, types):
        return "its size is neither the input's nor a multiple that the kernel has"
    rows, columns = (_side(graph, resize, image, axis) for axis in (2, 3))
    body = BODIES["ResizeArgmax"].format(grid=grid)
    return _Match("ResizeArgmax", body, nodes, (logits, image, rows, columns), {})


def _has_size_of(resize: ir.Node, image: ir.Value, types: Types) -> bool:
    """Whether a Resize's height and width are an image's (N, C, H, W): its shape is seen in the graph, or fixed."""
    sizes, shape = _constant(resize, 3), types[image.name][1]
    if sizes is not None:
        return shape is not None and tuple(sizes[2:].tolist()) == shape[2:]
    value = resize.inputs[3] if len(resize.inputs) > 3 else None
    concat = value.producer() if value is not None else None
    last = concat.inputs[-1] if concat is not None and concat.op_type == "Concat" else None
    source = last.producer() if last is not None else None
    return (
        source is not None
        and source.op_type == "Shape"
        and source.inputs[0] is image
        and source.attributes.get_int("start", 0) in (2, -2)
        and source.attributes.get_int("end", 4) == 4
    )


def _side(graph: ir.Graph, before: ir.Node, image: ir.Value, axis: int) -> ir.Value:
    """A vector as long as one side of the image (N, C, H, W); a row or a column of it."""
    others = [i for i in range(4) if i != axis]
    side = "rows" if axis == 2 else "columns"

    def constant(name: str, values: list[int]) -> ir.Value:
        return new_constant(graph, f"mask/{side}.{name}", np.array(values, np.int64))

    cut = [constant("starts", [0] * 3), constant("ends", [1] * 3), constant("axes", others)]
    line = new_node("Slice", [image, *cut], name=f"mask/{side}/Slice", dtype=FLOAT)
    length = constant("shape", [-1])
    flat = new_node("Reshape", [*line.outputs, length], name=f"mask/{side}/Reshape", dtype=FLOAT)
    graph.insert_before(before, [line, flat])
    return flat.outputs[0]


def _add_function(model: ir.Model, operator: str, body: str) -> None:
    opset = model.opset_imports[""]
    proto = onnx.parser.parse_function(f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">{body}')
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = 1

"""Append a resize to the input's size and an argmax, so that a graph gives class masks instead of logits.

For deployments that need only a class for each pixel: the mask is hundreds of times smaller than the logits at that
size. The mask has the size of the network's input, not of the image. The runtime resizes logits to the image itself and
does not use such graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from denseport.export.errors import ExportError
from denseport.export.graph.edit import new_node
from denseport.export.graph.model import LOGITS, MASK, output_of

__all__ = ["MaskRecord", "append_mask"]

FLOAT, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64


@dataclass(frozen=True)
class MaskRecord:
    """What was put behind the logits."""

    nodes: tuple[str, ...]  # names, in order; the last one gives the mask


def append_mask(model: ir.Model, *, align_corners: bool = False) -> MaskRecord:
    """Put a bilinear resize to the input's height and width, and an argmax, behind the logits.

    The output becomes ``mask`` (N, H, W), int32: the index of the highest logit's class, of equals the first, as
    mmsegmentation has it for an image of the input's size.

    Args:
        align_corners: of the resize, as the manifest says; else it has half-pixel centres.

    Raises:
        ExportError: the graph does not end in logits, or is of an opset before 15.
    """
    if (ends := output_of(model)) != LOGITS:
        raise ExportError(f"the graph ends in {ends}, not in {LOGITS}", "Start from a graph that ends in logits.")
    if model.opset_imports[""] < 15:  # Shape has no start and end before
        what = f"a mask needs opset 15 or newer; this graph is of {model.opset_imports['']}"
        raise ExportError(what, "Export the checkpoint again with --opset 15 or newer.")
    graph = model.graph
    image, logits = graph.inputs[0], graph.outputs[0]
    size = new_node("Shape", [image], {"start": 2}, name="mask/Shape", dtype=INT64)
    kept = new_node("Shape", [logits], {"end": 2}, name="mask/Shape_2", dtype=INT64)
    sizes = new_node("Concat", [*kept.outputs, *size.outputs], {"axis": 0}, name="mask/Concat", dtype=INT64)
    rule = "align_corners" if align_corners else "half_pixel"
    grid = {"mode": "linear", "coordinate_transformation_mode": rule}
    resized = new_node("Resize", [logits, None, None, *sizes.outputs], grid, name="mask/Resize", dtype=FLOAT)
    axis = {"axis": 1, "keepdims": 0}
    winner = new_node("ArgMax", resized.outputs, axis, name="mask/ArgMax", dtype=INT64)
    # int64, which ArgMax gives, is twice the size, and engines' plugins have none.
    mask = new_node("Cast", winner.outputs, {"to": INT32}, name="mask/Cast", dtype=INT32)
    nodes = [size, kept, sizes, resized, winner, mask]
    output = mask.outputs[0]
    output.name = MASK
    output.shape = ir.Shape([image.shape[i] for i in (0, 2, 3)]) if image.shape is not None else None
    graph.extend(nodes)
    graph.outputs[0] = output
    return MaskRecord(tuple(str(node.name) for node in nodes))

"""Let a graph end in class masks: its logits resized to the input's size, and the first of the highest wins.

For deployments that want a class for each pixel and nothing else: the mask is hundreds of times smaller than the
logits at that size. What the mask's size has to do with the image's stays the caller's business; the runtime resizes
logits itself, to the image, and never asks for such a graph.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from denseport.export.errors import ExportError

__all__ = ["LOGITS", "MASK", "append_mask", "output_of"]

LOGITS, MASK = "logits", "mask"


def output_of(model: ir.Model) -> str:
    """What a graph ends in: `LOGITS` or `MASK`.

    Raises:
        ExportError: in neither.
    """
    names = [str(value.name) for value in model.graph.outputs]
    if len(names) != 1 or names[0] not in (LOGITS, MASK):
        raise ExportError(f"the graph ends in {names}, neither in {LOGITS} nor in {MASK}", "Export the model again.")
    return names[0]


def append_mask(model: ir.Model) -> ir.Model:
    """Put a bilinear resize (half-pixel centres, to the input's height and width) and an argmax behind the logits.

    The output becomes ``mask`` (N, H, W), int32: the index of the highest logit's class, of equals the first, as
    mmsegmentation has it for an image of the input's size. Works on the model in place.

    Raises:
        ExportError: the graph does not end in logits.
    """
    if output_of(model) != LOGITS:
        raise ExportError(f"the graph ends in {MASK} already", "Start from the graph that ends in logits.")
    graph = model.graph
    image, logits = graph.inputs[0], graph.outputs[0]
    size = ir.node("Shape", [image], {"start": 2}, name="mask/Shape")
    kept = ir.node("Shape", [logits], {"end": 2}, name="mask/Shape_2")
    sizes = ir.node("Concat", [kept.outputs[0], size.outputs[0]], {"axis": 0}, name="mask/Concat")
    resized = ir.node(
        "Resize",
        [logits, None, None, sizes.outputs[0]],
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        name="mask/Resize",
    )
    winner = ir.node("ArgMax", [resized.outputs[0]], {"axis": 1, "keepdims": 0}, name="mask/ArgMax")
    # int64, which ArgMax gives, is twice the size, and engines' plugins have none.
    mask = ir.node("Cast", [winner.outputs[0]], {"to": ir.DataType.INT32}, name="mask/Cast")
    nodes = [size, kept, sizes, resized, winner, mask]
    for node, dtype in zip(nodes, (np.int64, np.int64, np.int64, np.float32, np.int64, np.int32), strict=True):
        node.outputs[0].name, node.outputs[0].dtype = node.name, ir.DataType.from_numpy(np.dtype(dtype))
    output = mask.outputs[0]
    output.name = MASK
    output.shape = ir.Shape([image.shape[i] for i in (0, 2, 3)]) if image.shape is not None else None
    graph.extend(nodes)
    graph.outputs[0] = output
    return model

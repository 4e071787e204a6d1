"""Split an attention's packed projection into one linear layer each for query, key and value. Exact.

TensorRT-RTX 1.7 splits a packed projection itself, after it has folded the weight's DequantizeLinear, and computes it
in float: a quarter of a ViT's INT8 weights become float. Where the graph has three layers, all stay INT8, and the
engine joins them again into one INT8 kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.export.graph.edit import new_constant, new_node, weight_of

__all__ = ["UnpackRecord", "unpack_projections"]

_NAMES = {3: ("q", "k", "v"), 2: ("k", "v")}  # by the number of parts; two where the query has another source


@dataclass(frozen=True)
class UnpackRecord:
    """What was split."""

    projections: tuple[str, ...]  # names of the MatMuls; the parts are called the same with .q, .k and .v appended


def unpack_projections(model: ir.Model) -> UnpackRecord:
    """Make MatMul (and Add of a bias) before a Split along the last axis one layer for each part."""
    names = [_unpack(model.graph, node) for node in list(model.graph) if node.op_type == "Split"]
    RemoveUnusedNodesPass()(model)
    return UnpackRecord(tuple(name for name in names if name is not None))


def _unpack(graph: ir.Graph, split: ir.Node) -> str | None:
    """Split the projection before a Split node; its name, None where there is none."""
    add = split.inputs[0].producer() if split.inputs[0] is not None else None
    bias = weight_of(add.inputs[1]) if add is not None and add.op_type == "Add" else None
    matmul = add.inputs[0].producer() if add is not None and bias is not None and add.inputs[0] is not None else add
    if matmul is None or matmul.op_type != "MatMul":
        return None
    weight = weight_of(matmul.inputs[1])
    chain = [split, matmul] if bias is None or add is None else [split, add, matmul]
    if weight is None or weight.ndim != 2 or any(len(node.outputs[0].uses()) != 1 for node in chain[1:]):
        return None
    if bias is not None and bias.shape != weight.shape[1:]:
        return None
    sizes = _sizes(split, weight.shape[1])
    if sizes is None:
        return None
    names = _NAMES.get(len(sizes)) or tuple(str(i) for i in range(len(sizes)))
    starts = accumulate(sizes, initial=0)
    for name, start, size, output in zip(names, starts, sizes, split.outputs, strict=False):
        part = slice(start, start + size)
        constant = new_constant(graph, f"{matmul.name}.{name}.weight", np.ascontiguousarray(weight[:, part]))
        nodes = [new_node("MatMul", [matmul.inputs[0], constant], name=f"{matmul.name}.{name}")]
        if bias is not None and add is not None:
            own = new_constant(graph, f"{matmul.name}.{name}.bias", np.ascontiguousarray(bias[part]))
            nodes.append(new_node("Add", [nodes[0].outputs[0], own], name=f"{add.name}.{name}"))
        graph.insert_before(split, nodes)
        output.replace_all_uses_with(nodes[-1].outputs[0])
    return str(matmul.name)


def _sizes(split: ir.Node, width: int) -> list[int] | None:
    """Of the parts along the last axis; None when it splits another axis, or by computed sizes."""
    axis = split.attributes.get_int("axis", 0)
    if axis not in (-1, 2):  # tokens are (batch, token, channel)
        return None
    if len(split.inputs) > 1 and split.inputs[1] is not None:
        given = weight_of(split.inputs[1])
        return None if given is None else [int(n) for n in given]
    count = len(split.outputs)
    return [width // count] * count if width % count == 0 else None

"""Make an exported graph readable: nodes and tensors carry the names of the model's layers.

torch's exporter numbers its tensors (``val_97``, ``linear_4``) and stores its own stack traces in every node. After
this pass a node is called ``backbone.layers.3.attn.attn/MatMul_2``, its output likewise, and a constant after the
node that it feeds. Errors of engines, tables of precisions and comparisons of tensors show these names. The arithmetic
stays, but products of constants are computed once.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from denseport.export.errors import ExportError

__all__ = ["DYNAMIC", "TidyRecord", "tidy"]

DYNAMIC = {0: "batch", 2: "height", 3: "width"}  # dimensions of the input that stay free
SCOPES = "pkg.torch.onnx.name_scopes"
MARKER = "_empty_nn_module_stack"  # the exporter's scope for nodes outside of every module
FOLD_LIMIT = 2**28  # bytes; the exporter's own limit leaves slices of weights to be cut at every run


@dataclass(frozen=True)
class TidyRecord:
    """What became of an exported graph."""

    folded: int  # nodes that were computed once, or that nothing needed
    named: int  # nodes that stayed


def tidy(model: ir.Model, *, any_size: bool = True) -> TidyRecord:
    """Fold constants, name nodes and tensors, drop the exporter's notes.

    Args:
        any_size: batch, height and width must be free, and get their names.

    Raises:
        ExportError: torch tied the batch, the height or the width to the example's.
    """
    before = model.graph.num_nodes()
    onnxscript.optimizer.fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    onnxscript.optimizer.remove_unused_nodes(model)
    _name_nodes(model.graph)
    _name_tensors(model.graph)
    if any_size:
        _name_sizes(model.graph)
    _drop_notes(model)
    model.producer_name = "denseport"
    after = model.graph.num_nodes()
    return TidyRecord(before - after, after)


def _scope(node: ir.Node) -> str:
    """The layer that a node belongs to; for one that the exporter made outside of all layers, its input's."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (SyntaxError, ValueError):
        scopes = []
    layers = [scope for scope in scopes[:-1] if not scope.startswith(MARKER)]
    if layers:
        return str(layers[-1])
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return str(producer.name).rpartition("/")[0] if producer is not None else "sizes"


def _name_nodes(graph: ir.Graph) -> None:
    used: Counter[str] = Counter()
    for node in graph:
        name = f"{_scope(node)}/{node.op_type}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"


def _name_tensors(graph: ir.Graph) -> None:
    """Outputs take their node's name; constants that the exporter made take the name of the node they feed.

    A layer's own weight has the layer's name, with dots.
    """
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for i, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = str(node.name) if i == 0 else f"{node.name}:{i}"
                value.shape = None  # an expression of torch's symbols; whoever loads the file infers it anew
        for i, constant in enumerate(node.inputs):
            if constant is not None and constant.is_initializer() and "." not in str(constant.name):
                constant.name = f"{node.name}.constant{i}"


def _name_sizes(graph: ir.Graph) -> None:
    """Name the free dimensions of input and output, once it is sure that they are free."""
    image, found = graph.inputs[0].shape, graph.outputs[0].shape
    fixed = [name for i, name in DYNAMIC.items() if image is None or isinstance(image[i], int)]
    if image is None or fixed:
        raise ExportError(f"the exported graph's input has a fixed {fixed[0]}")
    if found is None or isinstance(found[2], int) or isinstance(found[3], int):
        raise ExportError(f"the exported graph's {graph.outputs[0].name} have a fixed size")
    graph.inputs[0].shape = ir.Shape(["batch", image[1], "height", "width"])
    graph.outputs[0].shape = ir.Shape(["batch", found[1], "rows", "columns"])


def _drop_notes(model: ir.Model) -> None:
    model.metadata_props.clear()
    ClearMetadataAndDocStringPass()(model)
    outputs = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *outputs):
        value.metadata_props.clear()

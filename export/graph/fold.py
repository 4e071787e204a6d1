"""Give a graph one input size and compute everything that depends on nothing else.

At a fixed size the resized position embedding, the pooling matrices and all arithmetic on shapes are constants.
Engines fold some of it themselves, but not over a Resize, and their builders take longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
from numpy.typing import NDArray

from denseport.export.errors import ExportError
from denseport.export.graph.edit import new_constant
from denseport.export.graph.probe import open_session

__all__ = ["FoldRecord", "fold"]

SMALL = 4096  # bytes; up to here onnx's reference evaluator, slow but exact on integers, does the folding
ROUNDS = 10  # folding uncovers shapes and shapes uncover folding; two rounds are what the networks here take
# A quantized weight must stay one. ConstantOfShape is a large tensor in few bytes; what is small was folded before.
KEPT = {"QuantizeLinear", "DequantizeLinear", "ConstantOfShape"}


@dataclass(frozen=True)
class FoldRecord:
    """What a fixed size made constant."""

    shape: tuple[int, int, int, int]  # of the input
    folded: int  # nodes whose result became a constant, or that nothing needs now


def fold(model: ir.Model, shape: tuple[int, int, int, int]) -> FoldRecord:
    """Let a model take inputs of ``shape`` (N, 3, H, W) alone, and fold what is constant then.

    Raises:
        ExportError: the graph cannot have that input.
    """
    graph = model.graph
    declared = graph.inputs[0].shape
    if (
        declared is None
        or len(declared) != len(shape)
        or any(isinstance(have, int) and have != want for have, want in zip(declared, shape, strict=True))
    ):
        raise ExportError(f"the graph's input {graph.inputs[0].name} is {declared}; it cannot become {shape}")
    graph.inputs[0].shape = ir.Shape(shape)
    for output in graph.outputs:
        output.shape = None
    start = graph.num_nodes()
    for _ in range(ROUNDS):
        before = graph.num_nodes()
        passes.ShapeInferencePass()(model)
        onnxscript.optimizer.fold_constants(model, input_size_limit=SMALL, output_size_limit=SMALL)
        _fold_large(model)
        onnxscript.optimizer.remove_unused_nodes(model)
        if graph.num_nodes() == before:
            break
    passes.ShapeInferencePass()(model)
    return FoldRecord(shape, start - graph.num_nodes())


def _fold_large(model: ir.Model) -> None:
    """Replace constant sub-graphs by their values, which ONNX Runtime computes."""
    constant: set[ir.Value] = set(model.graph.initializers.values())
    nodes = []
    for node in model.graph:
        if _computable(node) and all(value is None or value in constant for value in node.inputs):
            nodes.append(node)
            constant.update(node.outputs)
    # Only what a node that stays reads must become an initializer.
    inner = set(nodes)
    wanted = [
        value
        for node in nodes
        for value in node.outputs
        if not value.is_graph_output() and any(user not in inner for user in value.consumers())
    ]
    if not wanted:
        return
    for value, array in zip(wanted, _evaluate(model, nodes, wanted), strict=True):
        value.replace_all_uses_with(new_constant(model.graph, f"{value.name}.constant", array))


def _computable(node: ir.Node) -> bool:
    """Whether a node's outputs are constants if its inputs are; one without inputs may be random."""
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type not in KEPT
        and bool(node.inputs or node.op_type == "Constant")
        and not any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())
    )


def _evaluate(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> list[NDArray[np.generic]]:
    """Values of ``wanted``, computed from constants alone by ``nodes``."""
    read = {
        value.name: value for node in nodes for value in node.inputs if value is not None and value.is_initializer()
    }
    constants = []
    for name, value in read.items():
        assert value.const_value is not None  # an initializer's
        constants.append(ir.to_proto(value.const_value))
        constants[-1].name = str(name)
    outputs = [onnx.ValueInfoProto(name=value.name) for value in wanted]
    graph = onnx.helper.make_graph([ir.to_proto(node) for node in nodes], "constants", [], outputs, constants)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    part = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    results: list[NDArray[np.generic]] = open_session(part, "the graph's constant part").run(
        [str(value.name) for value in wanted], {}
    )
    return results

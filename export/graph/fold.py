"""Give a graph one input size and compute everything that depends on nothing else.

At a fixed size the resized position embedding, the pooling matrices and all arithmetic on shapes are constants.
Engines fold some of it themselves, but not over a Resize, and their builders take longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer

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
    nodes = set()
    for node in model.graph:
        if _computable(node) and all(value is None or value in constant for value in node.inputs):
            nodes.add(node)
            constant.update(node.outputs)
    # Only what a node that stays reads must become an initializer.
    wanted = [
        value
        for node in model.graph
        for value in node.outputs
        if node in nodes and not value.is_graph_output() and any(user not in nodes for user in value.consumers())
    ]
    if not wanted:
        return
    part = ir.Model(ir.convenience.extract(model.graph, [], wanted), ir_version=model.ir_version)
    session = open_session(ir.to_proto(part), "the graph's constant part")
    for value, array in zip(wanted, session.run([str(value.name) for value in wanted], {}), strict=True):
        value.replace_all_uses_with(new_constant(model.graph, f"{value.name}.constant", array))


def _computable(node: ir.Node) -> bool:
    """Whether a node's outputs are constants if its inputs are; one without inputs may be random."""
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type not in KEPT
        and bool(node.inputs or node.op_type == "Constant")
        and not any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())
    )

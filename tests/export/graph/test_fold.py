"""Folding for one input size against the unfolded graph on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from denseport.export.errors import ExportError
from denseport.export.graph.fold import FoldRecord, fold
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle

SHAPE_ARITHMETIC = {"Shape", "Range", "ConstantOfShape", "Where", "Equal", "Cast", "Div", "ReduceProd", "Expand"}


@pytest.mark.parametrize(
    "name",
    [
        "tiny_dpt_project",
        "tiny_upernet_mln",
        pytest.param("tiny_dpt_l_project", marks=pytest.mark.slow),
        pytest.param("tiny_upernet_ln_mln", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 75, 52)])
def test_a_folded_graph_computes_the_same(
    exported: Callable[[str], Bundle], tmp_path: Path, name: str, shape: tuple[int, int, int, int]
) -> None:
    source = exported(name).verified("model.onnx")
    model = ir.load(source)
    nodes = model.graph.num_nodes()
    record = fold(model, shape)
    assert record == FoldRecord(shape, nodes - model.graph.num_nodes()) and record.folded > 0
    ir.save(model, tmp_path / "folded.onnx")
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    expected = OnnxRuntimeSession(source, threads=2).run(image)
    found = OnnxRuntimeSession(tmp_path / "folded.onnx", threads=2).run(image)
    assert found.shape == expected.shape == tuple(model.graph.outputs[0].shape or ())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_what_depends_on_the_size_is_gone(exported: Callable[[str], Bundle]) -> None:
    for name in ("tiny_dpt_project", "tiny_upernet_mln"):
        source = ir.load(exported(name).verified("model.onnx"))
        before = Counter(node.op_type for node in source.graph)
        fold(source, (1, 3, 80, 48))
        after = Counter(node.op_type for node in source.graph)
        assert before["Shape"] and not SHAPE_ARITHMETIC & after.keys()
        assert after["Resize"] == before["Resize"] - 1  # the position embedding's
        assert all(after[kind] == before[kind] for kind in ("Conv", "Softmax", "LayerNormalization", "Gelu"))
        for node in source.graph:
            assert any(value is not None and not value.is_initializer() for value in node.inputs), node.name


def test_quantized_weights_stay_quantized() -> None:
    x = ir.val("image", ir.DataType.FLOAT, ["n", 3, "h", "w"])
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((8, 3, 1, 1), np.int8), name="w"))
    scale = ir.Value(name="s", const_value=ir.tensor(np.float32(0.5), name="s"))
    dequantized = ir.node("DequantizeLinear", [weight, scale])
    conv = ir.node("Conv", [x, dequantized.outputs[0]])
    conv.outputs[0].name = "logits"
    graph = ir.Graph([x], conv.outputs, nodes=[dequantized, conv], initializers=[weight, scale], opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    assert fold(model, (1, 3, 8, 8)).folded == 0
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Conv"]


def test_a_shape_that_the_graph_cannot_have_is_refused(exported: Callable[[str], Bundle]) -> None:
    model = ir.load(exported("tiny_dpt_project").verified("model.onnx"))
    with pytest.raises(ExportError, match=r"cannot become \(1, 4, 64, 64\)"):
        fold(model, (1, 4, 64, 64))

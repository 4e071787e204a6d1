"""Tensors, shapes and magnitudes of a probe against numpy, on models in memory and with weights in another file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import tiny_model

from denseport.export.errors import ExportError
from denseport.export.graph import model as models
from denseport.export.graph.model import read_model
from denseport.export.graph.probe import Probe, in_groups
from denseport.runtime.errors import MachineError

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 6, 10)).astype(np.float32)


@pytest.mark.parametrize("as_written", [False, True])
def test_outputs_shapes_and_magnitudes_in_one_run(as_written: bool) -> None:
    model = tiny_model()
    stem, relu, logits, shape, largest, top = Probe(
        model,
        ["stem", "relu", "logits"],
        shapes=["tokens"],
        largest=["image", "stem"],
        as_written=as_written,
    ).run(IMAGE)
    weight = model.graph.initializers["stem_weight"].const_value.numpy()  # type: ignore[union-attr]
    bias = model.graph.initializers["stem_bias"].const_value.numpy()  # type: ignore[union-attr]
    padded = np.pad(IMAGE[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]
    np.testing.assert_allclose(stem[0], expected, atol=1e-5)
    np.testing.assert_array_equal(relu, np.maximum(stem, 0))
    assert logits.shape == (1, 4, 12, 20) and shape.tolist() == [1, 60, 8]
    assert largest == np.abs(IMAGE).max() and top == np.abs(stem).max()


def test_nodes_behind_the_last_output_are_not_run() -> None:
    model = tiny_model()
    next(node for node in model.graph if node.op_type == "Softmax").op_type = "NoSuchOperator"
    Probe(model, ["tokens"], as_written=True).run(IMAGE)
    with pytest.raises(ExportError, match=r"cannot load tiny\.onnx.*NoSuchOperator"):
        Probe(model, ["mixed"], as_written=True, name="tiny.onnx")


def test_weights_in_a_file_of_their_own_are_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Probe(tiny_model(), ["logits"]).run(IMAGE)[0]
    ir.save(tiny_model(), tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=100)
    model = ir.load(tmp_path / "model.onnx")
    monkeypatch.setattr(models, "PROTOBUF_LIMIT", 8000)  # the graph alone fits
    np.testing.assert_array_equal(Probe(model).run(IMAGE)[0], expected)
    with pytest.raises(ExportError, match="too large"):
        monkeypatch.setattr(models, "PROTOBUF_LIMIT", 800)
        Probe(read_model(tmp_path / "model.onnx"))


def test_groups_keep_the_order_and_the_limit() -> None:
    sizes = {"stem": 480, "relu": 480, "normed": 480, "packed": 1440, "out": 480, "logits": 960}  # numbers each
    names = list(sizes)
    for limit, expected in (
        (1, [[name] for name in names]),
        (4 * 960, [["stem", "relu"], ["normed"], ["packed"], ["out"], ["logits"]]),
        (4 * 1920, [["stem", "relu", "normed"], ["packed", "out"], ["logits"]]),
        (2**20, [names]),
    ):
        assert in_groups(tiny_model(), IMAGE, names, limit) == expected
    assert in_groups(tiny_model(), IMAGE, [], 1) == []


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(tiny_model())
    for wrong in (IMAGE[0], IMAGE.astype(np.float64), IMAGE[:, :1], IMAGE[:, :, :0]):
        with pytest.raises(ExportError, match="expected normalised images"):
            probe.run(wrong)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MachineError, match="not installed"):
        Probe(tiny_model())

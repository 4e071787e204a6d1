"""Parted projections compute the same, keep one group and one Q/DQ pair, and take nothing else apart."""

from __future__ import annotations

import numpy as np
import onnx
from graphs import tiny_model

from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.smoothing import linear_inputs
from denseport.export.graph.model import serialise
from denseport.export.graph.probe import Probe
from denseport.export.graph.unpack import UnpackRecord, unpack_projections

IMAGE = np.random.default_rng(4).standard_normal((1, 3, 6, 10)).astype(np.float32)


def test_exact() -> None:
    model = tiny_model()
    unpacked = model.clone()
    assert unpack_projections(unpacked) == UnpackRecord(("block.attn/MatMul",))
    onnx.checker.check_model(serialise(unpacked), full_check=True)
    kinds = [node.op_type for node in unpacked.graph]
    assert "Split" not in kinds and kinds.count("MatMul") == 6
    assert "qkv_weight" not in unpacked.graph.initializers and "qkv_weight" in model.graph.initializers
    (expected,), (found,) = Probe(model).run(IMAGE), Probe(unpacked).run(IMAGE)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    assert unpack_projections(unpacked) == UnpackRecord(())


def test_one_group_and_one_pair() -> None:
    packed, unpacked = tiny_model(), tiny_model()
    unpack_projections(unpacked)
    before, after = find_groups(packed, (6, 10)), find_groups(unpacked, (6, 10))
    assert [(g.name, g.macs) for g in before] == [(g.name, g.macs) for g in after]
    qkv = next(group for group in after if group.name == "block.attn/qkv")
    assert len(qkv.nodes) == 3
    assert activations(unpacked, [qkv]) == ("normed",)
    assert len(linear_inputs(unpacked)["normed"]) == 3
    quantize(unpacked, {"normed": 4.0}, after, [qkv.name])
    assert [node.op_type for node in unpacked.graph].count("QuantizeLinear") == 1


def test_a_projection_that_is_read_twice_stays() -> None:
    model = tiny_model()
    split = next(node for node in model.graph if node.op_type == "Split")
    gelu = next(node for node in model.graph if node.op_type == "Gelu")
    gelu.replace_input_with(0, split.inputs[0])
    assert unpack_projections(model) == UnpackRecord(())

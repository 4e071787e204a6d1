"""Groups, their costs and their defaults, on a graph made by hand and on a real network."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import tiny_model

from denseport.calibration.errors import CalibrationError
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.export.graph.model import read_model
from denseport.runtime.bundle.bundle import Bundle

SIZE = (6, 10)


def test_groups_of_a_small_graph() -> None:
    groups = {group.name: group for group in find_groups(tiny_model(), SIZE)}
    assert list(groups) == [
        "stem",
        "left",
        "right",
        "block.attn/qkv",
        "block.attn/scores",
        "block.out",
        "up",
        "decode_head.conv_seg",
    ]
    attention = groups["block.attn/scores"]
    assert attention.nodes == ("block.attn/MatMul_2", "block.attn/MatMul_3")
    pixels = 6 * 10
    assert {name: group.macs for name, group in groups.items()} == {
        "stem": pixels * 8 * 3 * 9,
        "left": pixels * 8 * 8,
        "right": pixels * 8 * 8,
        "block.attn/qkv": pixels * 8 * 24,
        "block.attn/scores": 2 * pixels * pixels * 8,
        "block.out": pixels * 8 * 8,
        "up": pixels * 8 * 8 * 4,
        "decode_head.conv_seg": 4 * pixels * 8 * 4,
    }
    floats = {name for name, group in groups.items() if group.float_reason is not None}
    assert floats == {"up", "decode_head.conv_seg"}
    assert not groups["up"].possible and groups["decode_head.conv_seg"].possible


def test_a_tensor_of_two_layers_is_observed_once() -> None:
    model = tiny_model()
    groups = find_groups(model, SIZE)
    chosen = [group for group in groups if group.name in ("left", "right", "block.attn/scores")]
    assert activations(model, chosen) == ("relu", "scaled", "kt", "weights", "v", "left", "right")
    stem = [group for group in groups if group.name == "stem"]
    assert activations(model, stem) == ("image", "relu")


def test_names_are_the_layers_of_the_network(sample: Bundle) -> None:
    groups = find_groups(read_model(sample.verified("model.onnx")), (160, 224))
    names = {group.name for group in groups}
    for layer in ("attn.attn/qkv", "attn.attn/scores", "attn.attn.out_proj", "ffn.layers.0.0", "ffn.layers.1"):
        assert f"backbone.layers.3.{layer}" in names
    assert len(names) == len(groups)
    floats = {group.name: group.float_reason for group in groups if group.float_reason and group.possible}
    assert floats["decode_head.project.bn"] == floats["decode_head.conv_seg"] == "one of the last layers"
    assert floats["backbone.patch_embed.projection"] == "the first layer: all others add to its output"
    tokens, dims = 10 * 14 + 1, 96
    macs = {group.name: group.macs for group in groups}
    assert macs["backbone.layers.0.attn.attn/qkv"] == tokens * dims * 3 * dims
    assert macs["backbone.layers.0.attn.attn/scores"] == 2 * tokens * tokens * dims


def test_a_quantized_model_is_refused() -> None:
    model = tiny_model()
    groups = find_groups(model, SIZE)
    quantize(model, {"image": 1.0}, groups, ["stem"])
    with pytest.raises(CalibrationError, match="quantized already"):
        find_groups(model, SIZE)


def test_products_of_the_inputs_size_are_no_layers() -> None:
    """DINOv2's position embedding is resized by two of them; in 8 bits no place would be its own."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    few (float[1, 4, H, W] image) => (float[1, 4, H, W] depth)
    <float[4, 4, 1, 1] w = WEIGHTS, float[1, 2] grid = {1, 2}, int64 zero = {0}, int64 one = {1}, int64[1] last = {1}>
    { [layer] y = Conv (image, w) [shape] s = Shape <start = 2, end = 3> (image) [rows] n = Squeeze (s)
      [range] r = Range (zero, n, one) [floats] f = Cast <to = 1> (r) [column] c = Unsqueeze (f, last)
      [places] p = MatMul (c, grid) [mean] m = ReduceMean <keepdims = 0> (p) [sum] z = Add (y, m)
      [last] depth = Conv (z, w) }"""
    model = ir.from_onnx_text(text.replace("WEIGHTS", "{" + ", ".join(map(str, range(16))) + "}"))
    assert [group.name for group in find_groups(model, (8, 8))] == ["layer", "last"]

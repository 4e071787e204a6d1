"""Where Q/DQ stands, what it holds, and that the graph computes what integers would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from graphs import tiny_model

from denseport.calibration.errors import CalibrationError
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import NO_BIAS, Quantization, quantize, weight_scales
from denseport.export.graph.edit import weight_of
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.probe import Probe
from denseport.runtime.backends.openvino import OpenVinoSession
from denseport.runtime.backends.tensorrt_library import load_library
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.system.cpus import has_vnni

SIZE = (6, 10)
RNG = np.random.default_rng(1)
IMAGE = RNG.standard_normal((1, 3, *SIZE)).astype(np.float32)


def quantized(model: ir.Model, names: set[str] | None = None) -> tuple[ir.Model, Quantization]:
    """A quantized copy; thresholds are the largest magnitudes on `IMAGE`."""
    groups = find_groups(model, SIZE)
    chosen = [g for g in groups if (g.name in names if names is not None else g.float_reason is None)]
    tensors = activations(model, chosen)
    found = Probe(model, tensors).run(IMAGE)
    thresholds = {name: float(np.abs(value).max()) for name, value in zip(tensors, found, strict=True)}
    result = model.clone()
    return result, quantize(result, thresholds, groups, [g.name for g in chosen])


def assert_symmetric_int8(model: ir.Model) -> None:
    checked = 0
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = weight_of(node.inputs[1]), weight_of(node.inputs[2])
            assert scale is not None and scale.dtype == np.float32 and (scale > 0).all()
            assert zero is not None and zero.dtype == np.int8 and not zero.any()
            checked += 1
    assert checked
    assert all(value.dtype != ir.DataType.UINT8 for value in model.graph.initializers.values())


def assert_placed(model: ir.Model, names: set[str]) -> None:
    """Exactly the named nodes read DequantizeLinear, on both inputs; every pair serves somebody."""
    for node in model.graph:
        sources = [value.producer() for value in node.inputs[:2] if value is not None]
        count = sum(source is not None and source.op_type == "DequantizeLinear" for source in sources)
        assert count == (2 if node.name in names else 0), node.name
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert node.outputs[0].uses()


def test_both_inputs_of_the_chosen_layers_and_nothing_else() -> None:
    model, report = quantized(tiny_model())
    onnx.checker.check_model(serialise(model), full_check=True)
    layers = {"stem/Conv", "left/Conv", "right/Conv", "block.attn/MatMul", "block.out/MatMul"}
    assert_placed(model, layers | {"block.attn/MatMul_2", "block.attn/MatMul_3"})
    assert_symmetric_int8(model)
    kinds = [node.op_type for node in model.graph]
    # Seven activations (relu's pair serves left and right), and a DequantizeLinear for each of five weights.
    assert kinds.count("QuantizeLinear") == 8 and kinds.count("DequantizeLinear") == 13
    assert [g.name for g, _ in report.floats] == ["up", "decode_head.conv_seg"]
    assert report.narrow_macs + sum(g.macs for g, _ in report.floats) == report.macs
    assert 0.5 < report.share < 1
    assert {name for name in model.graph.initializers if name.endswith("_weight")} == {"up_weight", "seg_weight"}


def test_it_computes_what_integers_would() -> None:
    """The stem convolution in integer arithmetic, by hand."""
    float_model = tiny_model()
    model, _ = quantized(float_model, {"stem"})
    (found,) = Probe(model, ["stem"]).run(IMAGE)

    weight = float_model.graph.initializers["stem_weight"].const_value.numpy()
    bias = float_model.graph.initializers["stem_bias"].const_value.numpy()
    scale = np.float32(np.abs(IMAGE).max() / 127)
    scales = np.abs(weight).reshape(8, -1).max(axis=1) / 127
    x = np.pad(np.clip(np.rint(IMAGE[0] / scale), -127, 127).astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    w = np.rint(weight / scales[:, None, None, None]).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    total = np.einsum("chwij,ocij->ohw", windows, w)
    expected = total * (scale * scales)[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_weight_scales_of_each_layout() -> None:
    weight = np.array([[1.0, -4.0], [2.0, 0.0]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, 0) * 127, [4, 2])
    np.testing.assert_allclose(weight_scales(weight, 1) * 127, [2, 4])
    assert weight_scales(np.zeros((2, 2), np.float32), 0).tolist() == [1, 1]


def test_fp8_holds_e4m3_numbers_with_their_own_scales() -> None:
    model = tiny_model()
    quantize(model, {"image": 4.48}, find_groups(model, SIZE), ["stem"], kind="fp8")
    onnx.checker.check_model(serialise(model), full_check=True)
    weight = model.graph.initializers["stem_weight.float8e4m3fn"]
    assert weight.dtype == ir.DataType.FLOAT8E4M3FN and weight.const_value is not None
    assert np.abs(weight.const_value.numpy().astype(np.float32)).reshape(8, -1).max(1).tolist() == [448] * 8
    scale = weight_of(model.graph.initializers["image.scale"])
    assert scale is not None and abs(float(scale) - 0.01) < 1e-8


def test_a_real_network(sample: Bundle) -> None:
    model, report = quantized(read_model(sample.verified("model.onnx")))
    onnx.checker.check_model(serialise(model))
    assert_symmetric_int8(model)
    assert_placed(model, {name for group in report.narrow for name in group.nodes})
    assert report.share > 0.5
    logits = Probe(model).run(IMAGE.repeat(8, 2).repeat(8, 3))[0]
    assert np.isfinite(logits).all()
    assert len(serialise(model)) < 0.4 * sample.verified("model.onnx").stat().st_size


def test_bad_input() -> None:
    model = tiny_model()
    groups = find_groups(model, SIZE)
    with pytest.raises(CalibrationError, match="no layer 'nothing'"):
        quantize(model, {}, groups, ["nothing"])
    with pytest.raises(CalibrationError, match="unknown 8-bit type 'int4'"):
        quantize(model, {}, groups, ["stem"], kind="int4")
    with pytest.raises(CalibrationError, match="image: no threshold"):
        quantize(model, {}, groups, ["stem"])
    with pytest.raises(CalibrationError, match="image: nan is not a threshold"):
        quantize(model, {"image": float("nan")}, groups, ["stem"])
    with pytest.raises(CalibrationError, match="transposed convolutions in float"):
        quantize(model, {}, groups, ["up"])


INT32_BIAS = """
< ir_version: 10, opset_import: ["" : 21] >
layer (float[1, 4, 4, 4] image) => (float[1, 4, 4, 4] logits)
< float scale = {0.1}, int8 zero = {0}, int8[4, 4, 1, 1] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2},
  int32[4] integers = {1, -2, 3, -4}, float[4] floats = {0.1, -0.2, 0.3, -0.4} >
{
  q = QuantizeLinear (image, scale, zero)
  x = DequantizeLinear (q, scale, zero)
  w = DequantizeLinear (weight, scale, zero)
  bias = BIAS
  logits = Conv (x, w, bias)
}
"""


@pytest.mark.parametrize(
    ("bias", "read"),
    [("Identity (floats)", True), ("DequantizeLinear (integers, scale)", False)],
    ids=["float", "int32"],
)
def test_an_int32_bias_is_what_tensorrt_refuses(bias: str, read: bool) -> None:
    """Why biases stay float, and why ONNX Runtime's CPU back end has a file of its own; ONNX itself takes both."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    proto = onnx.parser.parse_model(INT32_BIAS.replace("BIAS", bias))
    onnx.checker.check_model(proto, full_check=True)
    library = load_library("tensorrt_rtx")
    network = trt.Builder(library.logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(proto.SerializeToString()) is read
    reasons = " ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
    assert read or "input has type Int32 but must have type" in reasons


READ_TWICE = """
< ir_version: 10, opset_import: ["" : 20] >
residual (float[batch, 3, height, width] image) => (float[batch, 8, height, width] logits)
{
  skip = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, first, BIAS)
  relu = Relu (skip)
  branch = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu, second)
  logits = Add (skip, branch)
}
"""


def read_twice(bias: float | None) -> ir.Model:
    """A convolution, read by a sum and by a branch, whose biases are all the same; None: it has none."""
    proto = onnx.parser.parse_model(READ_TWICE.replace("BIAS", "" if bias is None else "bias"))
    rng = np.random.default_rng(3)
    arrays = {"first": rng.standard_normal((8, 3, 3, 3)), "second": rng.standard_normal((8, 8, 3, 3)) / 8}
    arrays |= {} if bias is None else {"bias": np.full(8, bias)}
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return ir.from_proto(proto)


@pytest.mark.parametrize("bias", [None, 0.0])
def test_a_convolution_read_twice_gets_a_bias_that_changes_nothing(bias: float | None) -> None:
    """OpenVINO computes such a convolution wrongly without one: each reader's scales are not that reader's alone."""
    model, _ = quantized(read_twice(bias), {"skip", "branch"})
    given = {str(node.name): node.inputs[2:] for node in model.graph if node.op_type == "Conv"}
    (value,) = given["skip"]
    array = weight_of(value)
    assert array is not None and (array == NO_BIAS).all() and array.shape == (8,) and not given["branch"]
    onnx.checker.check_model(serialise(model), full_check=True)
    expected = Probe(without_bias(model), as_written=True).run(IMAGE)[0]
    np.testing.assert_array_equal(Probe(model, as_written=True).run(IMAGE)[0], expected)


def test_a_bias_that_is_there_stays() -> None:
    model, _ = quantized(read_twice(0.5), {"skip", "branch"})
    given = {str(node.name): [value.name for value in node.inputs[2:] if value] for node in model.graph}
    assert given["skip"] == ["bias"]
    fp8 = read_twice(None)
    quantize(fp8, {"image": 1.0, "relu": 1.0}, find_groups(fp8, SIZE), ["skip"], kind="fp8")
    assert all(len(node.inputs) == 2 for node in fp8.graph if node.op_type == "Conv")


@pytest.mark.skipif(not has_vnni(), reason="this processor has no VNNI")
def test_openvino_computes_a_convolution_read_twice_as_qdq_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, _ = quantized(read_twice(None), {"skip", "branch"})
    expected = Probe(model, as_written=True).run(IMAGE)[0]
    errors = []
    for graph in (model, without_bias(model)):
        (tmp_path / "int8.onnx").write_bytes(serialise(graph))
        found = OpenVinoSession(tmp_path / "int8.onnx", quantized=True).run(IMAGE)
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert errors[0] < 1e-5
    assert errors[1] > 0.1, "OpenVINO was mended: NO_BIAS can go, once no older release is served"


def without_bias(model: ir.Model) -> ir.Model:
    copy = model.clone()
    for node in copy.graph:
        if node.op_type == "Conv":
            node.resize_inputs(2)
    return copy


def test_the_largest_weight_of_each_channel_becomes_127_and_a_channel_of_zeros_has_the_scale_1() -> None:
    weight = np.float32([[1, -254, 0], [-127, 2, 0]])
    assert weight_scales(weight, 1).tolist() == [1, 2, 1]
    assert weight_scales(weight, 0, 254).tolist() == [1, 0.5]

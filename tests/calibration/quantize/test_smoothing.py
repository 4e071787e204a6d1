"""Migration changes nothing before quantization, and makes INT8 better where channels differ in size."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import tiny_model
from onnx import numpy_helper
from onnx.parser import parse_model

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.collect import collect
from denseport.calibration.observe.observers import ChannelMaximum, RowSample
from denseport.calibration.quantize import smoothing
from denseport.calibration.quantize.smoothing import STRENGTHS, linear_inputs, smooth
from denseport.export.graph.edit import weight_of
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.probe import Probe
from denseport.runtime.bundle.bundle import Bundle

RNG = np.random.default_rng(2)
IMAGES = [RNG.standard_normal((1, 3, 80, 96)).astype(np.float32) for _ in range(3)]


def smoothed(model: ir.Model, tensors: Sequence[str] | None = None, **options: object):  # type: ignore[no-untyped-def]
    names = linear_inputs(model) if tensors is None else tensors
    maxima = {name: ChannelMaximum() for name in names}
    rows = {name: RowSample(per_image=40) for name in names}
    collect(model, IMAGES, {name: [maxima[name], rows[name]] for name in names})
    return copied(model, maxima, rows, **options)


def copied(model: ir.Model, *statistics: object, strengths: Sequence[float] = STRENGTHS):  # type: ignore[no-untyped-def]
    """A smoothed copy, and what was done at each tensor."""
    result = model.clone()
    with patch.object(smoothing, "STRENGTHS", strengths):
        return result, smooth(result, *statistics).tensors  # type: ignore[arg-type]


def with_outliers(model: ir.Model) -> ir.Model:
    """The same network, with one channel of the LayerNorm fifty times as large and its weights as much smaller."""
    gamma = model.graph.initializers["gamma"]
    weight = model.graph.initializers["qkv_weight"]
    factors = np.ones(8, np.float32)
    factors[2] = 50
    gamma.const_value = ir.tensor(gamma.const_value.numpy() * factors, name="gamma")
    weight.const_value = ir.tensor(weight.const_value.numpy() / factors[:, None], name="qkv_weight")
    return model


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_exact_before_quantization(sample: Bundle, strength: float) -> None:
    model = read_model(sample.verified("model.onnx"))
    result, report = smoothed(model, strengths=[strength])
    assert sum(row.by == "LayerNormalization" for row in report) == 8
    for by in ("LayerNormalization", "Mul"):
        assert any(row.strength == strength for row in report if row.by == by)
    for image in IMAGES:
        (expected,), (found,) = Probe(model).run(image), Probe(result).run(image)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_outliers_are_migrated() -> None:
    model = with_outliers(tiny_model())
    result, (row,) = smoothed(model, ["normed"])
    assert row.strength > 0 and row.by == "LayerNormalization"
    assert row.error < 0.5 * row.error_before
    (expected,), (found,) = Probe(model).run(IMAGES[0]), Probe(result).run(IMAGES[0])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert "gamma" in model.graph.initializers and "gamma" not in result.graph.initializers


def test_outliers_behind_anything_else_are_divided_by_a_node_of_its_own() -> None:
    """One GELU channel is fifty times as large: the linear layer's input is divided, what else reads it stays."""
    body = """g = Gelu (image)  p = MatMul (g, w)  q = MatMul (g, v)  s = Add (p, q)  logits = Add (s, g)"""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((8, 8)), "v": rng.standard_normal((8, 8))}
    model = small_graph(body, arrays)
    rows = np.abs(rng.standard_normal((200, 8))).astype(np.float32)
    rows[:, 2] *= 50
    maxima, sample = observed(rows.max(axis=0), rows)
    result, (row,) = copied(model, {"g": maxima["a"]}, {"g": sample["a"]})
    assert (row.tensor, row.by) == ("g", "Mul") and row.error < 0.5 * row.error_before
    (mul,) = (node for node in result.graph if node.op_type == "Mul")
    assert [use.op_type for use in mul.outputs[0].consumers()] == ["MatMul", "MatMul"]
    factors = 1 / weight_of(mul.inputs[1])
    assert factors.max() * factors.min() == pytest.approx(1, rel=1e-5) and factors.argmax() == 2
    for found, name in zip(inputs_of(result)["MatMul"], ("w", "v"), strict=True):
        np.testing.assert_allclose(found, arrays[name] * factors[:, None], rtol=1e-5)
    proto = ir.to_proto(result)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    image = rng.standard_normal((2, 5, 8)).astype(np.float32)
    options = {"providers": ["CPUExecutionProvider"]}
    runs = [onnxruntime.InferenceSession(serialise(each), **options) for each in (model, result)]
    expected, found = (run.run(None, {"image": image})[0] for run in runs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_node_of_its_own_has_to_be_worth_it() -> None:
    """Channels of one size: 3 % less error, say, pay for no further node."""
    rng = np.random.default_rng(0)
    model = small_graph("g = Gelu (image)  logits = MatMul (g, w)", {"w": rng.standard_normal((8, 8))})
    rows = np.abs(rng.standard_normal((200, 8))).astype(np.float32)
    maxima, sample = observed(rows.max(axis=0), rows)
    result, (row,) = copied(model, {"g": maxima["a"]}, {"g": sample["a"]})
    assert row.strength == 0 and serialise(result) == serialise(model)


def test_a_norm_that_something_else_reads_is_not_changed() -> None:
    model = with_outliers(tiny_model())
    assert sorted(linear_inputs(model)) == ["mixed", "normed"]
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    next(node for node in model.graph if node.name == "block/Add").replace_input_with(0, norm.outputs[0])
    result, (row,) = smoothed(model, ["normed"])
    assert row.by == "Mul" and row.strength > 0
    np.testing.assert_array_equal(inputs_of(result)["LayerNormalization"][0], weight_of(norm.inputs[1]))
    (expected,), (found,) = Probe(model).run(IMAGES[0]), Probe(result).run(IMAGES[0])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_a_tensor_of_which_nothing_was_seen_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="normed"):
        smooth(tiny_model(), {"normed": ChannelMaximum()}, {})
    assert not smooth(tiny_model(), {}, {}).tensors, "only what was observed"


LINEAR = "MatMul (a, w)"


def small_graph(body: str, arrays: dict[str, object]) -> ir.Model:
    text = f"""< ir_version: 10, opset_import: ["" : 20] >
    small (float[batch, rows, columns] image) => (float[batch, rows, outs] logits) {{ {body} }}"""
    proto = parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(array), name))
    return ir.from_proto(proto)


def one_norm(weight: object, linear: str = LINEAR) -> ir.Model:
    """A LayerNorm with a bias, and one linear layer behind it."""
    channels = max(np.shape(weight)) if linear == LINEAR else 2
    arrays = {"gamma": np.arange(3, 3 + channels), "beta": np.ones(channels), "w": weight}
    return small_graph(f"a = LayerNormalization <axis = -1> (image, gamma, beta) logits = {linear}", arrays)


def observed(maxima: object, rows: object) -> tuple[dict[str, ChannelMaximum], dict[str, RowSample]]:
    """Statistics of the tensor ``a``."""
    largest, sample = ChannelMaximum(), RowSample(per_image=100)
    largest.update(np.float32(maxima)[None])
    sample.update(np.float32(rows))
    return {"a": largest}, {"a": sample}


def inputs_of(model: ir.Model) -> dict[str, list[np.ndarray]]:
    """The constants of the LayerNorms and of the linear layers."""
    kinds: dict[str, list[np.ndarray]] = {"LayerNormalization": [], "MatMul": [], "Gemm": []}
    for node in model.graph:
        if node.op_type in kinds:
            kinds[node.op_type] += [array for value in node.inputs if (array := weight_of(value)) is not None]
    return kinds


@pytest.mark.parametrize("linear", [LINEAR, "Gemm <transB = 1> (a, w)"])
def test_factors_are_those_of_equation_4(linear: str) -> None:
    """s = max|X|^a / max|W|^(1-a) with a = 0.75: 16^0.75 / (1/16)^0.25 = 16, and 1 / 16^0.25 = 1/2."""
    weight = np.float32([[1 / 16, -1 / 32], [8, -16]])
    model = one_norm(weight.T if "transB" in linear else weight, linear)
    result, (row,) = copied(model, *observed([16, 1], [[0, 0.06], [0, 0.05]]), strengths=[0.75])
    assert (row.strength, row.tensor, row.by) == (0.75, "a", "LayerNormalization")
    gamma, beta = inputs_of(result)["LayerNormalization"]
    np.testing.assert_allclose(gamma, [3 / 16, 4 * 2], rtol=1e-6)
    np.testing.assert_allclose(beta, [1 / 16, 2], rtol=1e-6)
    (found,) = inputs_of(result)["Gemm" if "transB" in linear else "MatMul"]
    expected = np.float32([[1, -1 / 2], [4, -8]])
    np.testing.assert_allclose(found, expected.T if "transB" in linear else expected, rtol=1e-6)


def test_channels_that_are_always_0_and_weights_that_are_0_count_as_a_hundred_thousandth() -> None:
    """Of the largest: 1e-5 * 16 in both; a factor of 0 or infinity would spoil the graph."""
    weight = [[1 / 16], [16], [1], [0]]
    model = one_norm(weight)
    result, (row,) = copied(model, *observed([16, 1, 0, 1], [[0, 0.06, 0, 0], [0, 0.05, 0, 0]]), strengths=[0.75])
    assert row.strength == 0.75
    factors = np.float64([16, 1 / 2, 1.6e-4**0.75, 1 / 1.6e-4**0.25])
    np.testing.assert_allclose(inputs_of(result)["LayerNormalization"][0], [3, 4, 5, 6] / factors, rtol=1e-5)


def test_the_error_is_that_of_both_inputs_in_127_levels() -> None:
    """Scales 1 and 2: 0.4 becomes 0, 254 is clipped to 127, the weight of 3 becomes 4."""
    maxima, rows = observed([127, 0.4], [[127, 0.4], [254, 0]])
    _, (row,) = copied(one_norm([[3], [254]]), maxima, rows, strengths=[])
    expected = [127 * 3 + 0.4 * 254, 254 * 3]
    found = [127 * 4, 127 * 4]
    assert (row.strength, row.error) == (0, row.error_before)
    assert row.error_before == pytest.approx(np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected))


def test_only_plain_linear_layers_are_migrated_into() -> None:
    assert list(linear_inputs(one_norm(np.ones((2, 2))))) == ["a"]
    given_out = "logits = LayerNormalization (image, gamma) a = MatMul (logits, w)"
    model = small_graph(given_out, {"gamma": [1, 1], "w": np.ones((2, 2))})
    largest = {"logits": observed([16, 1], [[1, 1]])[0]["a"]}
    _, (row,) = copied(model, largest, {"logits": observed([1, 1], [[8, 1], [16, 0.06]])[1]["a"]})
    assert row.by == "Mul", "what the graph gives out stays as it is"
    for linear, weight in (
        (LINEAR, np.ones((1, 2, 2))),  # a weight for each image
        ("Gemm <transA = 1> (a, w)", np.ones((2, 2))),
        ("MatMul (w, a)", np.ones((2, 2))),
        ("MatMul (a, a)", np.ones((2, 2))),
        ("Mul (a, w)", np.ones((2, 2))),
    ):
        assert not linear_inputs(one_norm(weight, linear)), linear


def test_a_weight_of_several_readers_stays_as_it_is_for_the_others() -> None:
    """Two LayerNorms share gamma and their linear layers share a weight, but their channels differ."""
    body = """a = LayerNormalization <axis = -1> (image, gamma)  p = MatMul (a, w)
              b = LayerNormalization <axis = -1> (image, gamma)  q = MatMul (b, w)  logits = Add (p, q)"""
    model = small_graph(body, {"gamma": [2, 3], "w": [[1 / 16], [16]]})
    for name, node in zip(("first", "p", "second", "q", "sum"), model.graph, strict=True):
        node.name = name
    maxima, rows = observed([16, 1], [[0, 0.06]])
    others = observed([1, 1 / 16], [[0, 0.004]])
    result, report = copied(model, maxima | {"b": others[0]["a"]}, rows | {"b": others[1]["a"]}, strengths=[0.75])
    assert [row.strength for row in report] == [0.75, 0.75]
    norms, weights = inputs_of(result)["LayerNormalization"], inputs_of(result)["MatMul"]
    np.testing.assert_allclose(norms, [[2 / 16, 3 * 2], [2 / 2, 3 * 16]], rtol=1e-6)
    np.testing.assert_allclose(weights, [[[1], [8]], [[1 / 8], [1]]], rtol=1e-6)
    assert len(result.graph.initializers) == 4, "nothing unused is left"
    assert inputs_of(model)["LayerNormalization"][0].tolist() == [2, 3], "the original stays"

"""Layers that a back end computes otherwise than Q/DQ says are found, and no others."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from graphs import tiny_model

from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.export.graph import quantized as module
from denseport.export.graph.compare.quantized import (
    TOLERANCE,
    check_layers,
    part_concatenations,
    quantized_layers,
    release,
)
from denseport.export.graph.edit import new_constant, weight_of
from denseport.export.graph.model import serialise
from denseport.export.graph.probe import Probe
from denseport.runtime.backends.openvino import OpenVinoSession
from denseport.runtime.system.cpus import has_vnni

SIZE = (6, 10)
IMAGES = list(np.random.default_rng(1).standard_normal((2, 1, 3, *SIZE)).astype(np.float32))
LAYERS = ["stem/Conv", "left/Conv", "right/Conv", "block.attn/MatMul", "block.attn/MatMul_2", "block.attn/MatMul_3"]
LAYERS += ["block.out/MatMul"]


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """All candidates of a small network in INT8, attention's products too."""
    model = tiny_model()
    groups = find_groups(model, SIZE)
    chosen = [group for group in groups if group.float_reason is None]
    tensors = activations(model, chosen)
    found = Probe(model, tensors).run(IMAGES[0])
    limits = {name: float(np.abs(value).max()) for name, value in zip(tensors, found, strict=True)}
    quantize(model, limits, groups, [group.name for group in chosen])
    return model


def back_end(faults: Mapping[str, float], asked: list[int] | None = None) -> Callable[[ir.Model], Any]:
    """A back end that multiplies the weights' scales of some layers, where they are in INT8, by a factor."""

    @contextmanager
    def opened(graph: ir.Model) -> Iterator[Any]:
        wrong = graph.clone()
        narrow = quantized_layers(wrong)
        for node in wrong.graph:
            if node.name in faults and node.name in narrow:
                back = node.inputs[1].producer()  # type: ignore[union-attr]
                assert back is not None and back.op_type == "DequantizeLinear"
                scale = weight_of(back.inputs[1])
                assert scale is not None
                back.replace_input_with(
                    1, new_constant(wrong.graph, f"{node.name}.wrong", scale * np.float32(faults[node.name]))
                )
        if asked is not None:
            asked.append(len(narrow))
        probe = Probe(wrong, as_written=True)
        yield type("", (), {"run": staticmethod(lambda image: probe.run(image)[0])})

    return opened


def test_a_back_end_that_is_right_keeps_all_layers(model: ir.Model) -> None:
    asked: list[int] = []
    check = check_layers(model, IMAGES, back_end({}, asked))
    assert quantized_layers(model) == LAYERS
    assert (check.layers, check.images, check.tolerance, check.floats) == (7, 2, TOLERANCE, {})
    assert check.error == 0 < TOLERANCE < check.allowed and check.passed
    assert asked == [7, 7, 0], "one group, all together, none"


@pytest.mark.parametrize("together", [1, 3, 8])
@pytest.mark.parametrize("wrong", [["left/Conv"], ["stem/Conv", "block.out/MatMul"], LAYERS[:4]])
def test_each_wrong_layer_is_named_and_no_other(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch, together: int, wrong: list[str]
) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    check = check_layers(model, IMAGES, back_end(dict.fromkeys(wrong, 1.3)))
    assert list(check.floats) == wrong and all(error > TOLERANCE for error in check.floats.values())
    assert check.error == 0 and check.passed, "what is left is right"


def test_what_is_known_is_not_measured_again(model: ir.Model) -> None:
    asked: list[int] = []
    check = check_layers(model, IMAGES, back_end({"left/Conv": 1.3}, asked), known={"left/Conv": 0.2})
    assert check.floats == {"left/Conv": 0.2} and check.passed
    assert asked == [6, 0]


def test_a_fault_of_all_together_is_no_pass(model: ir.Model) -> None:
    """Nothing that a single layer shows: the back end is wrong only in the arithmetic that the artifact will run in."""
    wrong = dict.fromkeys(LAYERS[:4], 3.0)
    check = check_layers(model, IMAGES, back_end({}), whole=back_end(wrong))
    assert not check.floats and check.error > check.allowed and not check.passed
    # What the other arithmetic changes where no layer is in INT8 is allowed.
    check = check_layers(model, IMAGES, back_end({}), whole=_noisy(0.03))
    assert check.allowed > 0.03 > check.error > 0.01 and check.passed


def test_no_number_is_wrong(model: ir.Model) -> None:
    check = check_layers(model, IMAGES, back_end({"right/Conv": float("nan")}))
    assert list(check.floats) == ["right/Conv"]


def test_a_released_layer_reads_what_was_there_before_rounding(model: ir.Model) -> None:
    copy = model.clone()
    release(copy, ["right/Conv", "block.attn/MatMul_2"])
    assert quantized_layers(copy) == [each for each in LAYERS if each not in ("right/Conv", "block.attn/MatMul_2")]
    relu, right = Probe(copy, ["relu", "right"], as_written=True).run(IMAGES[0])
    original = tiny_model().graph.initializers["right_weight"].const_value
    assert original is not None
    weight = original.numpy()[:, :, 0, 0]
    scales = np.abs(weight).max(1, keepdims=True) / 127
    expected = np.einsum("oi,nihw->nohw", np.rint(weight / scales) * scales, relu)
    np.testing.assert_allclose(right, expected, atol=1e-5)
    release(copy, LAYERS)
    assert not quantized_layers(copy) and "QuantizeLinear" not in {node.op_type for node in copy.graph}


def test_a_concatenation_and_its_quantization_are_parted(tmp_path: Path) -> None:
    """OpenVINO computes such a layer wrongly: it quantizes the parts of the concatenation, with another scale."""
    model, expected = joined(), None
    assert part_concatenations(tiny_model()) == 0
    errors = []
    for _ in range(2):
        found = Probe(model, as_written=True).run(IMAGES[0])[0]
        assert expected is None or np.array_equal(found, expected), "a Max with the lowest number changes nothing"
        expected = found
        (tmp_path / "int8.onnx").write_bytes(serialise(model))
        if has_vnni() and importlib.util.find_spec("openvino"):
            found = OpenVinoSession(tmp_path / "int8.onnx", quantized=True).run(IMAGES[0])
            errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        part_concatenations(model)
    assert not errors or errors[1] < 1e-5
    assert not errors or errors[0] > 0.1, "OpenVINO was mended: part_concatenations can go, once no older one is served"


JOINED = """
< ir_version: 10, opset_import: ["" : 20] >
joined (float[batch, 3, height, width] image) => (float[batch, 4, height, width] logits)
{
  first = Relu (image)
  second = Neg (image)
  both = Concat <axis = 1> (first, second)
  logits = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (both, weight, bias)
}
"""


def joined() -> ir.Model:
    """A convolution in INT8 that reads a concatenation."""
    proto = onnx.parser.parse_model(JOINED)
    rng = np.random.default_rng(2)
    for name, shape in {"weight": (4, 6, 3, 3), "bias": (4,)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = ir.from_proto(proto)
    groups = find_groups(model, SIZE)
    quantize(model, {"both": 4.0}, groups, [group.name for group in groups])
    return model


def _noisy(size: float) -> Callable[[ir.Model], Any]:
    """A back end whose logits are all a little too large."""

    @contextmanager
    def opened(graph: ir.Model) -> Iterator[Any]:
        probe = Probe(graph, as_written=True)
        yield type("", (), {"run": staticmethod(lambda image: probe.run(image)[0] * np.float32(1 + size * 0.8))})

    return opened

"""Rounded weights: on the grid, unable to saturate, and with less error of the layer's output than nearest steps."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from graphs import tiny_model
from onnx import numpy_helper
from onnx.parser import parse_model

from denseport.calibration.observe.observers import RowSample
from denseport.calibration.quantize.cpu import lower_for_cpu
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.rounding import round_weights
from denseport.calibration.quantize.saturation import can_saturate, unsaturated
from denseport.export.graph.edit import weight_of

RNG = np.random.default_rng(11)


def sample(values: np.ndarray) -> RowSample:
    rows = RowSample(len(values), len(values))
    rows.update(values.astype(np.float32))
    return rows


def one_layer(weight: np.ndarray, layer: str = "MatMul (image, w)") -> ir.Model:
    text = f"""< ir_version: 10, opset_import: ["" : 20] >
    small (float[rows, columns] image) => (float[rows, outs] logits) {{ logits = {layer} }}"""
    proto = parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return ir.from_proto(proto)


@pytest.mark.parametrize("layer", ["MatMul (image, w)", "Gemm <transB = 1> (image, w)"])
def test_outputs_on_other_rows_change_less_than_with_nearest_steps(layer: str) -> None:
    """300 channels that are mixtures of 20: much of what one channel's rounding does, others can make up for."""
    mixture, weight = RNG.standard_normal((20, 300)), RNG.standard_normal((300, 40)).astype(np.float32)
    seen, others = (RNG.standard_normal((500, 20)) @ mixture + 0.1 * RNG.standard_normal((500, 300)) for _ in range(2))
    transposed = "transB" in layer
    model = one_layer(weight.T if transposed else weight, layer)
    found = round_weights(model, {"image": sample(seen)}, {"image": float(np.abs(seen).max())})["w"]
    integers = found.integers.T if transposed else found.integers
    assert integers.dtype == np.int8 and integers.shape == weight.shape and not can_saturate(integers)
    nearest, scales = unsaturated(weight)
    np.testing.assert_array_equal(found.scales, scales)
    errors = [np.linalg.norm(others @ (each * scales - weight)) for each in (integers.astype(float), nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_two_channels_that_always_agree_share_one_rounding() -> None:
    """Of all roundings of 0.5 and 0.5 steps (and one channel of 100 that sets the scale) the sum 1 is exact."""
    weight = np.float32([[127.0], [0.5], [0.5], [0.0]])
    rows = np.stack([np.zeros(50), *[RNG.standard_normal(50)] * 2, np.zeros(50)], axis=1)
    found = round_weights(one_layer(weight), {"image": sample(rows)}, {"image": float(np.abs(rows).max())})["w"]
    steps = found.integers.ravel().astype(int)
    costs = {pair: abs(sum(pair) - 1.0) for pair in itertools.product((0, 1), repeat=2)}
    assert steps[0] == 127 and costs[steps[1], steps[2]] == min(costs.values())


def test_a_layer_whose_input_is_always_0_keeps_the_nearest_steps() -> None:
    weight = RNG.standard_normal((6, 3)).astype(np.float32)
    found = round_weights(one_layer(weight), {"image": sample(np.zeros((9, 6)))}, {"image": 0.0})["w"]
    np.testing.assert_array_equal(found.integers, unsaturated(weight)[0])


def test_a_weight_of_two_layers_and_an_unobserved_one_are_left_out() -> None:
    model = one_layer(np.ones((4, 4)), "MatMul (other, w)  other = MatMul (image, w)")
    rows = {name: sample(np.ones((3, 4))) for name in ("image", "other")}
    assert not round_weights(model, rows, {"image": 1.0, "other": 1.0})
    assert not round_weights(one_layer(np.ones((4, 4))), {}, {"image": 1.0})


def test_both_variants_hold_the_rounded_weights() -> None:
    model = tiny_model()
    groups = find_groups(model, (6, 10))
    chosen = [group for group in groups if group.float_reason is None]
    limits = dict.fromkeys(activations(model, chosen), 4.0)
    rounded = round_weights(model, {"mixed": sample(RNG.standard_normal((40, 8)))}, limits)
    assert list(rounded) == ["out_weight"]
    portable = model.clone()
    quantize(portable, limits, groups, [group.name for group in chosen], rounded=rounded)
    lowered = portable.clone()
    lower_for_cpu(lowered, model, limits)
    pairs = {node.name: node for graph in (portable, lowered) for node in graph.graph}
    stored = pairs["out_weight/DequantizeLinear"].inputs[:2], pairs["block.out/MatMul"].inputs[1:4:2]
    for integers, scales in stored:
        np.testing.assert_array_equal(weight_of(integers), rounded["out_weight"].integers)
        np.testing.assert_array_equal(weight_of(scales), rounded["out_weight"].scales)

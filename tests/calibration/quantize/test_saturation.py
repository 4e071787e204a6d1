"""Weights for CPUs that add products in 16 bits, by emulating those and on the CPU here."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from denseport.calibration.quantize.saturation import can_saturate, unsaturated

RNG = np.random.default_rng(3)


def pair_extremes(integers: NDArray[np.int8]) -> tuple[int, int]:
    """What two neighbouring products reach with the worst activations 0..255."""
    wide = integers.astype(np.int64)
    products = np.stack([wide * 0, wide * 255])
    pairs = products[:, :-1:2][:, None] + products[:, 1::2][None]
    return int(pairs.min()), int(pairs.max())


@pytest.mark.parametrize("shape", [(768, 40), (7, 5), (1, 3), (2, 1)])
def test_no_pair_leaves_16_bits(shape: tuple[int, int]) -> None:
    weight = RNG.standard_normal(shape).astype(np.float32)
    weight[0] = weight[:2].max()  # a pair of equal weights, the worst case
    integers, scales = unsaturated(weight)
    even = integers[: len(integers) // 2 * 2]
    low, high = pair_extremes(even) if len(even) else (0, 0)
    assert low >= -(2**15) and high < 2**15 and not can_saturate(integers)
    assert np.abs(integers.astype(int)).max() <= 127
    # Half a step by rounding; one more where rounding itself had gone over.
    assert (np.abs(integers * scales - weight) <= 1.51 * scales).all()
    assert (np.abs(integers * scales - weight) <= 0.51 * scales).mean() > 0.95 or weight.size < 40


def test_a_gaussian_weight_keeps_most_of_its_digits() -> None:
    weight = RNG.standard_normal((768, 64)).astype(np.float32)
    plain = np.abs(weight).max(axis=0) / 127
    scales = unsaturated(weight)[1]
    assert 1.1 < (scales / plain).mean() < 1.6  # 7 bits would take 2


def test_a_pair_that_can_saturate_is_found() -> None:
    assert can_saturate(np.int8([[100], [29], [127]])) and can_saturate(np.int8([[-100], [-29]]))
    assert not can_saturate(np.int8([[100], [28], [127]])) and not can_saturate(np.int8([[100], [-127]]))


def test_least_scales_and_empty_columns() -> None:
    weight = np.zeros((4, 2), np.float32)
    assert unsaturated(weight)[1].tolist() == [1, 1]
    assert unsaturated(weight, np.float32([0, 3]))[1].tolist() == [1, 3]


def test_this_cpu_sums_them_exactly() -> None:
    """The worst activations for each column, in ONNX Runtime's kernel and in 64 bits."""
    integers, _ = unsaturated(RNG.standard_normal((512, 16)).astype(np.float32))
    activations = np.where(integers.T > 0, 255, 0).astype(np.uint8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [16, 512])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(integers, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": activations})
    np.testing.assert_array_equal(found, activations.astype(np.int64) @ integers.astype(np.int64))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pair_that_rounding_takes_too_far_is_brought_back(sign: int) -> None:
    """92.5 and 35.5 steps and a last bit more: both are rounded away from 0, to 129. The third has no neighbour."""
    weight = sign * np.float32([[2177.0896], [835.5316], [100.0]])
    scale = (weight[0] + weight[1]) / np.float32(128) * sign
    assert np.rint(weight / scale).ravel().tolist() == [sign * 93, sign * 36, sign * 4]
    integers, scales = unsaturated(weight)
    assert scales == scale and integers.ravel().tolist() == [sign * 92, sign * 36, sign * 4]

"""The form for ONNX Runtime's CPU back end: integers throughout, with the portable graph's values."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from graphs import tiny_model

from denseport.calibration.quantize.cpu import CpuRecord, lower_for_cpu
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.export.graph.edit import weight_of
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.probe import Probe
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.bundle.bundle import Bundle

SIZE = (6, 10)
RNG = np.random.default_rng(5)
IMAGE = RNG.standard_normal((1, 3, *SIZE)).astype(np.float32)


def forms(model: ir.Model, image: np.ndarray = IMAGE, outputs: bool = True) -> tuple[ir.Model, ir.Model, CpuRecord]:
    """Portable and CPU form with thresholds from one image."""
    groups = find_groups(model, image.shape[2:])
    chosen = [group for group in groups if group.float_reason is None]
    names = activations(model, chosen)
    found = Probe(model, names).run(image)
    limits = {name: float(np.abs(value).max()) for name, value in zip(names, found, strict=True)}
    portable = model.clone()
    quantize(portable, limits, groups, [group.name for group in chosen])
    kept = limits if outputs else {name: limit for name, limit in limits.items() if name not in ("left", "right")}
    before = serialise(portable)
    found_form = portable.clone()
    record = lower_for_cpu(found_form, model, kept)
    assert serialise(portable) == before, "a clone shares nothing that changes"
    return portable, found_form, record


def run(model: ir.Model, image: np.ndarray, optimized: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimized:  # Q/DQ in float arithmetic, node by node
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(serialise(model), options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"image": image})[0]
    return logits


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_every_chosen_layer_is_an_integer_operator() -> None:
    model = tiny_model()
    before = serialise(model)
    _, found, record = forms(model)
    assert serialise(model) == before
    onnx.checker.check_model(serialise(found))
    kinds = Counter(node.op_type for node in found.graph)
    assert kinds["QLinearConv"] == 3 and kinds["MatMulIntegerToFloat"] == 4
    assert kinds["MatMul"] == 0 and kinds["Conv"] == 1  # the last layer, float by default
    assert not record.floats and len(record.integer) == 7
    assert kinds["Relu"] == 0  # QLinearConv cuts at 0 instead


def test_activations_are_uint8_and_weights_int8() -> None:
    _, found, _ = forms(tiny_model())
    for node in found.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = weight_of(node.inputs[2])
            assert zero is not None and zero.dtype == np.uint8 and zero in (0, 128)
        if node.op_type == "QLinearConv":
            weight, bias = weight_of(node.inputs[3]), weight_of(node.inputs[8])
            assert weight is not None and weight.dtype == np.int8 and bias is not None and bias.dtype == np.int32


def test_its_values_are_those_of_the_portable_graph() -> None:
    model = tiny_model()
    portable, found, _ = forms(model)
    expected, exact = run(portable, IMAGE, False), run(model, IMAGE, False)
    logits = run(found, IMAGE, True)
    # Its own roundings, of weights and convolutions' outputs, are of the size of the portable graph's.
    assert relative(logits, expected) < 2 * relative(expected, exact) < 0.1


def test_without_a_threshold_a_convolution_stays_float_and_is_named() -> None:
    portable, found, record = forms(tiny_model(), outputs=False)
    assert {name for name, _ in record.floats} == {"left/Conv", "right/Conv"}
    assert all("no threshold was collected" in why for _, why in record.floats)
    assert relative(run(found, IMAGE, True), run(portable, IMAGE, False)) < 0.02


def test_a_bias_that_its_scale_cannot_hold_widens_the_scale() -> None:
    model = tiny_model()
    weight = model.graph.initializers["stem_weight"]
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    array[0] = 1e-20
    weight.const_value = ir.tensor(array)
    portable, found, _ = forms(model)
    assert relative(run(found, IMAGE, True), run(portable, IMAGE, False)) < 0.1


def test_a_real_network(sample: Bundle) -> None:
    model = read_model(sample.verified("model.onnx"))
    unpack_projections(model)
    image = RNG.standard_normal((1, 3, 64, 96)).astype(np.float32)
    portable, found, record = forms(model, image)
    assert len(record.integer) > 30 and not record.floats
    expected, exact = run(portable, image, False), run(model, image, False)
    assert relative(run(found, image, True), expected) < 2 * relative(expected, exact)

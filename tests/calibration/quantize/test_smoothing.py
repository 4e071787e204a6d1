"""Migration changes nothing before quantization, and makes INT8 better where channels differ in size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import tiny_model

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.collect import collect
from denseport.calibration.observe.observers import ChannelMaximum, RowSample
from denseport.calibration.quantize.smoothing import find_norms, smooth
from denseport.export.graph.model import read_model
from denseport.export.graph.probe import Probe
from denseport.runtime.bundle.bundle import Bundle

RNG = np.random.default_rng(2)
IMAGES = [RNG.standard_normal((1, 3, 80, 96)).astype(np.float32) for _ in range(3)]


def smoothed(model: ir.Model, **options: object):  # type: ignore[no-untyped-def]
    names = find_norms(model)
    maxima = {name: ChannelMaximum() for name in names}
    rows = {name: RowSample(per_image=40) for name in names}
    collect(model, IMAGES, {name: [maxima[name], rows[name]] for name in names})
    result = model.clone()
    return result, smooth(result, maxima, rows, **options).norms  # type: ignore[arg-type]


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
    assert len(report) == 8 and any(row.strength == strength for row in report)
    for image in IMAGES:
        (expected,), (found,) = Probe(model).run(image), Probe(result).run(image)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_outliers_are_migrated() -> None:
    model = with_outliers(tiny_model())
    result, (row,) = smoothed(model)
    assert row.strength > 0
    assert row.error < 0.5 * row.error_before
    (expected,), (found,) = Probe(model).run(IMAGES[0]), Probe(result).run(IMAGES[0])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert "gamma" in model.graph.initializers and "gamma" not in result.graph.initializers


def test_a_norm_that_something_else_reads_is_left_alone() -> None:
    model = tiny_model()
    assert list(find_norms(model)) == ["normed"]
    residual = next(node for node in model.graph if node.name == "block/Add")
    residual.replace_input_with(
        0, next(node for node in model.graph if node.op_type == "LayerNormalization").outputs[0]
    )
    assert not find_norms(model)


def test_unobserved_norms_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="normed"):
        smooth(tiny_model(), {}, {})

"""Thresholds against brute force on the values themselves; merging and order leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.observers import METHODS, ChannelMaximum, Histogram, RowSample, threshold

RNG = np.random.default_rng(0)
SHAPES = {
    "normal": RNG.standard_normal(200_000),
    "outliers": np.concatenate([RNG.standard_normal(200_000), [60.0, -75.0]]),
    "relu": np.maximum(RNG.standard_normal(200_000), 0),
    "laplace": RNG.laplace(size=200_000),
}


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(np.asarray(part, np.float32))
    return histogram


def quantization_error(values: np.ndarray, limit: float) -> float:
    scale = limit / 127
    return float(np.mean((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2))


@pytest.mark.parametrize("name", SHAPES)
def test_minmax_and_percentile_equal_numpy(name: str) -> None:
    values = SHAPES[name].astype(np.float32)
    histogram = histogram_of(values)
    assert threshold(histogram, "minmax") == np.abs(values).max()
    for percentile in (50.0, 99.0, 99.99, 100.0):
        expected = np.quantile(np.abs(values), percentile / 100, method="inverted_cdf")
        found = threshold(histogram, "percentile", percentile=percentile)
        assert abs(found - expected) <= histogram.width


@pytest.mark.parametrize("name", SHAPES)
def test_mse_is_nearly_the_least_error_of_all_thresholds(name: str) -> None:
    values = SHAPES[name]
    best = min(quantization_error(values, limit) for limit in np.abs(values).max() * np.linspace(0.01, 1, 200))
    assert quantization_error(values, threshold(histogram_of(values), "mse")) <= 1.02 * best


def test_entropy_equals_a_plain_implementation() -> None:
    """Migacz's procedure written out with loops, on the same bins."""
    histogram = histogram_of(SHAPES["outliers"])
    counts = histogram.counts.astype(float)
    counts[0] = counts[1]
    best, chosen = np.inf, 0
    for stop in range(128, len(counts) + 1, 128):
        reference = counts[:stop].copy()
        quantized = np.zeros(stop)
        for level in range(128):
            cells = range(level * stop // 128, (level + 1) * stop // 128)
            filled = [i for i in cells if counts[i]]
            for i in filled:
                quantized[i] = sum(counts[j] for j in cells) / len(filled)
        reference[-1] += counts[stop:].sum()
        p, q = reference / reference.sum(), quantized / quantized.sum()
        divergence = sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a)
        if divergence < best:
            best, chosen = divergence, stop
    assert threshold(histogram, "entropy") == pytest.approx(min(chosen * histogram.width, histogram.maximum))
    assert threshold(histogram, "entropy") < 20 < histogram.maximum  # the outliers are clipped


@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=2, max_size=40), st.randoms())
def test_order_leaves_no_trace(values: list[float], random: object) -> None:
    whole = histogram_of(np.array(values))
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = histogram_of(*[np.array([v]) for v in shuffled])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.exponent, whole.maximum) == (parts.exponent, parts.maximum)


def test_state_restores_everything() -> None:
    first, second = histogram_of(SHAPES["normal"]), Histogram()
    second.restore(first.state())
    for histogram in (first, second):
        histogram.update(SHAPES["outliers"].astype(np.float32))
    np.testing.assert_array_equal(first.counts, second.counts)
    assert second.maximum == first.maximum == 75


def test_channel_maximum_and_rows() -> None:
    values = RNG.standard_normal((2, 30, 8)).astype(np.float32)
    channels = ChannelMaximum()
    channels.update(values[:1])
    channels.update(values[1:])
    np.testing.assert_array_equal(channels.maximum, np.abs(values).max(axis=(0, 1)))

    rows = RowSample(per_image=3, capacity=5)
    for image in values:
        rows.update(image[None])
    np.testing.assert_array_equal(rows.rows, np.concatenate([values[0, [0, 14, 29]], values[1, [0, 14]]]))


def test_bad_input() -> None:
    with pytest.raises(CalibrationError, match="nothing was observed"):
        threshold(Histogram(), "mse")
    with pytest.raises(CalibrationError, match="not finite"):
        histogram_of(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="median"):
        threshold(histogram_of(SHAPES["relu"]), "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="percentile"):
        threshold(histogram_of(SHAPES["relu"]), "percentile", percentile=0)
    for method in METHODS:
        assert threshold(histogram_of(np.zeros(9)), method) == 0

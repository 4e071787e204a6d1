"""What is remembered of a tensor over many images, in memory that does not grow with their number.

A `Histogram` of magnitudes gives the clipping threshold of symmetric INT8 by any of four methods. Its range is a power
of two, and grows by folding bins; scaling by a power of two is exact, so the counts do not depend on the order of
the images.

Sources: Migacz, "8-bit inference with TensorRT" (GTC 2017) for entropy; Wu et al., "Integer quantization for deep
learning inference" (2020) for the comparison of the methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError

__all__ = ["LEVELS", "METHODS", "ChannelMaximum", "Histogram", "Method", "Observer", "RowSample", "threshold"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
LEVELS = 127  # the largest int8 magnitude in use; -128 would make the range lopsided

BINS = 8192
_SMALLEST = -64  # exponent; smaller values share the first bin
_ENTROPY_LEVELS = 128
_MSE_STEP = 0.95  # ratio of neighbouring candidates
_MSE_CANDIDATES = 96  # down to 0.8 % of the maximum


class Observer(ABC):
    """Sees one tensor of every image. Its attributes, arrays and numbers, are all that it remembers."""

    @abstractmethod
    def update(self, values: NDArray[np.float32]) -> None:
        """Take one image's tensor in."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All that it remembers, for a file."""
        return {name: np.array(value) for name, value in vars(self).items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` gave."""
        for name in vars(self):
            setattr(self, name, state[name] if state[name].ndim else state[name].item())


class Histogram(Observer):
    """Counts of magnitudes in `BINS` equal bins over [0, 2 ** exponent).

    Attributes:
        counts: (BINS,) int64.
        exponent: of the range; without meaning while every value was 0.
        maximum: the largest magnitude seen.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.exponent = _SMALLEST  # grows with the first value
        self.maximum = 0.0

    @property
    def total(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent / BINS

    def update(self, values: NDArray[np.float32]) -> None:
        """Count the values.

        Raises:
            CalibrationError: one of them is not finite.
        """
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if not math.isfinite(largest):
            raise CalibrationError("a tensor holds a value that is not finite", "Check the FP32 model: denseport eval.")
        exponent = math.frexp(largest)[1] if largest else self.exponent
        if exponent > self.exponent:
            self.counts, self.exponent = _folded(self.counts, exponent - self.exponent), exponent
        self.maximum = max(self.maximum, largest)
        magnitudes *= np.float32(1 / self.width)
        self.counts += np.bincount(magnitudes.astype(np.int32), minlength=BINS)


class ChannelMaximum(Observer):
    """The largest magnitude of each channel (last axis): what smoothing migrates.

    Attributes:
        maximum: (C,) float32; a single 0 before the first image.
    """

    def __init__(self) -> None:
        self.maximum: NDArray[np.float32] = np.zeros(1, np.float32)

    def update(self, values: NDArray[np.float32]) -> None:
        self.maximum = np.maximum(self.maximum, np.abs(values).reshape(-1, values.shape[-1]).max(axis=0))


class RowSample(Observer):
    """Evenly spaced rows (last axis) of each image's tensor, at most ``capacity`` in all.

    Attributes:
        rows: (n, C) float32.
    """

    def __init__(self, per_image: int, capacity: int = 512) -> None:
        self.per_image = per_image
        self.capacity = capacity
        self.rows: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def update(self, values: NDArray[np.float32]) -> None:
        rows = values.reshape(-1, values.shape[-1])
        rows = rows[np.linspace(0, len(rows) - 1, min(self.per_image, len(rows))).astype(int)]
        room = self.capacity - len(self.rows)
        if room > 0 and len(rows):
            self.rows = np.concatenate([self.rows.reshape(-1, rows.shape[1]), rows[:room]])


def threshold(histogram: Histogram, method: Method, *, percentile: float = 99.99) -> float:
    """The magnitude that becomes 127. Larger magnitudes are clipped. 0 if every value was 0.

    Args:
        method: "minmax", "percentile", "entropy" (least Kullback-Leibler divergence of the quantized distribution) or
            "mse" (least squared error of rounding and clipping).
        percentile: for that method: the percentage of the values that lie below the threshold.

    Raises:
        CalibrationError: nothing was observed.
        ValueError: no such method, or a percentile outside (0, 100].
    """
    if histogram.total == 0:
        raise CalibrationError("nothing was observed", "Calibrate with at least one image.")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile {percentile} is not in (0, 100]")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if method == "minmax" or histogram.maximum == 0:
        return histogram.maximum
    if method == "percentile":
        return _percentile(histogram, percentile)
    return _entropy(histogram) if method == "entropy" else _mse(histogram)


def _folded(counts: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """The counts when the range is ``2 ** shift`` times as large."""
    shift = min(shift, BINS.bit_length() - 1)
    folded = np.zeros_like(counts)
    folded[: BINS >> shift] = counts.reshape(-1, 1 << shift).sum(axis=1)
    return folded


def _percentile(histogram: Histogram, percentile: float) -> float:
    below = np.cumsum(histogram.counts)
    bin_ = int(np.searchsorted(below, percentile / 100 * below[-1]))
    return min((bin_ + 1) * histogram.width, histogram.maximum)


def _mse(histogram: Histogram) -> float:
    used = np.flatnonzero(histogram.counts)
    values, counts = (used + 0.5) * histogram.width, histogram.counts[used].astype(np.float64)
    thresholds = histogram.maximum * _MSE_STEP ** np.arange(_MSE_CANDIDATES)
    rounded = (np.minimum(np.rint(values / scale), LEVELS) * scale for scale in thresholds / LEVELS)
    errors = [counts @ (values - each) ** 2 for each in rounded]
    return float(thresholds[int(np.argmin(errors))])


def _entropy(histogram: Histogram) -> float:
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]  # zeros are exact in any scale; their spike would hide the rest
    last = int(histogram.maximum / histogram.width) + 1
    stops = range(_ENTROPY_LEVELS, BINS + 1, _ENTROPY_LEVELS)
    candidates = [stop for stop in stops if stop < last + _ENTROPY_LEVELS]
    divergences = [_divergence(counts, stop) for stop in candidates]
    return min(candidates[int(np.argmin(divergences))] * histogram.width, histogram.maximum)


def _divergence(counts: NDArray[np.float64], stop: int) -> float:
    """Of the clipped distribution from its quantized form, both over the first ``stop`` bins."""
    clipped = counts[:stop].copy()
    levels = clipped.reshape(_ENTROPY_LEVELS, -1)
    used = levels > 0
    # A level's mass is spread over those of its bins that occur at all.
    mean = levels.sum(axis=1) / np.maximum(used.sum(axis=1), 1)
    quantized = np.where(used, mean[:, None], 0.0).ravel()
    clipped[-1] += counts[stop:].sum()
    p, q = clipped / clipped.sum(), quantized / max(quantized.sum(), 1.0)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))

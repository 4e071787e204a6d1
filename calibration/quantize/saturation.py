"""INT8 weights that no CPU saturates on.

The widest multiplication of x86 without VNNI (``vpmaddubsw``: AVX2, and AVX-512 without it) takes uint8 activations and
int8 weights and adds the products of two neighbours along the sum in 16 bits, saturating: 255 * (w0 + w1) must not
exceed 32767. Two weights of one sign may add up to 128 at most, and a scale that makes the largest single weight 127
does not see to that: one pair in fifty of a Gaussian weight is over. Later machines add in 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.observe.observers import LEVELS

__all__ = ["LARGEST_PAIR", "can_saturate", "unsaturated", "unsaturated_scales", "within_pairs"]

LARGEST_PAIR = 128  # 255 * 128 < 2**15

Array = NDArray[Any]


def unsaturated(weight: Array, least: Array | None = None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights (K, N), summed along K in order, each rounded to the nearest step, and the steps (N,) of the columns.

    Args:
        least: (N,) scales to stay above.
    """
    scales = unsaturated_scales(weight, least)
    integers = np.rint(weight / scales).clip(-LEVELS, LEVELS)
    return within_pairs(integers).astype(np.int8), scales


def unsaturated_scales(weight: Array, least: Array | None = None) -> NDArray[np.float32]:
    """(N,) the smallest scale for each column of a weight (K, N) at which no two neighbours can saturate."""
    largest = np.abs(weight).max(axis=0) / LEVELS
    pairs = np.abs(_pairs(weight)).max(axis=0, initial=0) / LARGEST_PAIR
    scales: NDArray[np.float32] = np.maximum(np.maximum(largest, pairs), 0 if least is None else least).astype(
        np.float32
    )
    scales[scales == 0] = 1
    return scales


def within_pairs(integers: Array) -> Array:
    """Rounded weights (K, N) with those pairs brought back that rounding has moved too far from 0."""
    result = integers.copy()
    over = _pairs(result)
    over -= over.clip(-LARGEST_PAIR, LARGEST_PAIR)
    result[: 2 * len(over) : 2] -= over
    return result


def can_saturate(integers: NDArray[np.int8]) -> bool:
    """Whether two neighbours of int8 weights (K, N) add up to too much."""
    return bool(np.abs(_pairs(integers.astype(np.int16))).max(initial=0) > LARGEST_PAIR)


def _pairs(weight: Array) -> Array:
    """Sums of two neighbours; the last of an odd number has none."""
    even = len(weight) // 2 * 2
    sums: Array = weight[:even:2] + weight[1:even:2]
    return sums

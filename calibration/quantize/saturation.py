"""INT8 weights whose products fit 16 bits, two by two, as x86 without VNNI adds them.

Its widest multiplication (``vpmaddubsw``) takes uint8 activations and int8 weights and adds the products of two
neighbours along the sum in 16 bits, saturating: 255 * (w0 + w1) must not exceed 32767. Two weights of one sign may add
up to 128 at most, and a scale that makes the largest single weight 127 does not see to that: one pair in fifty of a
Gaussian weight is over. AVX2, and AVX-512 without VNNI, do this; later machines add in 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.observe.observers import LEVELS

__all__ = ["LARGEST_PAIR", "unsaturated"]

LARGEST_PAIR = 128  # 255 * 128 < 2**15

Array = NDArray[np.float32]


def unsaturated(weight: Array, least: Array | None = None) -> tuple[NDArray[np.int8], Array]:
    """Weights (K, N), summed along K in order, and a scale (N,) for each column: the smallest that cannot saturate.

    Args:
        least: (N,) scales to stay above.
    """
    largest = np.abs(weight).max(axis=0) / LEVELS
    pairs = np.abs(_pairs(weight)).max(axis=0, initial=0) / LARGEST_PAIR
    scales = np.maximum(np.maximum(largest, pairs), 0 if least is None else least).astype(np.float32)
    scales[scales == 0] = 1
    integers = np.rint(weight / scales).clip(-LEVELS, LEVELS).astype(np.int16)
    # Rounding may have moved both of a pair away from 0.
    over = _pairs(integers)
    over -= over.clip(-LARGEST_PAIR, LARGEST_PAIR)
    integers[: 2 * len(over) : 2] -= over
    return integers.astype(np.int8), scales


def _pairs(weight: NDArray[Any]) -> NDArray[Any]:
    """Sums of two neighbours; the last of an odd number has none."""
    even = len(weight) // 2 * 2
    sums: NDArray[Any] = weight[:even:2] + weight[1:even:2]
    return sums

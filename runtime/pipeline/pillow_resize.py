"""Pillow's resizing of 8-bit images without Pillow, equal to the bit.

As Pillow up to 12 does it: the width first, then the height, each with weights in fixed point, rounded to grey levels
in between. Pillow 13 begins with the height where that is less work; it then differs by up to two levels.

A pass is a product with a banded matrix. Weights are multiples of 2^-22, and sums of them with levels stay below 2^31:
float64 holds each exactly, so that the order in which a library adds does not count. Source: Pillow 12,
``src/libImaging/Resample.c`` and, for the nearest pixel, ``Geometry.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["resize"]

Floats = NDArray[np.float64]
PRECISION = 22  # bits behind the point of a weight
# Levels are rounded half up, and OpenCV rounds half to even: this is far less than a unit of the last bit of a sum.
UP = 2.0 ** (-PRECISION - 1)
ROWS = 4  # of a tile. Fewer make more calls, more make wider matrices, whose rows are zero outside of their bands
PRODUCTS = 262_144  # of a tile at most: OpenBLAS begins threads of its own for larger ones


class _Filter(NamedTuple):
    """A weight for each distance, in pixels of the smaller of the two images."""

    support: float  # beyond it weights are 0
    weight: Callable[[Floats], Floats]


class _Tile(NamedTuple):
    """Some outputs along an axis, and the inputs that they are made of."""

    outputs: slice
    inputs: slice
    matrix: Floats  # (outputs, inputs)


def resize(image: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """``Image.resize`` of Pillow.

    Args:
        image: (H, W, 3) uint8.
        size: height, width.
        interpolation: "nearest", or with antialias "box", "bilinear", "hamming", "bicubic", "lanczos".

    Returns:
        (h, w, 3) uint8.
    """
    if interpolation == "nearest":
        rows, columns = (_nearest(old, new) for old, new in zip(image.shape, size, strict=False))
        return image[rows[:, None], columns]
    if image.shape[1] != size[1]:
        image = _turned(_resized(_turned(image), size[1], interpolation))
    return image if image.shape[0] == size[0] else _resized(image, size[0], interpolation)


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    """The pixel of each output. Pillow adds up the steps, and so the rounding of each."""
    steps = np.full(new, old / new)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.intp)


def _turned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) to (W, H, 3)."""
    return cv2.transpose(image)  # type: ignore[return-value]


def _resized(image: NDArray[np.uint8], new: int, interpolation: str) -> NDArray[np.uint8]:
    """(old, N, 3) uint8 to (new, N, 3)."""
    rows = image.reshape(len(image), -1)
    out = np.empty((new, rows.shape[1]), np.uint8)
    for tile in _tiles(len(rows), new, interpolation):
        inputs = rows[tile.inputs]
        step = max(1, PRODUCTS // tile.matrix.size)
        for start in range(0, out.shape[1], step):
            columns = slice(start, start + step)
            sums = tile.matrix @ inputs[:, columns].astype(np.float64)
            cv2.addWeighted(sums, 1, sums, 0, UP, dst=out[tile.outputs, columns], dtype=cv2.CV_8U)
    return out.reshape(new, *image.shape[1:])


@lru_cache(maxsize=16)  # images of a stream have few sizes
def _tiles(old: int, new: int, interpolation: str) -> list[_Tile]:
    first, weights = _weights(old, new, FILTERS[interpolation])
    starts = np.arange(0, new, ROWS)
    band = (first - np.repeat(first[starts], ROWS)[:new])[:, None] + np.arange(weights.shape[1])
    matrix = np.zeros((new, int(band.max()) + 1))
    np.put_along_axis(matrix, band, weights, axis=1)
    tiles = []
    for start, low in zip(starts.tolist(), first[starts].tolist(), strict=True):
        outputs, inputs = slice(start, start + ROWS), slice(low, min(low + matrix.shape[1], old))
        tiles.append(_Tile(outputs, inputs, matrix[outputs, : inputs.stop - low]))
    return tiles


def _weights(old: int, new: int, sampling: _Filter) -> tuple[NDArray[np.intp], Floats]:
    """The first input of each output, and the weights of it and of those behind it, (new, taps); 0 beyond the last."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = sampling.support * stretch
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(centre - support + 0.5, 0).astype(np.intp)
    stop = np.minimum((centre + support + 0.5).astype(np.intp), old)
    inputs = first[:, None] + np.arange((stop - first).max())
    weights = sampling.weight((inputs - centre[:, None] + 0.5) * (1.0 / stretch))
    weights[inputs >= stop[:, None]] = 0.0
    total = np.cumsum(weights, axis=1)[:, -1:]  # one after the other, as Pillow adds them
    weights = weights / np.where(total == 0, 1.0, total) * 2.0**PRECISION
    return first, np.trunc(weights + np.copysign(0.5, weights)) * 2.0**-PRECISION


def _box(x: Floats) -> Floats:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _hamming(x: Floats) -> Floats:
    """Its two numbers are rounded to float32 in Pillow."""
    x, (mean, half) = np.abs(x), np.array([0.54, 0.46], np.float32).astype(np.float64)
    return np.where(x < 1.0, np.sinc(x) * (mean + half * np.cos(x * np.pi)), 0.0)


def _bicubic(x: Floats) -> Floats:
    """Keys' with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


FILTERS = {
    "box": _Filter(0.5, _box),
    "bilinear": _Filter(1.0, _bilinear),
    "hamming": _Filter(1.0, _hamming),
    "bicubic": _Filter(2.0, _bicubic),
    "lanczos": _Filter(3.0, _lanczos),
}

"""From low-resolution logits to a class for each pixel, without ever holding the logits at full size.

mmsegmentation resizes a network's logits to the network's input size, resizes them again to the image's
own size, and takes the argmax: with 150 classes, some 600 MB of floats for each megapixel. Three facts
avoid them:

* Both resizes, the flip and the averaging of sliding windows are linear and act on rows and on columns
  apart. Their composition is one banded matrix for each axis (`ResampleMatrix`), with a few taps for each output.
* The image can be made in tiles, each from the small patch of logits that it touches.
* An output is a weighted mean of its patch. A class whose largest logit there lies below the smallest
  logit of another class wins nowhere in the tile and is left out; where logits are smooth few classes remain.

Everywhere: logits are (C, h, w) float32, a size is (height, width), and one output's logits are the sum over
a list of `LogitMap`: one for a whole image, one a window for sliding windows. Results equal upstream's up to
float32 rounding. Sources: mmseg/models/segmentors/{base,encoder_decoder,seg_tta}.py (1.2.2) and torch's
aten/src/ATen/native/cpu/UpSampleKernel.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError

__all__ = ["TILE", "LogitMap", "Placement", "ResampleMatrix", "slide_maps", "slide_matrices", "whole_map"]

Size = tuple[int, int]
Floats = NDArray[np.float32]

# Pixels a side of a tile of the image. 48 was the best of 16, 32, 48 and 64 in the cases of
# scripts/bench/postprocess.py taken together: small tiles drop more classes, large ones spend less on Python. Its
# products are still below the size from which OpenBLAS uses threads of its own, so tiles run side by side without
# oversubscription.
TILE = 48


@dataclass(frozen=True, eq=False)
class ResampleMatrix:
    """A banded linear map: ``out[i] = sum over t of weights[i, t] * in[start[i] + t]``."""

    n_in: int
    start: NDArray[np.intp]  # (n_out,), each band lies inside the input
    weights: Floats  # (n_out, taps); below zero in `cubic` alone

    @classmethod
    @lru_cache(maxsize=64)  # images of a stream have few sizes
    def linear(cls, n_in: int, n_out: int, align_corners: bool = False) -> ResampleMatrix:
        """Bilinear resize without antialias, as torch has it; half-pixel centres unless ``align_corners``."""
        source = _sources(n_in, n_out, align_corners).clip(min=0)
        below = np.minimum(source.astype(np.intp), n_in - 1)
        fraction = source - below
        above = np.minimum(below + 1, n_in - 1)
        return cls._banded(n_in, np.stack([below, above], 1), np.stack([1 - fraction, fraction], 1))

    @classmethod
    @lru_cache(maxsize=64)
    def cubic(cls, n_in: int, n_out: int, align_corners: bool = False) -> ResampleMatrix:
        """Bicubic resize without antialias, as torch has it: a = -0.75, the border repeated."""
        source = _sources(n_in, n_out, align_corners)
        first = np.minimum(np.floor(source), n_in - 1)
        fraction = np.clip(source - first, 0, 1)
        index = first.astype(np.intp)[:, None] + np.arange(-1, 3)
        weight = _cubic_kernel(np.abs(fraction[:, None] - np.arange(-1, 3, dtype=np.float32)))
        return cls._banded(n_in, index.clip(0, n_in - 1), weight)

    @classmethod
    def _banded(cls, n_in: int, index: NDArray[np.intp], weight: NDArray[np.floating[Any]]) -> ResampleMatrix:
        """From the input ``index`` and ``weight`` of each tap, (n_out, any): equal inputs are merged."""
        used = weight != 0
        first = np.where(used, index, n_in).min(1)
        last = np.where(used, index, -1).max(1)
        taps = max(1, int((last - first).max()) + 1)
        start = np.minimum(first, n_in - taps)
        band = np.zeros((len(index), taps))
        rows, _ = np.nonzero(used)
        np.add.at(band, (rows, index[used] - start[rows]), weight[used])
        return cls(n_in, start, band.astype(np.float32))

    @property
    def n_out(self) -> int:
        """Outputs along the axis."""
        return len(self.start)

    def after(self, first: ResampleMatrix) -> ResampleMatrix:
        """The map that applies ``first``, then this one."""
        if first.n_out != self.n_in:
            raise InputError(f"an axis of {self.n_in} samples cannot follow one that gives {first.n_out}")
        middle = self.start[:, None] + np.arange(self.weights.shape[1])  # (n_out, taps)
        index = first.start[middle][..., None] + np.arange(first.weights.shape[1])  # and first's taps
        weight = self.weights[..., None].astype(np.float64) * first.weights[middle]
        return self._banded(first.n_in, index.reshape(self.n_out, -1), weight.reshape(self.n_out, -1))

    def flipped(self) -> ResampleMatrix:
        """The same map of the input read backwards."""
        start = self.n_in - self.start - self.weights.shape[1]
        return ResampleMatrix(self.n_in, start, self.weights[:, ::-1])

    def widened(self, n_in: int) -> ResampleMatrix:
        """The same map of an input that goes on beyond its own; what lies there counts for nothing."""
        return ResampleMatrix(n_in, self.start, self.weights)

    def window(self, begin: int, counts: NDArray[np.intp]) -> ResampleMatrix:
        """The map onto a longer axis, zero outside of the window that starts at ``begin``.

        Args:
            counts: (total,), how many windows cover each output; every output is divided by its count.
        """
        span = slice(begin, begin + self.n_out)
        start = np.zeros(len(counts), np.intp)
        start[span] = self.start
        weights = np.zeros((len(counts), self.weights.shape[1]), np.float32)
        weights[span] = self.weights / counts[span, None]
        return ResampleMatrix(self.n_in, start, weights)

    def only(self, outputs: NDArray[np.intp]) -> ResampleMatrix:
        """The same map to some of the outputs, by their numbers."""
        return ResampleMatrix(self.n_in, self.start[outputs], self.weights[outputs])

    def apply(self, values: Floats) -> Floats:
        """(n_in, any) -> (n_out, any)."""
        out = self.weights[:, :1] * values[self.start]
        for tap in range(1, self.weights.shape[1]):
            out += self.weights[:, tap, None] * values[self.start + tap]
        return out

    def block(self, low: int, high: int) -> tuple[slice, Floats]:
        """The inputs that outputs ``low:high`` touch, and the dense (outputs, inputs) matrix between them."""
        rows, taps = np.nonzero(self.weights[low:high])
        if not rows.size:
            return slice(0, 0), np.zeros((high - low, 0), np.float32)
        index = self.start[low + rows] + taps
        first, last = int(index.min()), int(index.max())
        matrix = np.zeros((high - low, last + 1 - first), np.float32)
        matrix[rows, index - first] = self.weights[low + rows, taps]
        return slice(first, last + 1), matrix

    @cached_property
    def blocks(self) -> list[tuple[slice, Floats]]:
        """`block` of each tile along the axis."""
        return [self.block(low, min(low + TILE, self.n_out)) for low in range(0, self.n_out, TILE)]


def _sources(n_in: int, n_out: int, align_corners: bool) -> Floats:
    """Where each output of a resize lies among the inputs, (n_out,).

    torch computes it in float32 with one rounding (a fused multiply-add), and so do we: the rounding of a coordinate
    near 1000 moves a weight by 6e-5.
    """
    if n_in < 1 or n_out < 1:
        raise InputError(f"cannot resize {n_in} samples to {n_out}: both must be positive")
    at = np.arange(n_out, dtype=np.float32)
    if align_corners:
        return np.float32(n_in - 1) / np.float32(max(n_out - 1, 1)) * at
    scale = np.float64(np.float32(n_in) / np.float32(n_out))
    return (scale * (at + 0.5) - 0.5).astype(np.float32)


def _cubic_kernel(distance: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The weight of a sample so far away, from 0 to 2; a = -0.75."""
    a, x = -0.75, distance
    near: NDArray[np.floating[Any]] = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x <= 1, near, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)


@dataclass(frozen=True, eq=False)
class LogitMap:
    """Logits and the way to the image: ``out[c] = rows @ logits[c] @ cols.T``.

    In a sum of maps each output's weights must add up to one: `whole_map` and `slide_maps` see to it.
    """

    logits: Floats  # (C, h, w)
    rows: ResampleMatrix  # h -> H
    cols: ResampleMatrix  # w -> W

    def __post_init__(self) -> None:
        found, expected = self.logits.shape, (self.rows.n_in, self.cols.n_in)
        if self.logits.dtype != np.float32 or len(found) != 3 or found[0] < 1 or found[1:] != expected:
            raise InputError(
                f"expected logits of shape (C, {expected[0]}, {expected[1]}) and type float32, "
                f"found {found} {self.logits.dtype}"
            )


@dataclass(frozen=True)
class Placement:
    """Where an image lies in what the network sees. Sizes are (height, width)."""

    resized: Size  # of what the network sees, to which the logits are resized first
    size: Size  # of the image
    cut: Size = (0, 0)  # of it, pixels at the bottom and at the right that are not of the image
    flip: bool = False  # the network saw the image mirrored left to right; the result is mirrored back
    align_corners: bool = False  # how logits are resized


def whole_map(logits: Floats, place: Placement) -> LogitMap:
    """Whole-image inference: logits (C, h, w) float32 -> ``place.resized`` -> ``place.size``."""
    (field,) = slide_maps([logits], [(0, place.resized[0])], [(0, place.resized[1])], place)
    return field


def slide_maps(
    window_logits: Sequence[Floats],
    row_windows: Sequence[tuple[int, int]],
    col_windows: Sequence[tuple[int, int]],
    place: Placement,
) -> list[LogitMap]:
    """Sliding windows: each window's logits -> its own size, averaged where windows overlap, -> the image's size.

    Args:
        window_logits: one (C, h, w) float32 array a window, row by row; all of one shape.
        row_windows, col_windows: (start, stop) of the windows along each axis of the ``resized`` image.
    """
    if len(window_logits) != len(row_windows) * len(col_windows) or not len(window_logits):
        raise InputError(
            f"expected logits for {len(row_windows)} x {len(col_windows)} windows, found {len(window_logits)}"
        )
    _, h, w = window_logits[0].shape
    rows, cols = slide_matrices((h, w), row_windows, col_windows, place)
    axes = [(row, col) for row in rows for col in cols]
    return [LogitMap(logits, row, col) for logits, (row, col) in zip(window_logits, axes, strict=True)]


def slide_matrices(
    low: Size,
    row_windows: Sequence[tuple[int, int]],
    col_windows: Sequence[tuple[int, int]],
    place: Placement,
) -> tuple[list[ResampleMatrix], list[ResampleMatrix]]:
    """The way of each row and of each column of windows, ``low`` logits large, to the image; as `slide_maps`."""
    found = []
    for axis, spans in enumerate((row_windows, col_windows)):
        total = place.resized[axis]
        to_image = ResampleMatrix.linear(total - place.cut[axis], place.size[axis], place.align_corners)
        if place.flip and axis == 1:
            to_image = to_image.flipped()
        to_image = to_image.widened(total)
        found.append([to_image.after(each) for each in _window_matrices(low[axis], spans, total, place.align_corners)])
    return found[0], found[1]


def _window_matrices(
    n_in: int, windows: Sequence[tuple[int, int]], total: int, align_corners: bool
) -> list[ResampleMatrix]:
    """One axis for each window of ``n_in`` logits, divided by the number of windows over each output."""
    counts = np.zeros(total, np.intp)
    for start, stop in windows:
        if not 0 <= start < stop <= total:
            raise InputError(f"window {start}:{stop} does not lie inside of the {total} pixels of its axis")
        counts[start:stop] += 1
    if not counts.all():
        raise InputError(f"pixel {counts.argmin()} of {total} lies in no window: {list(windows)}")
    return [ResampleMatrix.linear(n_in, stop - start, align_corners).window(start, counts) for start, stop in windows]

"""Sliding windows over an image of any size, in memory that grows with its width and not with its area.

The windows go row by row, left to right. A tile of the image is decided as soon as the last window that it needs has
been seen; a window's logits are kept whole until the tiles on its right edge are decided, and from then on only those
rows that the next row of windows overlaps. Logits are averaged where windows overlap, as in upstream's slide mode, and
in the same order as `denseport.runtime.pipeline.resample.slide_maps`: the results are equal to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.pipeline.outputs import Canvas, RequestedOutputs
from denseport.runtime.pipeline.resample import ResampleMatrix, slide_matrices
from denseport.runtime.pipeline.tiles import Patch, Run, Strip, paint, patches_side_by_side, tile_workers
from denseport.runtime.pipeline.views import window_starts

__all__ = ["Network", "Slid", "slide"]

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # a window, HWC uint8 BGR, to its logits (C, h, w)


@dataclass(frozen=True)
class Slid:
    """What `slide` gives."""

    canvas: Canvas
    seconds_painting: float  # the rest is the network's


@dataclass(frozen=True)
class _Kept:
    """A window's logits from row ``top`` on."""

    logits: NDArray[np.float32]
    top: int


class _Side:
    """The windows along one axis, and which tiles touch them.

    Tiles and windows both go upwards: the tiles that a window touches are neighbours, and so are a tile's windows.
    """

    def __init__(self, axes: list[ResampleMatrix]) -> None:
        touches = np.array([[matrix.size > 0 for _, matrix in axis.blocks] for axis in axes])  # (windows, tiles)
        self.axes = axes
        self.windows = [np.flatnonzero(column).tolist() for column in touches.T]  # of each tile
        self._last = [windows[-1] for windows in self.windows]  # of each tile
        # Of each window: the one with which the last of its tiles is decided.
        self._ends = [self._last[np.flatnonzero(row)[-1]] if row.any() else i for i, row in enumerate(touches)]

    def ready(self, seen: int) -> list[int]:
        """The tiles that window ``seen`` is the last of."""
        return [tile for tile, last in enumerate(self._last) if last == seen]

    def ending(self, seen: int) -> list[int]:
        """The windows whose tiles are all decided when ``seen`` is done, and not before."""
        return [window for window, end in enumerate(self._ends) if end == seen]

    def needed_from(self, window: int, seen: int) -> int | None:
        """The first logit of a window that is needed after window ``seen`` is done; None: none of them."""
        for tile, windows in enumerate(self.windows):
            if self._last[tile] > seen and window in windows:
                return int(self.axes[window].blocks[tile][0].start)
        return None


def slide(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    inference: Inference,
    network: Network,
    requested: RequestedOutputs,
    threads: int | None,
) -> Slid:
    """Move the network over ``image`` and decide each pixel.

    Args:
        image: HWC uint8 BGR, as large as the network is to see it.
        size: (height, width) of the result.
        inference: of mode "slide".
    """
    return _Slide(image, size, inference, network, requested).run(threads)


class _Slide:
    def __init__(
        self,
        image: NDArray[np.uint8],
        size: tuple[int, int],
        inference: Inference,
        network: Network,
        requested: RequestedOutputs,
    ) -> None:
        assert inference.crop is not None and inference.stride is not None  # Inference checks it
        self._image, self._size, self._network, self._requested = image, size, network, requested
        self._spans = [window_starts(image.shape[i], inference.crop[i], inference.stride[i]) for i in (0, 1)]
        self._kept: dict[tuple[int, int], _Kept] = {}  # by row and column of windows
        self._painting = 0.0

    def run(self, threads: int | None) -> Slid:
        rows, cols = self._spans
        with tile_workers(threads) as run:
            for r, (top, bottom) in enumerate(rows):
                for c, (left, right) in enumerate(cols):
                    logits = self._network(self._image[top:bottom, left:right])
                    if not r and not c:
                        self._begin(logits)
                    self._kept[r, c] = _Kept(logits, 0)
                    start = time.perf_counter()
                    self._paint(r, c, run)
                    self._forget(r, c)
                    self._painting += time.perf_counter() - start
        return Slid(self._canvas, self._painting)

    def _begin(self, logits: NDArray[np.float32]) -> None:
        """All windows are of one size, and so are their logits: the first tells what is to come."""
        classes, *low = logits.shape
        resized = (self._image.shape[0], self._image.shape[1])
        rows, cols = slide_matrices((low[0], low[1]), self._spans[0], self._spans[1], resized, self._size)
        self._rows, self._cols = _Side(rows), _Side(cols)
        self._canvas = Canvas((classes, *self._size), self._requested, averaged=False)

    def _paint(self, r: int, c: int, run: Run) -> None:
        """The tiles for which the window (r, c) was the last."""
        rows, cols = self._rows.ready(r), self._cols.ready(c)
        if rows and cols:
            paint(self._canvas.arrays, rows, cols, self._find, self._canvas.make, run)

    def _find(self, i: int, tiles: Sequence[int]) -> Iterable[list[list[Patch]]]:
        strips = []
        for r in self._rows.windows[i]:
            y, rows = self._rows.axes[r].blocks[i]
            for c in sorted({window for j in tiles for window in self._cols.windows[j]}):
                kept = self._kept[r, c]
                taps = kept.logits[:, y.start - kept.top : y.stop - kept.top]
                strips.append(Strip(taps, rows, [self._cols.axes[c].blocks[j] for j in tiles]))
        return ([patches] for patches in patches_side_by_side(strips))

    def _forget(self, r: int, c: int) -> None:
        """Drop what no later tile needs of the columns of windows that end with this one."""
        for column in self._cols.ending(c):
            for row in [row for row, other in self._kept if other == column]:
                self._trim(row, column, r)

    def _trim(self, row: int, column: int, seen: int) -> None:
        first = self._rows.needed_from(row, seen)
        if first is None:
            del self._kept[row, column]
            return
        kept = self._kept[row, column]
        if first > kept.top:
            # A copy: a view would keep the whole window alive.
            self._kept[row, column] = _Kept(kept.logits[:, first - kept.top :].copy(), first)

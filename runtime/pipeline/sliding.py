"""Sliding windows over an image of any size, in memory that grows with its width and not with its area.

The windows go row by row, left to right. A tile of the image is decided as soon as the last window that it needs has
been seen; a window's logits are kept whole until the tiles on its right edge are decided, and from then on only those
rows that the next row of windows overlaps. Logits are averaged where windows overlap, as in upstream's slide mode, and
in the same order as `denseport.runtime.pipeline.resample.slide_maps`: the results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.pipeline.reduce import Canvas, Decision, Run, Strip, paint_tiles, tile_workers
from denseport.runtime.pipeline.resample import Placement, ResampleMatrix, slide_matrices
from denseport.runtime.pipeline.results import RequestedOutputs
from denseport.runtime.pipeline.views import Span

__all__ = ["slide"]

Spans = tuple[Sequence[Span], Sequence[Span]]  # of the windows, along the rows and along the columns


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
    logits: Iterable[NDArray[np.float32]],
    spans: Spans,
    place: Placement,
    requested: RequestedOutputs,
    decision: Decision,
    threads: int | None,
) -> Canvas:
    """Decide each pixel of an image from the logits of its windows, one after another.

    Args:
        logits: (C, h, w) of each window, row by row; the next is asked for when the last one was used up.
        spans: of the windows, as `denseport.runtime.pipeline.views.windows` gives them.
        place: where the image lies in what the windows show.
    """
    sliding = _Sliding(spans, place, requested, decision)
    places = [(r, c) for r in range(len(spans[0])) for c in range(len(spans[1]))]
    with tile_workers(threads) as run:
        for (r, c), found in zip(places, logits, strict=True):
            sliding.take(r, c, found, run)
    return sliding.canvas


class _Sliding:
    def __init__(self, spans: Spans, place: Placement, requested: RequestedOutputs, decision: Decision) -> None:
        self._spans, self._place, self._requested, self._decision = spans, place, requested, decision
        self._kept: dict[tuple[int, int], _Kept] = {}  # by row and column of windows

    def take(self, r: int, c: int, logits: NDArray[np.float32], run: Run) -> None:
        """Paint the tiles for which this window was the last, and drop what no later tile needs."""
        if (r, c) == (0, 0):
            self._begin(logits)
        self._kept[r, c] = _Kept(logits, 0)
        rows, cols = self._rows.ready(r), self._cols.ready(c)
        paint_tiles(self.canvas.outs, rows, cols, self._strips, self.canvas.reduce, run)
        for column in self._cols.ending(c):  # with this window all tiles of these columns of windows are decided
            for row in [row for row, other in self._kept if other == column]:
                self._trim(row, column, r)

    def _begin(self, logits: NDArray[np.float32]) -> None:
        """All windows are of one size, and so are their logits: the first tells what is to come."""
        classes, *low = logits.shape
        matrices = slide_matrices((low[0], low[1]), *self._spans, self._place)
        self._rows, self._cols = _Side(matrices[0]), _Side(matrices[1])
        self.canvas = Canvas((classes, *self._place.size), self._requested, self._decision)

    def _strips(self, i: int, tiles: Sequence[int]) -> list[list[Strip]]:
        strips = []
        for r in self._rows.windows[i]:
            y, rows = self._rows.axes[r].blocks[i]
            for c in sorted({window for j in tiles for window in self._cols.windows[j]}):
                kept = self._kept[r, c]
                taps = kept.logits[:, y.start - kept.top : y.stop - kept.top]
                strips.append(Strip(taps, rows, [self._cols.axes[c].blocks[j] for j in tiles]))
        return [strips]

    def _trim(self, row: int, column: int, seen: int) -> None:
        first = self._rows.needed_from(row, seen)
        if first is None:
            del self._kept[row, column]
            return
        kept = self._kept[row, column]
        if first != kept.top:
            # A copy: a view would keep the whole window alive.
            self._kept[row, column] = _Kept(kept.logits[:, first - kept.top :].copy(), first)

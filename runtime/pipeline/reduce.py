"""From logit maps to what was asked for, in one pass over the tiles of the image.

For each tile the patches of logits that it touches are resampled to its pixels and reduced at once: to the class of
each pixel, its score, its likeliest classes. The logits are never held at the image's size.

Everywhere: C classes, patches of (sh, sw) logits, tiles of (th, tw) pixels, `TILE` a side but at the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from math import ceil, isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.resample import TILE, LogitMap
from denseport.runtime.pipeline.results import MASK_ONLY, RequestedOutputs
from denseport.runtime.system.cpus import check_threads, usable_cpus

__all__ = [
    "LOGITS",
    "Canvas",
    "Decision",
    "Patch",
    "Reduce",
    "Run",
    "Strip",
    "decide",
    "dense",
    "mean_softmax",
    "paint_tiles",
    "reduce_maps",
    "tile_workers",
]

Floats = NDArray[np.float32]

# Logits: e**-25 = 1.4e-11, so that a thousand such classes add less than half of float32's last bit to a sum of 1.
NEGLIGIBLE = 25.0


class Strip(NamedTuple):
    """The part of one logit map that some tiles side by side touch."""

    taps: Floats  # (C, sh, w), a view
    rows: Floats  # (th, sh)
    blocks: Sequence[tuple[slice, Floats]]  # of each tile: columns of taps and (tw, sw); nothing where it touches none


class Patch(NamedTuple):
    """The part of one logit map that a tile touches."""

    taps: Floats  # (C, sh, sw), a view
    rows: Floats  # (th, sh)
    cols: Floats  # (tw, sw)
    low: Floats  # (C,), the smallest of each class's taps
    high: Floats  # (C,), the largest

    def resample(self, taps: Floats) -> Floats:
        """(K, sh, sw) -> (th, tw, K): the classes last, where numpy's argmax is fastest."""
        inner = np.ascontiguousarray(taps.T)  # (sw, sh, K)
        tall = np.matmul(self.rows, inner)  # (sw, th, K)
        wide: Floats = np.matmul(self.cols, tall.swapaxes(0, 1))  # (th, tw, K)
        return wide


Run = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]  # as the built-in map
Strips = Callable[[int, Sequence[int]], Sequence[Sequence[Strip]]]  # of each view: of a row of tiles and some columns
Reduce = Callable[[list[list[Patch]]], Sequence[NDArray[Any]]]  # a tile of each output, of each view's patches


@dataclass(frozen=True)
class Decision:
    """How the class of a pixel follows from its logits."""

    averaged: bool = False  # several views are averaged as probabilities; else the one view's logits decide
    # The probability above which a pixel is of the second of two classes. The first's logit is then a constant,
    # log(threshold / (1 - threshold)): the larger logit decides the same, and the probability is the second's sigmoid.
    threshold: float | None = None
    # Of the probabilities alone: the class of a pixel does not depend on it.
    temperature: float = 1.0

    def probabilities(self, values: Floats) -> Floats:
        """Softmax over the last axis, (th, tw, C), in place."""
        if self.threshold is not None:
            values[..., 0] = 0
        return _softmax(values)

    def best(self, chances: Floats) -> NDArray[np.intp]:
        """The class of each pixel, (th, tw), from the probabilities of all classes."""
        if self.threshold is not None:
            return np.asarray(chances[..., 1] > self.threshold).astype(np.intp)
        return np.asarray(np.argmax(chances, -1))

    def tempered(self, chances: Floats) -> Floats:
        """The probabilities (th, tw, C) at the temperature: of one view the softmax of its logits / temperature.

        A power of the probabilities, which is that softmax; so it is defined for means of several views too.
        """
        if self.temperature == 1:
            return chances
        # The largest is 1: powers of small ones would be 0 all together.
        chances = (chances / chances.max(-1, keepdims=True)) ** np.float32(1 / self.temperature)
        chances /= chances.sum(-1, keepdims=True)
        return chances


LOGITS = Decision()  # of the one view, the largest decides


class Canvas:
    """The arrays of a result, painted tile by tile.

    Args:
        shape: classes, height, width.
    """

    def __init__(self, shape: tuple[int, int, int], requested: RequestedOutputs, decision: Decision) -> None:
        classes, *size = shape
        requested.check(classes)
        kind, k = np.min_scalar_type(classes - 1), requested.top_k
        self.mask: NDArray[np.unsignedinteger[Any]] = np.empty(size, kind)
        self.scores = np.empty(size, np.float32) if requested.scores else None
        self.top_classes = np.empty((k, *size), kind) if k else None
        self.top_scores = np.empty((k, *size), np.float32) if k else None
        tops = [np.moveaxis(top, 0, -1) for top in (self.top_classes, self.top_scores) if top is not None]
        self.outs = [self.mask, *([self.scores] if self.scores is not None else []), *tops]  # each (H, W, ...)
        if requested != MASK_ONLY:
            self.reduce: Reduce = partial(_ranked, requested=requested, decision=decision)
        else:
            self.reduce = partial(_likeliest, decision=decision) if decision.averaged else _winners


def decide(
    views: Sequence[Sequence[LogitMap]],
    requested: RequestedOutputs = MASK_ONLY,
    decision: Decision = LOGITS,
    *,
    threads: int | None = None,
) -> Canvas:
    """The result of a whole image from its views' logits; arguments as for `Canvas` and `tile_workers`.

    The probabilities are those of the logits at the image's own size, after all of upstream's resizing. The first of
    equal classes wins, equal up to float32 rounding: BLAS does not sum all classes in the same order. Logits that are
    not finite count as in ``numpy.argmax`` of the resized logits (NaN wins), except that a tap of weight zero counts
    for nothing, where torch would make 0 * inf a NaN.
    """
    canvas = Canvas(_common_shape(views), requested, decision)
    reduce_maps(canvas.outs, views, canvas.reduce, threads)
    return canvas


def reduce_maps(
    outs: Sequence[NDArray[Any]], views: Sequence[Sequence[LogitMap]], make: Reduce, threads: int | None = None
) -> None:
    """Fill each array (H, W, ...) of ``outs`` tile by tile with what ``make`` makes of the views' patches."""
    height, width = _common_shape(views)[1:]
    # Each map's blocks are looked up here, once: a property that is computed at the first access, in whatever thread.
    bands = [[(m.logits, m.rows.blocks, m.cols.blocks) for m in maps] for maps in views]

    def strips(i: int, tiles: Sequence[int]) -> list[list[Strip]]:
        found = [
            [
                Strip(logits[:, rows[i][0]], rows[i][1], [cols[j] for j in tiles])
                for logits, rows, cols in view
                if rows[i][1].size
            ]
            for view in bands
        ]
        if not all(found):
            raise InputError(f"no logits cover the pixels from row {i * TILE}")
        return found

    with tile_workers(threads) as run:
        paint_tiles(outs, range(ceil(height / TILE)), range(ceil(width / TILE)), strips, make, run)


def _common_shape(views: Sequence[Sequence[LogitMap]]) -> tuple[int, int, int]:
    """The (C, H, W) of all logit maps."""
    shapes = {(len(each.logits), each.rows.n_out, each.cols.n_out) for maps in views for each in maps}
    if len(shapes) != 1:
        raise InputError(f"expected logit maps of one shape (C, H, W), found {sorted(shapes)}")
    return shapes.pop()


def paint_tiles(
    outs: Sequence[NDArray[Any]], rows: Iterable[int], cols: Sequence[int], strips: Strips, make: Reduce, run: Run
) -> None:
    """Fill the tiles in ``rows`` x ``cols`` of each array (H, W, ...) of ``outs``.

    Args:
        strips: the strips of each view that a row of tiles touches.
        make: one array, broadcast over the tile, for each of ``outs``, from the tile's patches of each view.
        run: of `tile_workers`; works on the rows of tiles.
    """

    def paint_row(i: int) -> None:
        views = [_patches(view, len(cols)) for view in strips(i, cols)]
        for j, *patches in zip(cols, *views, strict=True):
            if not all(patches):
                raise InputError(f"no logits cover the pixels from row {i * TILE}, column {j * TILE}")
            for out, tile in zip(outs, make(patches), strict=True):
                out[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE] = tile

    for _ in run(paint_row, rows):
        pass  # raises what a row raised


def _patches(strips: Sequence[Strip], tiles: int) -> list[list[Patch]]:
    """The patches of each tile, in the order of the strips.

    Tiles overlap in the logits that they touch: the smallest and largest of a strip's rows are found once for all, and
    kept with the classes last, along which numpy compares many at a time.
    """
    found: list[list[Patch]] = [[] for _ in range(tiles)]
    for taps, rows, blocks in strips:
        low, high = np.ascontiguousarray(taps.min(1).T), np.ascontiguousarray(taps.max(1).T)  # (w, C)
        for patches, (x, cols) in zip(found, blocks, strict=True):
            if cols.size:
                patches.append(Patch(taps[:, :, x], rows, cols, low[x].min(0), high[x].max(0)))
    return found


@contextmanager
def tile_workers(threads: int | None) -> Iterator[Run]:
    """Threads for painting; by default one for each CPU that this process may use.

    Raises:
        InputError: fewer than one.
    """
    threads = check_threads(threads) or usable_cpus()
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads, "denseport-tiles") as pool:
        yield pool.map


# What is made of a tile's patches: one list of them a view.


def _winners(views: list[list[Patch]]) -> Sequence[NDArray[Any]]:
    """The winning class of each pixel, (th, tw), or (1,) where one class wins everywhere."""
    (patches,) = views
    low, high, finite = _bounds(patches)
    if not finite:
        return [np.argmax(dense(patches), -1)]
    classes = np.flatnonzero(high >= low.max())  # ascending, so that the first of equal classes wins
    if len(classes) > 1:
        classes = classes[np.argmax(_resampled(patches, classes), -1)]
    return [classes]


def _likeliest(views: list[list[Patch]], *, decision: Decision) -> Sequence[NDArray[Any]]:
    """The class of the highest mean probability of each pixel, (th, tw)."""
    return [decision.best(mean_softmax(views, decision))]


def _ranked(views: list[list[Patch]], requested: RequestedOutputs, *, decision: Decision) -> Sequence[NDArray[Any]]:
    """The class of each pixel, and what else was requested, by probability: the mean softmax of the views."""
    if decision.averaged or decision.threshold is not None:
        ranks = mean_softmax(views, decision)
        classes = np.arange(ranks.shape[-1])
    else:
        classes, ranks = _undecided(views[0], requested.top_k, decision.temperature)
    # Before the probabilities: they round more logits to equal ones, and the temperature has no say in the order.
    best = decision.best(ranks)[..., None]
    # Stable, so that the first of equal classes comes first, as in the mask.
    order = np.argsort(-ranks, axis=-1, kind="stable")[..., : requested.top_k] if requested.top_k else None
    if decision.averaged or decision.threshold is not None:
        chances = decision.tempered(ranks)
    else:
        chances = _softmax(ranks / np.float32(decision.temperature))
    tile: list[NDArray[Any]] = [classes[best[..., 0]]]
    if requested.scores:
        tile.append(np.take_along_axis(chances, best, -1)[..., 0])
    if order is not None:
        tile += [classes[order], np.take_along_axis(chances, order, -1)]
    return tile


def _bounds(patches: list[Patch]) -> tuple[Floats, Floats, bool]:
    """Each class's smallest and largest logit in a tile, (C,), and whether all of them are finite."""
    low, high = patches[0].low, patches[0].high
    for patch in patches[1:]:
        low, high = np.minimum(low, patch.low), np.maximum(high, patch.high)
    return low, high, isfinite(low.min()) and isfinite(high.max())  # a NaN is the smallest and the largest


def _resampled(patches: list[Patch], classes: NDArray[np.intp]) -> Floats:
    """The logits of some classes of a tile, (th, tw, K): the sum of what its patches give."""
    return reduce(np.add, (patch.resample(patch.taps[classes]) for patch in patches))


def _undecided(patches: list[Patch], least: int, temperature: float) -> tuple[NDArray[np.intp], Floats]:
    """The classes that matter to the probabilities of a tile, (K,) ascending, and their logits, (th, tw, K).

    A class whose largest logit lies `NEGLIGIBLE` x temperature below another's smallest adds less than float32 can
    hold. No fewer are kept at a low temperature, so that the likeliest classes are always the same.

    Args:
        least: classes to keep; all are kept where fewer matter.
    """
    low, high, finite = _bounds(patches)
    if finite:
        kept = np.flatnonzero(high >= low.max() - NEGLIGIBLE * max(1.0, temperature))
        if len(kept) >= least:
            return kept, _resampled(patches, kept)
    return np.arange(len(low)), dense(patches)


def dense(patches: list[Patch]) -> Floats:
    """All logits of a tile, (th, tw, C), finite or not."""
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as it is in torch
        return reduce(np.add, map(_resample_any, patches))


def _resample_any(patch: Patch) -> Floats:
    """All logits of a patch, (th, tw, C). A plain product would spread 0 * inf over the whole tile."""
    finite = np.isfinite(patch.taps)
    if finite.all():
        return patch.resample(patch.taps)
    values = patch.resample(np.where(finite, patch.taps, np.float32(0)))
    for special in (np.inf, -np.inf):
        values[patch.resample((patch.taps == special).astype(np.float32)) > 0] += special
    values[patch.resample(np.isnan(patch.taps).astype(np.float32)) > 0] = np.nan
    return values


def mean_softmax(views: list[list[Patch]], decision: Decision = LOGITS) -> Floats:
    """The mean of the probabilities of a tile's views, (th, tw, C)."""
    mean: Floats = reduce(np.add, (decision.probabilities(dense(patches)) for patches in views))
    mean /= len(views)
    return mean


def _softmax(values: Floats) -> Floats:
    """Softmax over the last axis, in place."""
    with np.errstate(invalid="ignore"):  # inf - inf: the whole pixel becomes NaN, as in torch
        values -= values.max(-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(-1, keepdims=True)
    return values

"""What is done with one tile of an image: from the logits that it touches to classes or probabilities.

A tile's size is `TILE` pixels a side. Everywhere: C classes, patches of (sh, sw) logits, tiles of (th, tw) pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.system.cpus import usable_cpus

__all__ = [
    "TILE",
    "Find",
    "Make",
    "Patch",
    "Run",
    "Strip",
    "dense",
    "mean_softmax",
    "paint",
    "patches_side_by_side",
    "softmax",
    "tile_workers",
    "undecided",
    "winners",
]

Floats = NDArray[np.float32]

# Pixels a side. 48 was the best of 16, 32, 48 and 64 in the cases of scripts/bench/postprocess.py taken
# together: small tiles drop more classes, large ones spend less on Python. Its products are still below the
# size from which OpenBLAS uses threads of its own, so tiles run side by side without oversubscription.
TILE = 48
# Logits: e**-25 = 1.4e-11, so that a thousand such classes add less than half of float32's last bit to a sum of 1.
NEGLIGIBLE = 25.0


class Patch(NamedTuple):
    """The part of one field that a tile of (th, tw) outputs touches."""

    taps: Floats  # (C, sh, sw), a view
    rows: Floats  # (th, sh)
    cols: Floats  # (tw, sw)
    low: Floats  # (C,), the smallest of each class's taps
    high: Floats  # (C,), the largest

    def resize(self, taps: Floats) -> Floats:
        """(K, sh, sw) -> (th, tw, K): the classes last, where numpy's argmax is fastest."""
        inner = np.ascontiguousarray(taps.T)  # (sw, sh, K)
        tall = np.matmul(self.rows, inner)  # (sw, th, K)
        wide: Floats = np.matmul(self.cols, tall.swapaxes(0, 1))  # (th, tw, K)
        return wide


class Strip(NamedTuple):
    """The part of one field that some tiles side by side touch."""

    taps: Floats  # (C, sh, w), a view
    rows: Floats  # (th, sh)
    blocks: Sequence[tuple[slice, Floats]]  # of each tile: columns of taps and (tw, sw); nothing where it touches none


Run = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]  # as the built-in map
Make = Callable[[list[list[Patch]]], Sequence[NDArray[Any]]]  # of each view's patches
Find = Callable[[int, Sequence[int]], Iterable[list[list[Patch]]]]  # each tile's, of a row of tiles and some columns


def patches_side_by_side(strips: Sequence[Strip]) -> list[list[Patch]]:
    """The patches of each tile, in the order of the strips.

    Tiles overlap in the logits that they touch: the smallest and largest of a strip's rows are found once for all, and
    kept with the classes last, along which numpy compares many at a time.
    """
    found: list[list[Patch]] = [[] for _ in strips[0].blocks] if strips else []
    for taps, rows, blocks in strips:
        low, high = np.ascontiguousarray(taps.min(1).T), np.ascontiguousarray(taps.max(1).T)  # (w, C)
        for patches, (x, cols) in zip(found, blocks, strict=True):
            if cols.size:
                patches.append(Patch(taps[:, :, x], rows, cols, low[x].min(0), high[x].max(0)))
    return found


def _bounds(patches: list[Patch]) -> tuple[Floats, Floats, bool]:
    """Each class's smallest and largest logit in a tile, (C,), and whether all of them are finite."""
    low, high = patches[0].low, patches[0].high
    for patch in patches[1:]:
        low, high = np.minimum(low, patch.low), np.maximum(high, patch.high)
    return low, high, isfinite(low.min()) and isfinite(high.max())  # both hand on a NaN


def winners(patches: list[Patch]) -> NDArray[np.intp]:
    """The winning class of each pixel of a tile, (th, tw), or (1,) where one class wins everywhere."""
    low, high, finite = _bounds(patches)
    if not finite:
        return np.asarray(np.argmax(dense(patches), -1))
    classes = np.flatnonzero(high >= low.max())  # ascending, so that the first of equal classes wins
    if len(classes) > 1:
        values: Floats = reduce(np.add, (patch.resize(patch.taps[classes]) for patch in patches))
        classes = classes[np.argmax(values, -1)]
    return classes


def dense(patches: list[Patch]) -> Floats:
    """All logits of a tile, (th, tw, C), finite or not."""
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as it is in torch
        return reduce(np.add, map(_resize_any, patches))


def _resize_any(patch: Patch) -> Floats:
    """All logits of a patch, (th, tw, C). A plain product would spread 0 * inf over the whole tile."""
    finite = np.isfinite(patch.taps)
    if finite.all():
        return patch.resize(patch.taps)
    values = patch.resize(np.where(finite, patch.taps, np.float32(0)))
    for special in (np.inf, -np.inf):
        values[patch.resize((patch.taps == special).astype(np.float32)) > 0] += special
    values[patch.resize(np.isnan(patch.taps).astype(np.float32)) > 0] = np.nan
    return values


def mean_softmax(views: list[list[Patch]]) -> Floats:
    """The mean softmax of a tile's views, (th, tw, C)."""
    mean: Floats = reduce(np.add, (softmax(dense(patches)) for patches in views))
    mean /= len(views)
    return mean


def softmax(values: Floats) -> Floats:
    """Softmax over the last axis, in place."""
    with np.errstate(invalid="ignore"):  # inf - inf: the whole pixel becomes NaN, as in torch
        values -= values.max(-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(-1, keepdims=True)
    return values


def undecided(patches: list[Patch], least: int) -> tuple[NDArray[np.intp], Floats]:
    """The classes that matter to the probabilities of a tile, (K,) ascending, and their logits, (th, tw, K).

    A class whose largest logit lies `NEGLIGIBLE` below another's smallest adds less than float32 can hold.

    Args:
        least: classes to keep; all are kept where fewer matter.
    """
    low, high, finite = _bounds(patches)
    if finite:
        kept = np.flatnonzero(high >= low.max() - NEGLIGIBLE)
        if len(kept) >= least:
            values: Floats = reduce(np.add, (patch.resize(patch.taps[kept]) for patch in patches))
            return kept, values
    return np.arange(len(low)), dense(patches)


def paint(
    outs: Sequence[NDArray[Any]],
    rows: Iterable[int],
    cols: Sequence[int],
    find: Find,
    make: Make,
    run: Run,
) -> None:
    """Fill the tiles in ``rows`` x ``cols`` of each array (H, W, ...) of ``outs``.

    Args:
        find: the patches of each view that each tile of a row touches.
        make: one array, broadcast over the tile, for each of ``outs``, from those patches.
        run: of `tile_workers`; works on the rows of tiles.
    """

    def paint_strip(i: int) -> None:
        for j, views in zip(cols, find(i, cols), strict=True):
            for out, tile in zip(outs, make(views), strict=True):
                out[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE] = tile

    for _ in run(paint_strip, rows):
        pass  # raises what a strip raised


@contextmanager
def tile_workers(threads: int | None) -> Iterator[Run]:
    """Threads for `paint`; by default one for each CPU that this process may use.

    Raises:
        InputError: fewer than one.
    """
    if threads is None:
        threads = usable_cpus()
    if threads < 1:
        raise InputError(f"threads must be at least 1, found {threads}", "Give 1 or more, or None for all.")
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads, "denseport-tiles") as pool:
        yield pool.map

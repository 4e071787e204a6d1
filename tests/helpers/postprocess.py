"""Logit maps at the image's full size, for comparisons: 4 * C * H * W bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.pipeline import resample
from denseport.runtime.pipeline.reduce import decide, dense, mean_softmax, reduce_maps
from denseport.runtime.pipeline.resample import LogitMap, Placement, ResampleMatrix

__all__ = ["ResampleMatrix", "argmax", "logits", "probabilities", "slide_maps", "whole_map"]


Size = tuple[int, int]  # height, width
Spans = Sequence[tuple[int, int]]


def whole_map(logits: NDArray[np.float32], resized: Size, size: Size, **more: Any) -> LogitMap:
    """Of a `Placement` of these sizes."""
    return resample.whole_map(logits, Placement(resized, size, **more))


def slide_maps(
    logits: Sequence[NDArray[np.float32]], rows: Spans, cols: Spans, resized: Size, size: Size, **more: Any
) -> list[LogitMap]:
    """Of a `Placement` of these sizes."""
    return resample.slide_maps(logits, rows, cols, Placement(resized, size, **more))


def argmax(maps: Sequence[LogitMap], *, threads: int | None = None) -> NDArray[np.unsignedinteger[Any]]:
    """The class of each pixel, (H, W)."""
    return decide([maps], threads=threads).mask


def logits(maps: Sequence[LogitMap], *, threads: int | None = None) -> NDArray[np.float32]:
    """All logits, (C, H, W)."""
    return _full([maps], lambda views: [dense(views[0])], threads)


def probabilities(views: Sequence[Sequence[LogitMap]], *, threads: int | None = None) -> NDArray[np.float32]:
    """The views' mean softmax, (C, H, W)."""
    return _full(views, lambda views: [mean_softmax(views)], threads)


def _full(views: Sequence[Sequence[LogitMap]], make: Any, threads: int | None) -> NDArray[np.float32]:
    first = views[0][0]
    full = np.empty((len(first.logits), first.rows.n_out, first.cols.n_out), np.float32)
    reduce_maps([np.moveaxis(full, 0, -1)], views, make, threads)
    return full

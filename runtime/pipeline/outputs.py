"""From logits to what was asked for: the mask, the scores, the likeliest classes; tile by tile, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.resample import LogitMap, common_shape, paint_maps
from denseport.runtime.pipeline.tiles import Make, Patch, mean_softmax, softmax, undecided, winners

__all__ = ["MASK_ONLY", "Canvas", "RequestedOutputs", "decide"]


@dataclass(frozen=True)
class RequestedOutputs:
    """What a caller wants beside the mask."""

    scores: bool = False  # the probability of each pixel's class
    top_k: int = 0  # so many likeliest classes and their probabilities

    def check(self, classes: int) -> None:
        """Raises InputError for more classes than there are, or no number of them."""
        whole = isinstance(self.top_k, int | np.integer) and not isinstance(self.top_k, bool)
        if not whole or not 0 <= self.top_k <= classes:
            raise InputError(f"top_k {self.top_k} of {classes} classes", f"Give 0 to {classes}.")


MASK_ONLY = RequestedOutputs()


class Canvas:
    """The arrays of a result, to be painted tile by tile.

    Args:
        shape: classes, height, width.
        averaged: several views are averaged as probabilities (multi-scale and flip); else the one view's logits decide.
    """

    def __init__(self, shape: tuple[int, int, int], requested: RequestedOutputs, *, averaged: bool) -> None:
        classes, *size = shape
        requested.check(classes)
        kind = np.min_scalar_type(classes - 1)
        self._requested, self._averaged = requested, averaged
        self.mask: NDArray[np.unsignedinteger[Any]] = np.empty(size, kind)
        self.scores = np.empty(size, np.float32) if requested.scores else None
        self.top_classes = np.empty((requested.top_k, *size), kind) if requested.top_k else None
        self.top_scores = np.empty((requested.top_k, *size), np.float32) if requested.top_k else None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """What `make` paints, each as (H, W, ...)."""
        tops = [np.moveaxis(top, 0, -1) for top in (self.top_classes, self.top_scores) if top is not None]
        return [self.mask, *([self.scores] if self.scores is not None else []), *tops]

    @property
    def make(self) -> Make:
        """Makes a tile of `arrays`."""
        if self._requested != MASK_ONLY:
            return self._ranked
        if self._averaged:
            return lambda views: [np.argmax(mean_softmax(views), -1)]
        return lambda views: [winners(views[0])]

    def _ranked(self, views: list[list[Patch]]) -> Sequence[NDArray[Any]]:
        """The classes of a tile by probability: the mean softmax of the views, as the mask is decided by."""
        if self._averaged:
            chances = mean_softmax(views)
            classes = np.arange(chances.shape[-1])
        else:
            classes, values = undecided(views[0], self._requested.top_k)
            chances = softmax(values)
        best = np.argmax(chances, -1)[..., None]
        tile: list[NDArray[Any]] = [classes[best[..., 0]]]
        if self._requested.scores:
            tile.append(np.take_along_axis(chances, best, -1)[..., 0])
        if self._requested.top_k:
            # Stable, so that the first of equal classes comes first, as in the mask.
            order = np.argsort(-chances, axis=-1, kind="stable")[..., : self._requested.top_k]
            tile += [classes[order], np.take_along_axis(chances, order, -1)]
        return tile


def decide(
    views: Sequence[Sequence[LogitMap]], requested: RequestedOutputs, *, averaged: bool, threads: int | None
) -> Canvas:
    """The result of a whole image from its views' logits; arguments as for `Canvas`.

    The probabilities are those of the logits at the image's own size, after all of upstream's resizing.
    """
    canvas = Canvas(common_shape(views), requested, averaged=averaged)
    paint_maps(canvas.arrays, views, canvas.make, threads)
    return canvas

"""Steadier masks for video: an exponential average of the logits over time."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.resample import LogitMap

__all__ = ["Smoother"]

THUMBNAIL = (32, 32)
# Mean absolute difference of two frames' thumbnails, grey levels, above which the scene is another. Between neighbours
# of a moving camera it stays below 10; two unrelated photographs differ by 40 to 80.
CUT = 25.0


class Smoother:
    """Averages each frame's logits with those before it: ``mean = weight * mean + (1 - weight) * logits``.

    It works at the network's resolution, before logits become classes. A scene cut, or a frame of another size,
    begins anew. Frames must come in order, from one thread.

    Args:
        weight: of the past, 0 (no smoothing) to below 1; 0.6 halves a change's delay of two frames.

    Raises:
        InputError: a weight outside [0, 1).
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise InputError(f"smoothing {weight} is not in [0, 1)", "0.6 is usual; 0 smooths nothing.")
        self._weight = weight
        self._mean: list[list[LogitMap]] | None = None
        self._thumbnail: NDArray[np.float32] | None = None

    def __call__(self, views: list[list[LogitMap]], image: NDArray[np.uint8]) -> list[list[LogitMap]]:
        """The averaged logits of a frame.

        Args:
            views: of `Segmenter.predict`.
            image: the frame, (H, W, 3) uint8.
        """
        thumbnail = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        if self._mean is not None and self._continues(views, thumbnail):
            views = [
                [self._average(old, new) for old, new in zip(*pair, strict=True)]
                for pair in zip(self._mean, views, strict=True)
            ]
        self._mean, self._thumbnail = views, thumbnail
        return views

    def _continues(self, views: list[list[LogitMap]], thumbnail: NDArray[np.float32]) -> bool:
        assert self._mean is not None and self._thumbnail is not None
        if [[_shape(field) for field in view] for view in self._mean] != [[_shape(f) for f in view] for view in views]:
            return False
        return float(np.abs(thumbnail - self._thumbnail).mean()) <= CUT

    def _average(self, old: LogitMap, new: LogitMap) -> LogitMap:
        width = new.logits.shape[-1]
        # A new array: the old one may still be on its way to a mask in another thread.
        mean = cv2.addWeighted(
            old.logits.reshape(-1, width), self._weight, new.logits.reshape(-1, width), 1 - self._weight, 0.0
        )
        return LogitMap(np.asarray(mean, np.float32).reshape(new.logits.shape), new.rows, new.cols)


def _shape(field: LogitMap) -> tuple[int, ...]:
    return (*field.logits.shape, field.rows.n_out, field.cols.n_out)

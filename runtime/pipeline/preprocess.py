"""From an image to the network's input, pixel for pixel what mmsegmentation computes: a bundle's steps, carried out.

Sources: ``mmcv/image/geometric.py`` (imrescale, _scale_size), ``mmseg``'s Resize and SegDataPreProcessor.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.preprocessing import Preprocessing, normalisation, resizing

__all__ = ["levels", "normalise", "rescaled_size", "resize", "resized_size"]


def rescaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) times a factor, rounded half up as mmcv does, at least one pixel each."""
    height, width = size
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resized_size(size: tuple[int, int], preprocess: Preprocessing) -> tuple[int, int]:
    """(height, width) of the network's input for an image of ``size`` (height, width).

    With ``keep_ratio`` the image becomes as large as fits the step's size: its longer side into the larger number,
    its shorter side into the smaller one.
    """
    step = resizing(preprocess)
    if step is None:
        return size
    if not step.keep_ratio:
        width, height = step.size
        return height, width
    return rescaled_size(size, min(max(step.size) / max(size), min(step.size) / min(size)))


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """HWC uint8 to ``size`` (height, width), bilinear on grey levels; unchanged where it has that size."""
    if image.shape[:2] == size:
        return image
    resized: NDArray[np.uint8] = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return resized


def normalise(image: NDArray[np.uint8], preprocess: Preprocessing) -> NDArray[np.float32]:
    """HWC uint8 BGR to (1, 3, H, W) float32: channel order, (x - mean) / std.

    A table of the 256 grey levels gives the same bits as the arithmetic, and writes each channel once.
    """
    out = np.empty((1, 3, *image.shape[:2]), np.float32)
    order: Sequence[int] = (2, 1, 0) if normalisation(preprocess).bgr_to_rgb else (0, 1, 2)
    for c, table in enumerate(levels(preprocess)):
        cv2.LUT(cv2.extractChannel(image, order[c]), table, dst=out[0, c])
    return out


def levels(preprocess: Preprocessing) -> NDArray[np.float32]:
    """What each grey level becomes in each channel of the network's input: (3, 256) float32, (level - mean) / std."""
    step = normalisation(preprocess)
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (step.mean, step.std))
    return (np.arange(256, dtype=np.float32) - mean) / std

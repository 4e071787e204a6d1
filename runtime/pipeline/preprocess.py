"""From an image to the network's input, pixel for pixel what mmsegmentation computes: a bundle's steps, carried out.

Images are (H, W, 3) BGR, uint8 [0, 255], or float32 where the bundle resizes without rounding. Sources:
``mmcv/image/{geometric,photometric}.py`` (imresize, impad) and ``mmseg``'s SegDataPreProcessor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.preprocessing import Preprocessing, loading, normalisation, paddings, size_steps
from denseport.runtime.bundle.steps import Pad

__all__ = ["fit_image", "fit_labels", "levels", "normalise"]

LabelMap = NDArray[np.uint8] | NDArray[np.uint16]  # the type's largest value: not counted
CV2 = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
}


def fit_image(image: NDArray[np.uint8], steps: Preprocessing, *, flip: bool = False) -> NDArray[Any]:
    """The image resized and padded as the steps before normalising say; not a copy where nothing changes.

    Args:
        image: (H, W, 3) uint8 BGR.
        flip: mirror it left to right, before the first padding.

    Returns:
        (h, w, 3) uint8 BGR, or float32.
    """
    load, shown = loading(steps), image
    if load.grey or len(normalisation(steps).mean) == 1:  # changes nothing where a grey file was read
        shown = cv2.cvtColor(cv2.cvtColor(shown, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)  # type: ignore[assignment]
    fitted: NDArray[Any] = shown.astype(np.float32) if load.float32 else shown
    for step in size_steps(steps):
        if isinstance(step, Pad):
            if flip:
                fitted, flip = np.ascontiguousarray(fitted[:, ::-1]), False
            fitted = _pad(fitted, step, step.mode, step.value)
        else:
            fitted = _resize(fitted, step.output(_size(fitted)), step.interpolation, step.library)
    return np.ascontiguousarray(fitted[:, ::-1]) if flip else fitted


def fit_labels(labels: LabelMap, steps: Preprocessing) -> NDArray[Any]:
    """Labels (H, W) where the network sees their pixels: the nearest one, the type's largest where pixels are added."""
    for step in (*size_steps(steps), *paddings(steps)):
        if isinstance(step, Pad):
            labels = _pad(labels, step, "constant", (np.iinfo(labels.dtype).max,) * 3)
        else:
            size = step.output(_size(labels))[::-1]
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
    return labels


def _size(image: NDArray[Any]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _resize(image: NDArray[Any], size: tuple[int, int], interpolation: str, library: str) -> NDArray[Any]:
    if image.shape[:2] == size:
        return image
    if library == "opencv":
        return cv2.resize(image, size[::-1], interpolation=CV2[interpolation])
    from denseport.runtime.pipeline import pillow_resize  # few bundles need it

    return pillow_resize.resize(image, size, interpolation)


def _pad(image: NDArray[Any], step: Pad, mode: str, value: Sequence[float]) -> NDArray[Any]:
    (top, bottom), (left, right) = step.added(_size(image))
    if not any((top, bottom, left, right)):
        return image
    return cv2.copyMakeBorder(image, top, bottom, left, right, BORDERS[mode], value=tuple(value))


def normalise(image: NDArray[Any], preprocess: Preprocessing) -> NDArray[np.float32]:
    """(H, W, 3) BGR to (1, C, H, W) float32: channel order, (x - mean) / std; C: 3, or 1 of grey images.

    A table of the 256 grey levels gives the same bits as the arithmetic, and writes each channel once.
    """
    step = normalisation(preprocess)
    out = np.empty((1, len(step.mean), *image.shape[:2]), np.float32)
    order: Sequence[int] = (2, 1, 0) if step.bgr_to_rgb else (0, 1, 2)
    for c, (table, mean, std) in enumerate(zip(levels(preprocess), step.mean, step.std, strict=True)):
        channel = cv2.extractChannel(image, order[c])
        if image.dtype == np.uint8:
            cv2.LUT(channel, table, dst=out[0, c])
        else:
            np.divide(channel - np.float32(mean), np.float32(std), out=out[0, c])
    return out


def levels(preprocess: Preprocessing) -> NDArray[np.float32]:
    """What each grey level becomes in each channel of the network's input: (C, 256) float32, (level - mean) / std."""
    step = normalisation(preprocess)
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (step.mean, step.std))
    return (np.arange(256, dtype=np.float32) - mean) / std

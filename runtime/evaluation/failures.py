"""The images that an artifact gets most wrong, run again and scaled down for a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.metrics import LabelMap
from denseport.runtime.evaluation.state import Measurement
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter

__all__ = ["WorstImage", "worst_images"]

_THUMBNAIL = 320  # px, of the longer side
# Of the map of differences, BGR; report.html has the same.
_LOST, _GAINED, _CHANGED = (30, 56, 217), (214, 131, 43), (0, 168, 224)


@dataclass(frozen=True)
class WorstImage:
    """An image that an artifact gets wrong, scaled for the page; its figures are of the full size."""

    name: str
    image: NDArray[np.uint8]  # (h, w, 3) BGR
    truth: LabelMap  # (h, w), the type's largest value is ignored
    mask: NDArray[Any]  # (h, w)
    fp32_mask: NDArray[Any] | None  # (h, w)
    accuracy: float  # percent of the labelled pixels; NaN where there are none
    fp32_accuracy: float | None
    disagreement: float | None  # percent of all pixels with another class than FP32's

    def difference(self) -> NDArray[np.uint8]:
        """(h, w, 3) BGR: the image in pale grey; on it the pixels that changed or, without FP32, that are wrong."""
        truth, mask, fp32 = self.truth, self.mask, self.fp32_mask
        grey = np.asarray(cv2.cvtColor(self.image, cv2.COLOR_BGR2GRAY)) // 3 + 160
        seen: NDArray[np.uint8] = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
        if fp32 is None:
            seen[(mask != truth) & (truth != np.iinfo(truth.dtype).max)] = _LOST
            return seen
        changed = mask != fp32
        seen[changed] = _CHANGED
        seen[changed & (fp32 == truth)] = _LOST
        seen[changed & (mask == truth)] = _GAINED
        return seen


def worst_images(
    dataset: Dataset, evaluation: Measurement, segmenter: Segmenter, fp32: Segmenter | None, count: int = 6
) -> list[WorstImage]:
    """Run the images again that differ most from FP32 or, without it, have the lowest pixel accuracy."""
    return [_image(dataset, index, segmenter, fp32) for index in _worst(evaluation)[:count]]


def _worst(evaluation: Measurement) -> list[int]:
    share = evaluation.image_agreement
    if share is None:
        right, union = (evaluation.counts[name].sum(axis=1) for name in ("intersect", "union"))
        labelled = (union + right) // 2  # the unions count a labelled pixel once, and one predicted wrong twice
        share = np.where(labelled, right / np.maximum(labelled, 1), np.inf)
    order: list[int] = np.argsort(share, kind="stable").tolist()
    return order


def _image(dataset: Dataset, index: int, segmenter: Segmenter, fp32: Segmenter | None) -> WorstImage:
    sample = dataset.samples[index]
    image, truth = read_image(sample.image), dataset.read_mask(sample, len(segmenter.manifest.classes))
    mask = segmenter(image).mask
    fp32_mask = None if fp32 is None else fp32(image).mask
    return WorstImage(
        name=sample.name,
        image=_shrunk(image, cv2.INTER_AREA),
        truth=_shrunk(truth, cv2.INTER_NEAREST),
        mask=_shrunk(mask, cv2.INTER_NEAREST),
        fp32_mask=None if fp32_mask is None else _shrunk(fp32_mask, cv2.INTER_NEAREST),
        accuracy=_accuracy(truth, mask),
        fp32_accuracy=None if fp32_mask is None else _accuracy(truth, fp32_mask),
        disagreement=None if fp32_mask is None else 100 * float((mask != fp32_mask).mean()),
    )


def _accuracy(truth: LabelMap, mask: NDArray[Any]) -> float:
    labelled = int(np.count_nonzero(truth != np.iinfo(truth.dtype).max))
    return 100 * int(np.count_nonzero(truth == mask)) / labelled if labelled else math.nan


def _shrunk(array: NDArray[Any], interpolation: int) -> NDArray[Any]:
    height, width = array.shape[:2]
    factor = _THUMBNAIL / max(height, width)
    if factor >= 1:
        return array
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(array, size, interpolation=interpolation))

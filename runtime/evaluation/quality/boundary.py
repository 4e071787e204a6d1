"""Boundary F-score: how well the outlines of each class lie where they should.

A pixel is on the boundary of its class if one of its four neighbours in the image has another class. It is matched if
a boundary pixel of the same class lies within `TOLERANCE` in the other map. The share of predicted boundary pixels that
are matched is the precision, that of the truth's is the recall, and F = 2 P R / (P + R). So have it Csurka et al., What
is a good evaluation measure for semantic segmentation? (BMVC 2013), and for single objects Perazzi et al., A Benchmark
Dataset and Evaluation Methodology for Video Object Segmentation (CVPR 2016). One thing differs: they average the F of
images; here pixels are summed over all images before the division, as those of an IoU are.

Where the truth is ignored nothing is known: two neighbours of which one is ignored make no boundary, and a boundary
pixel with an ignored one within the tolerance is not counted, as its counterpart may lie there.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.metrics import LabelMap

__all__ = ["TOLERANCE", "boundary_counts", "boundary_f"]

TOLERANCE = 2  # pixels of the image, Euclidean distance
_NO_CLASS = 65535
_REACH = range(-TOLERANCE, TOLERANCE + 1)
_OFFSETS = np.array([(dy, dx) for dy in _REACH for dx in _REACH if dy * dy + dx * dx <= TOLERANCE * TOLERANCE])


def boundary_counts(truth: LabelMap, mask: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Boundary pixels of one image by class, (4, C): predicted ones, those matched, the truth's, those matched.

    Args:
        truth, mask: (H, W); the largest value of the truth's type is ignored.
    """
    ignored = truth == np.iinfo(truth.dtype).max
    near = cv2.dilate(ignored.view(np.uint8), _disk()) > 0
    maps = [_boundary(labels, ignored) for labels in (mask, truth)]
    found = []
    for own, other in (maps, maps[::-1]):
        y, x = np.nonzero((own != _NO_CLASS) & ~near)
        own_class = own[y, x]
        padded = np.pad(other, TOLERANCE, constant_values=_NO_CLASS)
        matched = np.zeros(len(y), bool)
        for dy, dx in _OFFSETS + TOLERANCE:
            matched |= padded[y + dy, x + dx] == own_class
        found += [np.bincount(each, minlength=classes)[:classes] for each in (own_class, own_class[matched])]
    return np.stack(found).astype(np.int64)


def boundary_f(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """F in percent, (..., C), of counts (..., 4, C); NaN for a class that has a boundary in neither."""
    predicted, predicted_matched, true, true_matched = (counts[..., i, :] for i in range(4))
    precision = predicted_matched / np.maximum(predicted, 1)
    recall = true_matched / np.maximum(true, 1)
    total = precision + recall
    score = 200 * precision * recall / np.where(total > 0, total, 1)
    return np.where(predicted + true > 0, score, np.nan)


def _boundary(labels: NDArray[Any], ignored: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """(H, W): the class of each boundary pixel, elsewhere `_NO_CLASS`."""
    on_boundary = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[first] != labels[second]) & ~(ignored[first] | ignored[second])
        on_boundary[first] |= differ
        on_boundary[second] |= differ
    return np.where(on_boundary, labels, _NO_CLASS).astype(np.uint16)


def _disk() -> NDArray[np.uint8]:
    side = 2 * TOLERANCE + 1
    disk = np.zeros((side, side), np.uint8)
    disk[tuple((_OFFSETS + TOLERANCE).T)] = 1
    return disk

"""Expected calibration error: how far the scores of the chosen classes are from how often those classes are right.

Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3, with `BINS` bins of equal width, of which
bin m holds the scores in ((m - 1) / BINS, m / BINS]: the mean over all pixels that count of |accuracy - mean score| of
their bin. A truth that is ignored does not count. Counts are integers, so that those of images add up exactly: a score
counts in units of 2^-20, which moves the error by less than 0.0001 points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.metrics import LabelMap

__all__ = ["BINS", "bin_counts", "calibration_error"]

BINS = 15
_UNIT = 2**20


def bin_counts(truth: LabelMap, mask: NDArray[Any], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Of one image, (3, BINS): labelled pixels, those with the right class, and the sum of their scores x 2^20.

    Args:
        truth, mask, scores: (H, W); the largest value of the truth's type is ignored. A score that is not a number
            counts as 0.
    """
    labelled = truth != np.iinfo(truth.dtype).max
    score = np.clip(np.nan_to_num(scores[labelled]), 0, 1)
    number = np.clip(np.ceil(score * np.float32(BINS)).astype(np.intp) - 1, 0, None)
    right = (mask == truth)[labelled]
    # Sums of integers below 2^53 are exact in float64.
    weights = (None, right, np.rint(score.astype(np.float64) * _UNIT))
    return np.stack([np.bincount(number, each, BINS) for each in weights]).astype(np.int64)


def calibration_error(counts: NDArray[np.int64]) -> float:
    """The error in percent, of counts (3, BINS); NaN without a pixel."""
    pixels, right, scores = counts
    if not pixels.sum():
        return float("nan")
    return float(100 * np.abs(right - scores / _UNIT).sum() / pixels.sum())

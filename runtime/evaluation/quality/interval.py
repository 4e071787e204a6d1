"""How sure a mean IoU is: a bootstrap over images.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.metrics import mean_iou

if TYPE_CHECKING:
    from denseport.runtime.evaluation.state import Measurement

__all__ = ["CONFIDENCE", "drop_interval", "miou_interval"]

CONFIDENCE = 95  # percent
_RESAMPLES = 1000


def miou_interval(found: Measurement, seed: int = 0) -> tuple[float, float] | None:
    """The percentile interval of the mIoU in percent; None for fewer than two images with labels."""
    return _interval(_resampled(found, "", seed))


def drop_interval(found: Measurement, seed: int = 0) -> tuple[float, float] | None:
    """Of the difference to FP32's mIoU, in points, images drawn alike for both; None as of `miou_interval`."""
    return _interval(_resampled(found, "", seed) - _resampled(found, "fp32_", seed))


def _resampled(found: Measurement, prefix: str, seed: int) -> NDArray[np.float64]:
    """(resamples,) mIoU in percent of images drawn with replacement; NaN where none of them has labels."""
    n = found.images
    if n < 2:
        return np.full(1, np.nan)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    # float64 goes through BLAS and is exact: the sums stay far below 2^53.
    weights = draws.astype(np.float64)  # (resamples, n) how often each image was drawn
    sums = (weights @ found.counts[f"{prefix}{name}"] for name in ("intersect", "union"))
    return mean_iou(*sums)


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    values = values[~np.isnan(values)]  # a draw of nothing but ignored pixels has no mIoU
    if not len(values):
        return None
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)

"""How sure a mean is: a bootstrap over images.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.metrics import mean_iou

if TYPE_CHECKING:
    from denseport.runtime.evaluation.state import Measurement

__all__ = ["CONFIDENCE", "drop_interval", "interval", "miou_interval", "resampled"]

CONFIDENCE = 95  # percent
_RESAMPLES = 1000


def miou_interval(found: Measurement, seed: int = 0) -> tuple[float, float] | None:
    """The percentile interval of the mIoU in percent; None for fewer than two images with labels."""
    return interval(_resampled_miou(found, "", seed))


def drop_interval(found: Measurement, seed: int = 0) -> tuple[float, float] | None:
    """Of the difference to FP32's mIoU, in points, images drawn alike for both; None as of `miou_interval`."""
    return interval(_resampled_miou(found, "", seed) - _resampled_miou(found, "fp32_", seed))


def _resampled_miou(found: Measurement, prefix: str, seed: int) -> NDArray[np.float64]:
    """(resamples,) mIoU in percent of images drawn with replacement; NaN where none of them has labels."""
    if found.images < 2:
        return np.full(1, np.nan)
    return mean_iou(*(resampled(found.counts[f"{prefix}{name}"], seed) for name in ("intersect", "union")))


def resampled(values: NDArray[Any], seed: int = 0) -> NDArray[np.float64]:
    """(resamples, k), the sums of images drawn with replacement; ``values``: (images, k). One seed, the same draws."""
    n = len(values)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    # float64 goes through BLAS and is exact of counts: the sums stay far below 2^53.
    return np.asarray(draws.astype(np.float64) @ values)


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The percentile interval of resampled values; None where all are NaN."""
    values = values[~np.isnan(values)]  # a draw of nothing but ignored pixels has no mIoU
    if not len(values):
        return None
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)

"""The metrics of monocular depth, and what brings a relative prediction to metres before them.

Each holds for one image, over its measured pixels; a data set's is the mean over its images. Sources: ``eval_depth`` of
Depth-Anything-V2's ``metric_depth/util/metric.py``; Eigen et al., Depth map prediction from a single image using a
multi-scale deep network, 2014 (metrics, crop, SILog); Garg et al., 2016 (crop); Ranftl et al., Towards robust monocular
depth estimation, 2020 (alignment by least squares).
"""

from __future__ import annotations

from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.depth import Depth

__all__ = ["CROPS", "METRICS", "Floats", "align", "depth_metrics", "in_metres", "valid_pixels"]

# Errors, where less is better, then the shares of pixels off by a factor below 1.25, 1.25^2, 1.25^3.
METRICS = ("AbsRel", "SqRel", "RMSE", "RMSElog", "log10", "SILog", "d1", "d2", "d3")
CROPS = ("garg", "eigen", "nyu")  # `eigen` is of KITTI, `nyu` is what is called Eigen's crop of NYUv2
# Of the height and of the width: first and last row, first and last column.
SHARES = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
NYU_SIZE, NYU_CROP = (480, 640), (slice(45, 471), slice(41, 601))

Floats = NDArray[np.float32]


def valid_pixels(truth: Floats, least: float, most: float, crop: str | None = None) -> NDArray[np.bool_]:
    """(H, W), the pixels that count: measured, ``least <= truth <= most`` metres, within the crop.

    Raises:
        InputError: the crop is of images of another size.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # NaN: not measured; a limit above all that float32 holds
        valid = np.asarray((truth >= least) & (truth <= most))
    if crop is None:
        return valid
    height, width = truth.shape
    if crop == "nyu":
        if truth.shape != NYU_SIZE:
            raise InputError(
                f"--crop nyu applies to images of 640 x 480 pixels, not {width} x {height}", "Leave it out."
            )
        window = NYU_CROP
    else:
        top, bottom, left, right = SHARES[crop]
        window = slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))
    inside = np.zeros(truth.shape, bool)
    inside[window] = True
    return valid & inside


def align(
    found: Floats,
    truth: Floats,
    least: float,
    most: float,
    *,
    is_disparity: bool,
    valid: NDArray[np.bool_] | EllipsisType = ...,
) -> tuple[Floats, float, float]:
    """A relative prediction in metres: with the scale and the shift that fit it best, by least squares.

    A disparity is fitted to 1 / truth and inverted. The result is held within ``least`` to ``most`` metres.

    Args:
        found, truth: of one shape.
        is_disparity: larger is nearer.
        valid: of that shape, the pixels that count, at least one; default: all.

    Returns:
        Metres of ``found``'s shape, the scale and the shift.
    """
    known, wanted = found[valid].astype(np.float64), truth[valid].astype(np.float64)
    columns = np.stack([known, np.ones(len(known))], 1)
    scale, shift = np.linalg.lstsq(columns, 1 / wanted if is_disparity else wanted, rcond=None)[0].tolist()
    fitted = found.astype(np.float64) * scale + shift
    metres = 1 / np.clip(fitted, 1 / most, 1 / least) if is_disparity else np.clip(fitted, least, most)
    return metres.astype(np.float32), scale, shift


def in_metres(
    found: Floats, meant: DepthOutput | Depth, truth: Floats, valid: NDArray[np.bool_], limits: tuple[float, float]
) -> Floats:
    """(H, W), a whole prediction as the metrics take it; NaN all over where a number of it is not finite.

    Args:
        meant: what its numbers mean; relative ones are aligned with the truth's valid pixels.
        limits: metres; no result is below the first, nor one of relative depths above the second.
    """
    if not np.isfinite(found).all():
        return np.full_like(found, np.nan)
    if meant.unit == "metres" or not valid.any():
        return np.maximum(found, np.float32(limits[0]))
    return align(found, truth, *limits, is_disparity=meant.larger_is == "nearer", valid=valid)[0]


def depth_metrics(found: Floats, truth: Floats) -> NDArray[np.float64]:
    """The `METRICS` of one image, in their order; NaN without a pixel.

    Args:
        found, truth: (n,) metres, of the pixels that count, above 0.
    """
    if not len(truth):
        return np.full(len(METRICS), np.nan)
    ratio = np.maximum(truth / found, found / truth)
    exact, wanted = found.astype(np.float64), truth.astype(np.float64)
    difference, logs = exact - wanted, np.log(exact) - np.log(wanted)
    errors = (
        np.mean(np.abs(difference) / wanted),
        np.mean(difference**2 / wanted),
        np.sqrt(np.mean(difference**2)),
        np.sqrt(np.mean(logs**2)),
        np.mean(np.abs(logs)) / np.log(10),
        np.sqrt(max(0.0, np.mean(logs**2) - 0.5 * np.mean(logs) ** 2)),
    )
    return np.array([*errors, *(np.mean(ratio < 1.25**power) for power in (1, 2, 3))])

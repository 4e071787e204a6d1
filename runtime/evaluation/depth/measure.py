"""Measure a depth artifact on images with depths, image by image, FP32 beside it where a gate needs it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.errors import DatasetError
from denseport.runtime.evaluation.depth.dataset import DepthDataset
from denseport.runtime.evaluation.depth.metrics import METRICS, align, depth_metrics, valid_pixels
from denseport.runtime.media.images import reading
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.pipeline.stream import pipelined
from denseport.runtime.segmenter.depth import DepthEstimator
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["DepthCounts", "DepthMeasurement", "measure_depths", "metres_of"]

# A prediction whose values differ by no more than this share of the largest is constant, and one this near to the
# network's limit is at it.
NEARLY = 1e-4


@dataclass(frozen=True)
class DepthCounts:
    """What was found of each image by one artifact; n images."""

    metrics: NDArray[np.float64]  # (n, METRICS); NaN where no pixel counts, or a depth is not finite
    non_finite: NDArray[np.bool_]  # (n,) a depth is NaN or infinite
    constant: NDArray[np.bool_]  # (n,) all depths are the same
    saturated: NDArray[np.float64]  # (n,) share of pixels at the network's limit

    @classmethod
    def empty(cls, images: int) -> DepthCounts:
        """Of images that are yet to be measured."""
        flags = np.zeros(images, bool)
        return cls(np.full((images, len(METRICS)), np.nan), flags, flags.copy(), np.zeros(images))


@dataclass
class DepthMeasurement:
    """What was measured of one artifact, and of FP32 where it was run on the same images."""

    counts: DepthCounts
    fp32: DepthCounts | None
    pixels: NDArray[np.int64]  # (n,) that count
    on_gpu: bool = False  # a GPU computed the depths
    seconds: float = 0.0  # wall time of all images, without FP32's session
    session_seconds: float = 0.0  # of it, in the artifact's session

    @property
    def images(self) -> int:
        """All that were measured."""
        return len(self.pixels)

    def means(self, counts: DepthCounts | None = None) -> dict[str, float]:
        """Each of the `METRICS`, its mean over the images with a pixel that counts; NaN without any."""
        rows = (counts or self.counts).metrics[self.pixels > 0]
        values = rows.mean(0) if len(rows) else np.full(len(METRICS), np.nan)
        return dict(zip(METRICS, values.tolist(), strict=True))


def metres_of(
    depth: NDArray[np.float32], truth: NDArray[np.float32], output: DepthOutput, least: float, most: float
) -> NDArray[np.float32]:
    """A prediction in metres, above 0, at the pixels that count (n,): relative ones are aligned with the truth."""
    if output.unit == "relative":
        return align(depth, truth, least, most, is_disparity=output.larger_is == "nearer")[0]
    return np.maximum(depth, np.float32(least))


@dataclass
class _Item:
    """An image on its way through the stages."""

    index: int  # in the data set
    image: NDArray[np.uint8] = field(init=False)
    truth: NDArray[np.float32] = field(init=False)
    views: list[list[list[LogitMap]]] = field(default_factory=list)  # of the artifact and of FP32


def measure_depths(
    dataset: DepthDataset,
    estimator: DepthEstimator,
    least: float,
    most: float,
    *,
    fp32: DepthEstimator | None = None,
    workers: int = 2,
    progress: StepCallback = no_steps,
) -> DepthMeasurement:
    """Run an estimator, and FP32 if it is given, over a data set; decoding and metrics go on beside the network.

    Args:
        least, most: metres between which a measured depth counts.

    Raises:
        DatasetError, ImageError: files that cannot be read or do not fit each other.
    """
    estimators, n = [estimator, *([fp32] if fp32 is not None else [])], len(dataset)
    output = estimator.manifest.depth
    assert output is not None  # of a depth bundle
    counts, pixels, seconds = [DepthCounts.empty(n) for _ in estimators], np.zeros(n, np.int64), [0.0, 0.0]

    def decode(item: _Item) -> _Item:
        sample = dataset.samples[item.index]
        item.image, item.truth = estimator.read(sample.image), dataset.read_depth(sample)
        if item.image.shape[:2] != item.truth.shape:
            (height, width), (high, wide) = item.truth.shape, item.image.shape[:2]
            what = f"{sample.mask}: is {width} x {height}, its image {sample.image} is {wide} x {high}"
            raise DatasetError(what, "A depth must have the size of its image.")
        return item

    def predict(item: _Item) -> _Item:
        for number, each in enumerate(estimators):
            start = time.perf_counter()
            with reading(dataset.samples[item.index].image):
                item.views.append(each.predict(item.image))
            seconds[number] += time.perf_counter() - start
        return item

    def score(item: _Item) -> None:
        valid = valid_pixels(item.truth, least, most, dataset.reading.crop)
        truth, pixels[item.index] = item.truth[valid], np.count_nonzero(valid)
        for each, found, views in zip(estimators, counts, item.views, strict=True):
            _count(found, item.index, each.resize(views), valid, truth, (output, least, most))

    start = time.perf_counter()
    stages = {"decode": decode, "predict": predict, "score": score}
    threads = {"decode": workers, "score": workers}
    measured = DepthMeasurement(counts[0], counts[1] if fp32 is not None else None, pixels, estimator.session.on_gpu)
    with closing(pipelined(map(_Item, range(n)), stages, 0, threads)) as items:
        for done, _ in enumerate(items, start=1):
            errors = counts[0].metrics[:done, 0][pixels[:done] > 0]
            progress(done, n, f"AbsRel {errors.mean():.4f}" if len(errors) else "")
    measured.session_seconds, measured.seconds = seconds[0], time.perf_counter() - start - seconds[1]
    return measured


def _count(
    found: DepthCounts,
    index: int,
    depth: NDArray[np.float32],
    valid: NDArray[np.bool_],
    truth: NDArray[np.float32],
    meaning: tuple[DepthOutput, float, float],
) -> None:
    output, least, most = meaning
    found.non_finite[index] = not np.isfinite(depth).all()
    if found.non_finite[index]:
        return
    low, high = float(depth.min()), float(depth.max())
    found.constant[index] = high - low <= NEARLY * max(abs(low), abs(high))
    if output.largest is not None:
        found.saturated[index] = np.mean(depth >= (1 - NEARLY) * output.largest)
    if len(truth):
        found.metrics[index] = depth_metrics(metres_of(depth[valid], truth, output, least, most), truth)

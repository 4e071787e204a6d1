"""Measure a depth artifact on images with depths, image by image, FP32 beside it where a gate needs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.errors import DatasetError
from denseport.runtime.evaluation.depth.dataset import DepthDataset
from denseport.runtime.evaluation.depth.metrics import METRICS, Floats, depth_metrics, in_metres, valid_pixels
from denseport.runtime.media.images import reading
from denseport.runtime.pipeline.stream import pipelined
from denseport.runtime.segmenter.depth import DepthEstimator
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["DepthMeasurement", "measure_depths"]

# What is kept of an image: the metrics, NaN where no pixel counts or a depth is not finite; 1 where a depth is not
# finite, and where all are the same; the share of pixels at the network's limit.
COLUMNS = (*METRICS, "non_finite", "constant", "saturated")
NEARLY = 1e-4  # as a share of the largest: depths this near to one another are the same


@dataclass
class DepthMeasurement:
    """What was measured of one artifact, and of FP32 where it was run on the same images."""

    values: NDArray[np.float64]  # (1 or 2, images, COLUMNS): the artifact's, then FP32's
    pixels: NDArray[np.int64]  # (images,) that count
    on_gpu: bool  # a GPU computed the depths
    names: tuple[str, ...]  # (images,)
    seconds: float = 0.0  # wall time of all images, without FP32's session
    session_seconds: float = 0.0  # of it, in the artifact's session

    @property
    def images(self) -> int:
        """All that were measured."""
        return len(self.pixels)

    def column(self, name: str, run: int = 0) -> NDArray[np.float64]:
        """(images,) one of `COLUMNS`; of FP32 with ``run=1``."""
        return np.asarray(self.values[run, :, COLUMNS.index(name)])

    def means(self, run: int = 0) -> dict[str, float]:
        """Each of the `METRICS`, its mean over the images with a pixel that counts; NaN without any."""
        rows = self.values[run, self.pixels > 0, : len(METRICS)]
        values = rows.mean(0) if len(rows) else np.full(len(METRICS), np.nan)
        return dict(zip(METRICS, values.tolist(), strict=True))


def measure_depths(
    dataset: DepthDataset,
    estimator: DepthEstimator,
    *,
    fp32: DepthEstimator | None = None,
    workers: int = 2,
    progress: StepCallback = no_steps,
) -> DepthMeasurement:
    """Run an estimator, and FP32 if it is given, over a data set; decoding and metrics go on beside the network.

    Args:
        dataset: with its limits.

    Raises:
        DatasetError, ImageError: files that cannot be read or do not fit each other.
    """
    estimators, n, seconds = [estimator, *([fp32] if fp32 is not None else [])], len(dataset), [0.0, 0.0]
    output, limits = estimator.manifest.depth, dataset.reading.limits
    assert output is not None  # of a depth bundle

    def decode(index: int) -> tuple[int, Any, Floats]:
        sample = dataset.samples[index]
        image, truth = estimator.read(sample.image), dataset.read_depth(sample)
        if image.shape[:2] != truth.shape:
            (height, width), (high, wide) = truth.shape, image.shape[:2]
            what = f"{sample.mask}: is {width} x {height}, its image {sample.image} is {wide} x {high}"
            raise DatasetError(what, "A depth must have the size of its image.")
        return index, image, truth

    def predict(found: tuple[int, Any, Floats]) -> tuple[int, Any, Floats]:
        index, image, views = found[0], found[1], []
        for number, each in enumerate(estimators):
            start = time.perf_counter()
            with reading(dataset.samples[index].image):
                views.append(each.predict(image))
            seconds[number] += time.perf_counter() - start
        return index, views, found[2]

    def score(found: tuple[int, Any, Floats]) -> tuple[int, list[list[float]], int]:
        index, views, truth = found
        valid = valid_pixels(truth, *limits, dataset.reading.crop)
        depths = [each.resize(maps) for each, maps in zip(estimators, views, strict=True)]
        return index, [_row(depth, output, truth, valid, limits) for depth in depths], int(valid.sum())

    measured = DepthMeasurement(
        np.full((len(estimators), n, len(COLUMNS)), np.nan),
        np.zeros(n, np.int64),
        estimator.session.on_gpu,
        tuple(sample.name for sample in dataset.samples),
    )
    stages: dict[str, Callable[[Any], Any]] = {"decode": decode, "predict": predict, "score": score}
    start = time.perf_counter()
    with closing(pipelined(range(n), stages, 0, {"decode": workers, "score": workers})) as items:
        for done, (index, rows, pixels) in enumerate(items, start=1):
            measured.values[:, index], measured.pixels[index] = rows, pixels
            progress(done, n, f"AbsRel {measured.means()['AbsRel']:.4f}")
    measured.session_seconds, measured.seconds = seconds[0], time.perf_counter() - start - seconds[1]
    return measured


def _row(
    depth: Floats, output: DepthOutput, truth: Floats, valid: NDArray[np.bool_], limits: tuple[float, float]
) -> list[float]:
    """The `COLUMNS` of one image."""
    if not np.isfinite(depth).all():
        return [np.nan] * len(METRICS) + [1, 0, 0]
    low, high = float(depth.min()), float(depth.max())
    constant = high - low <= NEARLY * max(abs(low), abs(high))
    saturated = 0.0 if output.largest is None else float(np.mean(depth >= (1 - NEARLY) * output.largest))
    metres = in_metres(depth, output, truth, valid, limits)
    return [*depth_metrics(metres[valid], truth[valid]), 0, constant, saturated]

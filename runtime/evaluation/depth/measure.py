"""Measure a depth artifact on images with depths, image by image, FP32 beside it where a gate needs it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.evaluation.depth.dataset import DepthDataset
from denseport.runtime.evaluation.depth.metrics import METRICS, Floats, depth_metrics, in_metres, valid_pixels
from denseport.runtime.evaluation.layouts import Sample
from denseport.runtime.evaluation.measure import Item, Stages
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
    stages, n = _DepthStages(dataset, [estimator, *([fp32] if fp32 is not None else [])]), len(dataset)
    measured = DepthMeasurement(
        np.full((len(stages.seconds), n, len(COLUMNS)), np.nan),
        np.zeros(n, np.int64),
        estimator.session.on_gpu,
        tuple(sample.name for sample in dataset.samples),
    )
    start = time.perf_counter()
    with closing(stages.run(range(n), workers)) as items:
        for done, item in enumerate(items, start=1):
            if item.failure is not None:
                raise item.failure
            measured.values[:, item.index], measured.pixels[item.index] = item.counts
            progress(done, n, f"AbsRel {measured.means()['AbsRel']:.4f}")
    own, *others = stages.seconds.values()
    measured.session_seconds, measured.seconds = own, time.perf_counter() - start - sum(others)
    return measured


class _DepthStages(Stages[DepthEstimator]):
    """Depths, counted as the `COLUMNS` of each estimator and the pixels that count."""

    dataset: DepthDataset
    fitting = "A depth must have the size of its image."

    def read_truth(self, sample: Sample) -> Floats:
        return self.dataset.read_depth(sample)

    def count(self, item: Item) -> None:
        reading = self.dataset.reading
        valid = valid_pixels(item.truth, *reading.limits, reading.crop)
        depths = [(each.resize(item.views.pop(each)), each.output) for each in self.seconds]
        item.counts = [_row(*each, item.truth, valid, reading.limits) for each in depths], valid.sum()


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

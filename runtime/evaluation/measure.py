"""Measure an artifact on a labelled data set: resumable, exact, as fast as its session.

A few threads decode images ahead of the network and turn its logits into masks and counts behind it; OpenCV, numpy and
the back ends release Python's lock, so the stages overlap. Every count is an integer, so the order of images, a resumed
run and merged parts all give the same result to the last pixel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, DenseportError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.metrics import LabelMap
from denseport.runtime.evaluation.state import MASKS_ONLY, SAVE_SECONDS, Extras, Measurement
from denseport.runtime.media.images import reading
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.pipeline.stream import pipelined
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["measure_dataset", "measure_images"]


@dataclass
class _Item:
    """An image on its way through the stages."""

    index: int  # in the data set
    image: NDArray[np.uint8] = field(init=False)
    truth: LabelMap = field(init=False)
    views: list[list[list[LogitMap]]] = field(default_factory=list)  # of the artifact and of FP32
    counts: Measurement = field(init=False)
    failure: DenseportError | None = None


class _Stages:
    """What is done to an image, in this order, each in its own threads; of segmenters the artifact's, then FP32's."""

    def __init__(self, dataset: Dataset, segmenters: Sequence[Segmenter], extras: Extras) -> None:
        self.dataset, self.segmenters, self.extras = dataset, segmenters, extras
        self.classes = len(segmenters[0].manifest.classes)
        self.seconds = [0.0 for _ in segmenters]  # in each segmenter

    def decode(self, item: _Item) -> None:
        sample = self.dataset.samples[item.index]
        item.image, item.truth = self.segmenters[0].read(sample.image), self.dataset.read_mask(sample, self.classes)
        if item.image.shape[:2] != item.truth.shape:
            raise DatasetError(
                f"{sample.mask}: is {item.truth.shape[1]} x {item.truth.shape[0]}, its image {sample.image} is "
                f"{item.image.shape[1]} x {item.image.shape[0]}",
                "A mask must have the size of its image; an EXIF-rotated image needs a rotated mask.",
            )

    def predict(self, item: _Item) -> None:
        for number, segmenter in enumerate(self.segmenters):
            start = time.perf_counter()
            with reading(self.dataset.samples[item.index].image):
                item.views.append(segmenter.predict(item.image))
            self.seconds[number] += time.perf_counter() - start

    def count(self, item: _Item) -> None:
        finite = all(np.isfinite(part.logits.sum(dtype=np.float64)) for view in item.views[0] for part in view)
        own, *fp32 = self.segmenters
        mask, scores = own.decide(item.views[0], 1, scores=self.extras.scores)
        masks = [mask, *(each.decide(views, 1)[0] for each, views in zip(fp32, item.views[1:], strict=True))]
        item.views.clear()  # logits are large
        item.counts = Measurement("", 1, self.classes, with_fp32=bool(fp32), extras=self.extras)
        on_gpu = own.session.on_gpu
        item.counts.add(0, item.truth, mask, masks[-1], finite=finite, on_gpu=on_gpu, scores=scores)


def _noting_failures(work: Callable[[_Item], None]) -> Callable[[_Item], _Item]:
    def stage(item: _Item) -> _Item:
        try:
            if item.failure is None:
                work(item)
        except DenseportError as err:
            item.failure = err
        return item

    return stage


def measure_dataset(
    dataset: Dataset,
    segmenter: Segmenter,
    *,
    fp32: Segmenter | None = None,
    workers: int = 2,
    extras: Extras = MASKS_ONLY,
    progress: StepCallback = no_steps,
) -> Measurement:
    """Run ``segmenter`` over ``dataset`` and count; arguments and errors as of `measure_images`."""
    found = Measurement("", len(dataset), len(segmenter.manifest.classes), with_fp32=fp32 is not None, extras=extras)
    measure_images(dataset, segmenter, found, fp32=fp32, workers=workers, progress=progress)
    return found


def measure_images(
    dataset: Dataset,
    segmenter: Segmenter,
    found: Measurement,
    *,
    images: Sequence[int] | None = None,
    fp32: Segmenter | None = None,
    workers: int = 2,
    failures: dict[int, str] | None = None,
    progress: StepCallback = no_steps,
) -> None:
    """Add to ``found`` those ``images`` that it does not hold, and save it now and then.

    Args:
        images: numbers in the data set, such as a shard's; default: all.
        fp32: a second segmenter, run on the same images for the gate.
        workers: threads that decode before and post-process behind the network; at most ``2 * workers + 1`` images
            are in memory.
        failures: takes up what is wrong with an image, by number, and the run goes on; None: the first one raises.
        progress: told the images done, all of them, and the mIoU so far in percent.

    Raises:
        DatasetError: an image and its mask do not fit, or labels outside the classes.
        ImageError: a file cannot be read.
    """
    stages = _Stages(dataset, [segmenter] if fp32 is None else [segmenter, fp32], found.extras)
    waiting = [i for i in (range(len(dataset)) if images is None else images) if not found.done[i]]
    start = time.perf_counter()
    work = {each.__name__: _noting_failures(each) for each in (stages.decode, stages.predict, stages.count)}
    threads = {"decode": workers, "count": workers}
    try:
        with closing(pipelined(map(_Item, waiting), work, 0, threads)) as items:
            for item in items:
                if item.failure is None:
                    found.merge(item.counts, np.array([item.index]))
                elif failures is None:
                    raise item.failure
                else:
                    failures[item.index] = str(item.failure)
                progress(int(found.done.sum()), len(dataset), f"mIoU {found.mean_iou():.2f}")
                found.save(every=SAVE_SECONDS)
    except BaseException:
        found.save()
        raise
    found.seconds = time.perf_counter() - start - sum(stages.seconds[1:])
    found.session_seconds, found.measured = stages.seconds[0], len(waiting)

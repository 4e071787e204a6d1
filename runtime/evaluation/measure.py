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

__all__ = ["measure_dataset", "measure_images", "measure_together"]


@dataclass
class _Item:
    """An image on its way through the stages."""

    index: int  # in the data set
    image: NDArray[np.uint8] = field(init=False)
    truth: LabelMap = field(init=False)
    views: dict[Segmenter, list[list[LogitMap]]] = field(default_factory=dict)
    counts: list[Measurement] = field(default_factory=list)  # of each measured segmenter
    failure: DenseportError | None = None


class _Stages:
    """What is done to an image, in this order, each in its own threads.

    Args:
        measured: segmenters of one bundle, each with the FP32 one that it is compared with, or None.
    """

    def __init__(
        self, dataset: Dataset, measured: Sequence[tuple[Segmenter, Segmenter | None]], extras: Extras
    ) -> None:
        self.dataset, self.measured, self.extras = dataset, measured, extras
        self.classes = len(measured[0][0].manifest.classes)
        every = [*(each for each, _ in measured), *(fp32 for _, fp32 in measured if fp32 is not None)]
        self.seconds = dict.fromkeys(every, 0.0)  # in each segmenter

    def decode(self, item: _Item) -> None:
        sample = self.dataset.samples[item.index]
        item.image, item.truth = self.measured[0][0].read(sample.image), self.dataset.read_mask(sample, self.classes)
        if item.image.shape[:2] != item.truth.shape:
            raise DatasetError(
                f"{sample.mask}: is {item.truth.shape[1]} x {item.truth.shape[0]}, its image {sample.image} is "
                f"{item.image.shape[1]} x {item.image.shape[0]}",
                "A mask must have the size of its image; an EXIF-rotated image needs a rotated mask.",
            )

    def predict(self, item: _Item) -> None:
        for segmenter in self.seconds:
            start = time.perf_counter()
            with reading(self.dataset.samples[item.index].image):
                item.views[segmenter] = segmenter.predict(item.image)
            self.seconds[segmenter] += time.perf_counter() - start

    def count(self, item: _Item) -> None:
        masks, finite, scored = {}, {}, [each for each, _ in self.measured]
        for segmenter in self.seconds:
            views = item.views.pop(segmenter)  # logits are large
            finite[segmenter] = all(np.isfinite(part.logits.sum(dtype=np.float64)) for view in views for part in view)
            masks[segmenter] = segmenter.decide(views, 1, scores=self.extras.scores and segmenter in scored)
        for segmenter, fp32 in self.measured:
            counts = Measurement("", 1, self.classes, with_fp32=fp32 is not None, extras=self.extras)
            mask, scores = masks[segmenter]
            other, on_gpu = masks[fp32 or segmenter][0], segmenter.session.on_gpu
            counts.add(0, item.truth, mask, other, finite=finite[segmenter], on_gpu=on_gpu, scores=scores)
            item.counts.append(counts)


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
    waiting = [i for i in (range(len(dataset)) if images is None else images) if not found.done[i]]
    _run(_Stages(dataset, [(segmenter, fp32)], found.extras), [found], waiting, workers, failures, progress)


def measure_together(
    dataset: Dataset,
    segmenters: Sequence[Segmenter],
    fp32: Segmenter,
    *,
    workers: int = 2,
    extras: Extras = MASKS_ONLY,
    progress: StepCallback = no_steps,
) -> list[Measurement]:
    """What was counted of each of some artifacts of a bundle; each image runs through all of them.

    Args:
        segmenters: all of one protocol; of FP32 itself nothing is compared.
        fp32: what the others are compared with.
        workers, progress: as of `measure_images`, and errors too.
    """
    pairs = [(each, None if each is fp32 else fp32) for each in segmenters]
    stages, images, classes = _Stages(dataset, pairs, extras), len(dataset), len(fp32.manifest.classes)
    found = [Measurement("", images, classes, with_fp32=other is not None, extras=extras) for _, other in pairs]
    _run(stages, found, range(len(dataset)), workers, None, progress)
    return found


def _run(
    stages: _Stages,
    found: Sequence[Measurement],
    waiting: Sequence[int],
    workers: int,
    failures: dict[int, str] | None,
    progress: StepCallback,
) -> None:
    """Add to ``found``, of each measured segmenter; arguments as of `measure_images`."""
    start, first = time.perf_counter(), found[0]
    work = {each.__name__: _noting_failures(each) for each in (stages.decode, stages.predict, stages.count)}
    threads = {"decode": workers, "count": workers}
    try:
        with closing(pipelined(map(_Item, waiting), work, 0, threads)) as items:
            for item in items:
                if item.failure is None:
                    for total, counts in zip(found, item.counts, strict=True):
                        total.merge(counts, np.array([item.index]))
                elif failures is None:
                    raise item.failure
                else:
                    failures[item.index] = str(item.failure)
                progress(int(first.done.sum()), len(first.done), f"mIoU {first.mean_iou():.2f}")
                first.save(every=SAVE_SECONDS)
    except BaseException:
        first.save()
        raise
    elapsed, sessions = time.perf_counter() - start, sum(stages.seconds.values())
    for total, (segmenter, _) in zip(found, stages.measured, strict=True):
        total.session_seconds, total.measured = stages.seconds[segmenter], len(waiting)
        total.seconds = elapsed - sessions + total.session_seconds

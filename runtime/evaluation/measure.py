"""Measure an artifact on a labelled data set: resumable, exact, as fast as its session.

The network runs in the calling thread. A few worker threads decode images ahead of it and turn its logits into
masks and counts behind it; OpenCV, numpy and the back ends release Python's lock, so the stages overlap. Short queues
bound how many images are in memory. Every count is an integer, so the order of images, a
resumed run and merged parts all give the same result to the last pixel.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, DenseportError
from denseport.runtime.evaluation.dataset import Dataset, Sample
from denseport.runtime.evaluation.gate import ImageAreas, Predictions
from denseport.runtime.evaluation.metrics import ConfusionMatrix, LabelMap, Scores
from denseport.runtime.evaluation.state import EvaluationState, open_state, save_state
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["SAVE_SECONDS", "Effort", "Measurement", "measure_dataset", "measure_images", "measurement_of"]

SAVE_EVERY = 25  # images, and at least
SAVE_SECONDS = 10.0  # seconds between two saves


@dataclass(frozen=True)
class Effort:
    """What a measurement took."""

    seconds: float = 0.0  # as in `Measurement`
    session_seconds: float = 0.0
    measured: int = 0


@dataclass(frozen=True)
class Measurement:
    """What was measured of one artifact, and of FP32 on the same images where it was run beside it."""

    names: tuple[str, ...]  # of the images, in the data set's order
    confusion: ConfusionMatrix
    areas: ImageAreas  # (n, C) for each image
    predictions: Predictions
    fp32_confusion: ConfusionMatrix | None
    fp32_areas: ImageAreas | None
    image_agreement: NDArray[np.float64] | None  # (n,) share of each image's pixels with FP32's class
    seconds: float  # wall time of the images of this run, without resumed ones and without FP32's sessions
    session_seconds: float  # of it, in the artifact's session; the sum of all sessions where several ran side by side
    measured: int  # images of this run

    def scores(self, classes: tuple[str, ...]) -> Scores:
        """mIoU and the rest, of the artifact."""
        return self.confusion.scores(classes)


@dataclass
class _Run:
    """The pieces of one measurement, shared by its threads."""

    dataset: Dataset
    segmenter: Segmenter
    fp32: Segmenter | None
    state: EvaluationState
    failures: dict[int, str] | None = None  # None: the first failure ends the run
    lock: threading.Lock = field(default_factory=threading.Lock)
    session_seconds: float = 0.0
    fp32_seconds: float = 0.0

    def decode(self, sample: Sample) -> tuple[NDArray[np.uint8], LabelMap]:
        classes = len(self.segmenter.manifest.classes)
        image, truth = read_image(sample.image), self.dataset.read_mask(sample, classes)
        if image.shape[:2] != truth.shape:
            raise DatasetError(
                f"{sample.mask}: is {truth.shape[1]} x {truth.shape[0]}, its image {sample.image} is "
                f"{image.shape[1]} x {image.shape[0]}",
                "A mask must have the size of its image; an EXIF-rotated image needs a rotated mask.",
            )
        return image, truth

    def predict(self, image: NDArray[np.uint8]) -> tuple[list[list[LogitMap]], list[list[LogitMap]] | None]:
        start = time.perf_counter()
        views = self.segmenter.predict(image)
        middle = time.perf_counter()
        self.session_seconds += middle - start
        if self.fp32 is None:
            return views, None
        fp32_views = self.fp32.predict(image)
        self.fp32_seconds += time.perf_counter() - middle
        return views, fp32_views

    def count(
        self, index: int, views: list[list[LogitMap]], fp32_views: list[list[LogitMap]] | None, truth: LabelMap
    ) -> None:
        finite = all(np.isfinite(part.logits.sum(dtype=np.float64)) for view in views for part in view)
        mask = self.segmenter.decide(views, threads=1)
        fp32_mask = self.fp32.decide(fp32_views, threads=1) if self.fp32 is not None and fp32_views else None
        with self.lock:
            self.state.add(index, truth, mask, fp32_mask, finite=finite)

    @contextmanager
    def trying(self, index: int) -> Iterator[None]:
        """Notes what is wrong with image ``index`` and goes on, where failures are collected."""
        try:
            yield
        except DenseportError as err:
            if self.failures is None:
                raise
            self.failures[index] = str(err)


def measure_dataset(
    dataset: Dataset,
    segmenter: Segmenter,
    *,
    fp32: Segmenter | None = None,
    workers: int = 2,
    state_file: Path | None = None,
    resume: bool = False,
    key: str = "",
    progress: StepCallback = no_steps,
) -> Measurement:
    """Run ``segmenter`` over ``dataset`` and count.

    Args:
        fp32: a second segmenter, run on the same images for the gate.
        workers: threads that decode before and post-process behind the network; bounds the images in memory.
        state_file: where the counts are kept for `resume`; removed when all is done.
        resume: go on from ``state_file`` if it was written for the same ``key``.
        key: what is measured (artifact, protocol, data set); a state of another key is not taken up.
        progress: told the images done, all of them, and the mIoU so far in percent.

    Raises:
        DatasetError: an image and its mask do not fit, or labels outside the classes.
        ImageError: a file cannot be read.
    """
    classes = len(segmenter.manifest.classes)
    state = open_state(state_file, key, len(dataset), classes, with_fp32=fp32 is not None, resume=resume)
    effort = measure_images(
        dataset, segmenter, state, fp32=fp32, workers=workers, state_file=state_file, progress=progress
    )
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    return measurement_of(dataset, state, effort)


def measure_images(
    dataset: Dataset,
    segmenter: Segmenter,
    state: EvaluationState,
    *,
    images: Sequence[int] | None = None,
    fp32: Segmenter | None = None,
    workers: int = 2,
    state_file: Path | None = None,
    failures: dict[int, str] | None = None,
    progress: StepCallback = no_steps,
) -> Effort:
    """Add to ``state`` the counts of those ``images`` that it does not hold; arguments as of `measure_dataset`.

    Args:
        images: numbers in the data set, such as a shard's; default: all.
        failures: takes up what is wrong with an image, by number, and the run goes on; None: the first one raises.
    """
    run = _Run(dataset, segmenter, fp32, state, failures)
    waiting = [i for i in (range(len(dataset)) if images is None else images) if not state.done[i]]
    start = time.perf_counter()
    _loop(run, waiting, max(1, workers), state_file, progress)
    seconds = time.perf_counter() - start - run.fp32_seconds
    return Effort(seconds, run.session_seconds, len(waiting))


def measurement_of(dataset: Dataset, state: EvaluationState, effort: Effort) -> Measurement:
    """What the counts of a whole data set say."""
    return Measurement(
        names=tuple(sample.name for sample in dataset.samples),
        confusion=state.confusion,
        areas=state.areas(),
        predictions=state.predictions(),
        fp32_confusion=state.fp32_confusion,
        fp32_areas=state.fp32_areas(),
        image_agreement=state.image_agreement(),
        seconds=effort.seconds,
        session_seconds=effort.session_seconds,
        measured=effort.measured,
    )


def _loop(
    run: _Run,
    waiting: list[int],
    workers: int,
    state_file: Path | None,
    progress: StepCallback,
) -> None:
    """Decode ahead, run, count behind; at most ``2 * workers + 1`` images are in memory."""
    counting: deque[tuple[int, Future[None]]] = deque()
    saved = time.monotonic()

    def settle(at_most: int) -> None:
        while len(counting) > at_most:
            index, counted = counting.popleft()
            with run.trying(index):
                counted.result()
            with run.lock:
                progress(int(run.state.done.sum()), len(run.dataset), f"mIoU {run.state.mean_iou():.2f}")

    def save() -> None:
        if state_file is not None:
            with run.lock:
                save_state(state_file, run.state)

    with ThreadPoolExecutor(workers, "decode") as before, ThreadPoolExecutor(workers, "count") as behind:
        try:
            for turn, (index, decoding) in enumerate(_decoding(run, waiting, before, workers), start=1):
                with run.trying(index):
                    image, truth = decoding.result()
                    counting.append((index, behind.submit(run.count, index, *run.predict(image), truth)))
                settle(at_most=workers)
                if turn % SAVE_EVERY == 0 or time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
            settle(at_most=0)
        except BaseException:
            before.shutdown(wait=False, cancel_futures=True)
            behind.shutdown(cancel_futures=True)
            save()
            raise


def _decoding(
    run: _Run, waiting: list[int], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, Future[tuple[NDArray[np.uint8], LabelMap]]]]:
    """Index, and image with truth to come, in turn; begun up to ``ahead`` images before they are asked for."""
    queue: deque[tuple[int, Future[tuple[NDArray[np.uint8], LabelMap]]]] = deque()
    for index in waiting:
        queue.append((index, pool.submit(run.decode, run.dataset.samples[index])))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue

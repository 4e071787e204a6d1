"""Measure an artifact on a labelled data set: resumable, exact, as fast as its session.

The network runs in the calling thread. A few worker threads decode pictures ahead of it and turn its logits into
masks and counts behind it; OpenCV, numpy and the back ends release Python's lock, so the stages overlap. Short queues
bound how many pictures are in memory. Every count is an integer, so the order of pictures, a
resumed run and merged parts all give the same result to the last pixel.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.dataset import Dataset, Sample
from denseport.runtime.errors import DatasetError
from denseport.runtime.evaluation_state import EvaluationState, load_state, save_state
from denseport.runtime.gate import ImageAreas, Predictions
from denseport.runtime.images import read_image
from denseport.runtime.metrics import ConfusionMatrix, LabelMap, Scores
from denseport.runtime.postprocess import Field
from denseport.runtime.segmenter import Segmenter

__all__ = ["Evaluation", "evaluate"]

SAVE_EVERY = 25  # pictures, and at least
SAVE_SECONDS = 10.0  # seconds between two saves


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one artifact, and of FP32 on the same pictures where it was run beside it."""

    names: tuple[str, ...]  # of the pictures, in the data set's order
    confusion: ConfusionMatrix
    areas: ImageAreas  # (n, C) for each picture
    predictions: Predictions
    fp32_confusion: ConfusionMatrix | None
    fp32_areas: ImageAreas | None
    seconds: float  # wall time of the pictures of this run, resumed ones not counted
    session_seconds: float  # of it, in the artifact's session
    measured: int  # pictures of this run

    def scores(self, classes: tuple[str, ...]) -> Scores:
        """mIoU and the rest, of the artifact."""
        return self.confusion.scores(classes)


@dataclass
class _Run:
    """The pieces of one evaluation, shared by its threads."""

    dataset: Dataset
    segmenter: Segmenter
    fp32: Segmenter | None
    state: EvaluationState
    lock: threading.Lock = field(default_factory=threading.Lock)
    session_seconds: float = 0.0

    def decode(self, sample: Sample) -> tuple[NDArray[np.uint8], LabelMap]:
        classes = len(self.segmenter.manifest.classes)
        image, truth = read_image(sample.image), self.dataset.read_mask(sample, classes)
        if image.shape[:2] != truth.shape:
            raise DatasetError(
                f"{sample.mask}: is {truth.shape[1]} x {truth.shape[0]}, its picture {sample.image} is "
                f"{image.shape[1]} x {image.shape[0]}",
                "A mask must have the size of its picture; an EXIF-rotated picture needs a rotated mask.",
            )
        return image, truth

    def predict(self, image: NDArray[np.uint8]) -> tuple[list[list[Field]], list[list[Field]] | None]:
        start = time.perf_counter()
        views = self.segmenter.predict(image)
        self.session_seconds += time.perf_counter() - start
        return views, self.fp32.predict(image) if self.fp32 is not None else None

    def count(
        self, index: int, views: list[list[Field]], fp32_views: list[list[Field]] | None, truth: LabelMap
    ) -> None:
        finite = all(np.isfinite(part.logits.sum(dtype=np.float64)) for view in views for part in view)
        mask = self.segmenter.decide(views, threads=1)
        fp32_mask = self.fp32.decide(fp32_views, threads=1) if self.fp32 is not None and fp32_views else None
        with self.lock:
            self.state.add(index, truth, mask, fp32_mask, finite=finite)


def evaluate(
    dataset: Dataset,
    segmenter: Segmenter,
    *,
    fp32: Segmenter | None = None,
    workers: int = 2,
    state_file: Path | None = None,
    resume: bool = False,
    key: str = "",
    progress: Callable[[int, float], None] = lambda done, miou: None,
) -> Evaluation:
    """Run ``segmenter`` over ``dataset`` and count.

    Args:
        fp32: a second segmenter, run on the same pictures for the gate.
        workers: threads that decode before and post-process behind the network; bounds the pictures in memory.
        state_file: where the counts are kept for `resume`; removed when all is done.
        resume: go on from ``state_file`` if it was written for the same ``key``.
        key: what is measured (artifact, protocol, data set); a state of another key is not taken up.
        progress: told the number of pictures done and the mIoU so far, percent.

    Raises:
        DatasetError: a picture and its mask do not fit, or labels outside the classes.
        ImageError: a file cannot be read.
    """
    classes = len(segmenter.manifest.classes)
    state = load_state(state_file, key) if resume and state_file is not None else None
    if state is None:
        state = EvaluationState(key, len(dataset), classes, with_fp32=fp32 is not None)
    run = _Run(dataset, segmenter, fp32, state)
    waiting = [i for i in range(len(dataset)) if not state.done[i]]
    start = time.perf_counter()
    _loop(run, waiting, max(1, workers), state_file, progress)
    seconds = time.perf_counter() - start
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    return Evaluation(
        names=tuple(sample.name for sample in dataset.samples),
        confusion=state.confusion,
        areas=state.areas(),
        predictions=state.predictions(),
        fp32_confusion=state.fp32_confusion,
        fp32_areas=state.fp32_areas(),
        seconds=seconds,
        session_seconds=run.session_seconds,
        measured=len(waiting),
    )


def _loop(
    run: _Run,
    waiting: list[int],
    workers: int,
    state_file: Path | None,
    progress: Callable[[int, float], None],
) -> None:
    """Decode ahead, run, count behind; at most ``2 * workers + 1`` pictures are in memory."""
    counting: deque[Future[None]] = deque()
    saved = time.monotonic()

    def settle(at_most: int) -> None:
        while len(counting) > at_most:
            counting.popleft().result()
            with run.lock:
                progress(int(run.state.done.sum()), run.state.mean_iou())

    def save() -> None:
        if state_file is not None:
            with run.lock:
                save_state(state_file, run.state)

    with ThreadPoolExecutor(workers, "decode") as before, ThreadPoolExecutor(workers, "count") as behind:
        try:
            for turn, (index, image, truth) in enumerate(_decoded(run, waiting, before, workers), start=1):
                counting.append(behind.submit(run.count, index, *run.predict(image), truth))
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


def _decoded(
    run: _Run, waiting: list[int], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, NDArray[np.uint8], LabelMap]]:
    """Index, picture and truth in turn, decoded up to ``ahead`` pictures before they are asked for."""
    queue: deque[tuple[int, Future[tuple[NDArray[np.uint8], LabelMap]]]] = deque()
    for index in waiting:
        queue.append((index, pool.submit(run.decode, run.dataset.samples[index])))
        if len(queue) > ahead:
            first, future = queue.popleft()
            yield first, *future.result()
    for first, future in queue:
        yield first, *future.result()

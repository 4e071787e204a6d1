"""Measure an artifact on a labelled data set: resumable, exact, as fast as its session.

The network runs in the calling thread. A few worker threads decode pictures ahead of it and turn its logits into
masks and counts behind it; OpenCV, numpy and the back ends release Python's lock, so the stages overlap, and a
semaphore bounds how many pictures are in memory. Every count is an integer, so the order of pictures, a
resumed run and merged parts all give the same result to the last pixel.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.dataset import Dataset, Sample
from denseport.runtime.errors import DatasetError
from denseport.runtime.evaluation_state import EvaluationState, load_state, save_state
from denseport.runtime.gate import ImageAreas, Predictions
from denseport.runtime.images import read_image
from denseport.runtime.metrics import ConfusionMatrix, Scores
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

    def decode(self, sample: Sample) -> tuple[NDArray[np.uint8], Any]:
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

    def count(self, index: int, views: list[list[Field]], fp32_views: list[list[Field]] | None, truth: Any) -> None:
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
    """Decode ahead, run, count behind; at most ``2 * workers`` pictures are in memory."""
    saved = time.monotonic()
    slots = threading.Semaphore(2 * workers)
    with ThreadPoolExecutor(workers, "decode") as before, ThreadPoolExecutor(workers, "count") as behind:
        decoding: list[tuple[int, Future[Any]]] = []
        counting: list[Future[None]] = []
        upcoming = iter(waiting)
        try:
            for done, index in enumerate(_ahead(run, before, upcoming, decoding, workers), start=1):
                image, truth = index[1]
                views, fp32_views = run.predict(image)
                slots.acquire()
                future = behind.submit(run.count, index[0], views, fp32_views, truth)
                future.add_done_callback(lambda _: slots.release())
                del image, views, fp32_views  # the worker holds what it needs
                counting = _settled([*counting, future])
                with run.lock:
                    progress(int(run.state.done.sum()), run.state.mean_iou())
                    now = time.monotonic()
                    if state_file is not None and (done % SAVE_EVERY == 0 or now - saved > SAVE_SECONDS):
                        save_state(state_file, run.state)
                        saved = now
            for future in counting:
                future.result()
            progress(int(run.state.done.sum()), run.state.mean_iou())
        except BaseException:
            for future in (*counting, *(f for _, f in decoding)):
                future.cancel()
            if state_file is not None:
                with run.lock:
                    save_state(state_file, run.state)
            raise


def _ahead(run: _Run, pool: ThreadPoolExecutor, upcoming: Any, queue: list[Any], depth: int) -> Any:
    """(index, (image, truth)) of each picture in turn, decoded up to ``depth`` pictures ahead."""
    for index in upcoming:
        queue.append((index, pool.submit(run.decode, run.dataset.samples[index])))
        if len(queue) > depth:
            first, future = queue.pop(0)
            yield first, future.result()
    while queue:
        first, future = queue.pop(0)
        yield first, future.result()


def _settled(futures: list[Future[None]]) -> list[Future[None]]:
    """Those still running; raises what a finished one raised."""
    for future in futures:
        if future.done():
            future.result()
    return [future for future in futures if not future.done()]


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))

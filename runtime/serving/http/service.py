"""From the bytes of an image to an answer, on a bounded number of threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.decode import reading_record
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.errors import DenseportError, InputError
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.segmenter.opening import open_predictor
from denseport.runtime.selection import why_unsupported
from denseport.runtime.serving.http.answers import Answer, AnswerOptions, DepthAnswers, MaskAnswers
from denseport.runtime.serving.http.images import check_sizes, decode_upload, naming
from denseport.runtime.serving.http.limits import Limits, Refusal
from denseport.runtime.system.machine import inspect_machine

if TYPE_CHECKING:
    from denseport.runtime.segmenter.depth import DepthEstimator

__all__ = ["Service"]

T = TypeVar("T")

CANARY_EVERY = 5.0  # seconds for which an answered image proves that the next one will be answered too


class Service:
    """A bundle whose artifacts are opened when they are first asked for; one is opened, and tried, at once.

    Args:
        artifact: the default one; None: the best for this machine.
        threads: CPU threads of each artifact's network and post-processing.

    Errors are those of `Segmenter`.
    """

    def __init__(
        self, bundle: Bundle, limits: Limits, *, artifact: str | None = None, threads: int | None = None
    ) -> None:
        self.bundle, self.manifest, self.limits = bundle, bundle.manifest, limits
        self._threads = threads
        answers: dict[str, Any] = {"segmentation": MaskAnswers, "depth": DepthAnswers}
        self.answers = answers[bundle.manifest.task]()
        first = open_predictor(bundle, artifact=artifact, threads=threads)
        self.default = first.artifact
        self.description = first.description
        self.caution = first.selection.caution
        self._open: dict[str, Segmenter | DepthEstimator] = {first.artifact: first}
        self._opening = threading.Lock()
        self.why_unsupported = _why_unsupported(bundle)  # by artifact; empty: it runs here
        self._pool = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="denseport-serve")
        self._canary = _gradient()
        self._expected = self.answers.numbers(first(self._canary))  # warms the network up, too
        self._proved = time.monotonic()
        self._proving = asyncio.Lock()
        self._times: defaultdict[str, dict[str, float]] = defaultdict(dict)  # milliseconds, by artifact and stage
        self._images: Counter[str] = Counter()  # by artifact

    def check(self, artifact: str | None) -> str:
        """The artifact that a request means.

        Raises:
            Refusal: 422, there is none of that name, or it does not run here.
        """
        if artifact is None:
            return self.default
        if artifact not in self.why_unsupported:
            raise Refusal(422, f"no artifact {artifact!r}", f"Ask for one of: {', '.join(self.why_unsupported)}.")
        if reason := self.why_unsupported[artifact]:
            raise Refusal(422, f"{artifact} does not run on this server: {reason}", "Ask for another artifact.")
        return artifact

    async def segment(
        self, data: bytes, options: AnswerOptions, deadline: float | None = None
    ) -> tuple[Any, dict[str, float], Answer]:
        """Decode, segment and encode one image in a thread; the second result is the milliseconds of each stage.

        Args:
            deadline: of `time.monotonic`; default: the timeout from now.

        Raises:
            Refusal: 400, 413 or 415 for an image that is not taken, 422 for one that has no whole patch, 504 when
                the time is out.
        """
        queued = time.perf_counter()
        seconds = self.limits.timeout if deadline is None else deadline - time.monotonic()
        found, milliseconds, answer = await self._within(lambda: self._work(data, options, queued), seconds)
        if found.artifact == self.default:
            self._proved = time.monotonic()
        totals = self._times[found.artifact]
        for stage, value in milliseconds.items():
            if stage != "open":  # happens once
                totals[stage] = totals.get(stage, 0.0) + value
        self._images[found.artifact] += 1
        return found, milliseconds, answer

    async def segment_all(
        self, images: Sequence[bytes], options: AnswerOptions, gone: Callable[[], Awaitable[bool]]
    ) -> list[tuple[Any, dict[str, float], Answer]]:
        """Segment the images of one request, one after another: between two of them, others have their turn.

        Args:
            gone: whether the client is; then the rest is left.

        Raises:
            Refusal: as `segment`, with the number of the image; 413, too many pixels together; 504 for all.
        """
        check_sizes(images, self.limits)
        results = []
        deadline = time.monotonic() + self.limits.timeout
        for number, data in enumerate(images, 1):
            if await gone():
                raise Refusal(400, "the client went away")
            with naming(number, len(images)):
                results.append(await self.segment(data, options, deadline))
        return results

    def mean_times(self, artifact: str) -> dict[str, float] | None:
        """Mean milliseconds of each stage over the images so far; None before the first."""
        count = self._images[artifact]
        return {stage: round(total / count, 2) for stage, total in self._times[artifact].items()} if count else None

    async def prove(self) -> None:
        """Segment a known image, unless a request was answered just now.

        Raises:
            Refusal: 503, it failed, took too long or gave another result than at the start.
        """
        async with self._proving:
            if time.monotonic() - self._proved < CANARY_EVERY:
                return
            try:
                found = await self._within(lambda: self._open[self.default](self._canary), self.limits.timeout)
            except Exception as err:  # whatever went wrong, images should go elsewhere
                raise Refusal(503, f"the canary image failed: {type(err).__name__}", "See the server's log.") from err
            if not np.array_equal(self.answers.numbers(found), self._expected):
                raise Refusal(503, "the canary image gave another result than at the start", "Start the server again.")
            self._proved = time.monotonic()

    def close(self) -> None:
        """Stop the threads and close the artifacts; images that are still waiting are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for segmenter in self._open.values():
            segmenter.close()

    async def _within(self, work: Callable[[], T], seconds: float) -> T:
        """Run ``work`` in a thread. At the timeout, work that still waits is dropped, and so is a later result."""
        future: Future[T] = self._pool.submit(work)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError as err:
            raise Refusal(
                504, f"no answer within {self.limits.timeout:g} s", "Send a smaller image, or try again later."
            ) from err

    def _work(self, data: bytes, options: AnswerOptions, queued: float) -> tuple[Any, dict[str, float], Answer]:
        times: dict[str, float] = {}
        last = _lap(times, "queue", queued)
        image = decode_upload(data, self.limits, loading(self.manifest.preprocess))
        last = _lap(times, "decode", last)
        segmenter = self._open.get(options.artifact)
        if segmenter is None:
            segmenter = self._opened(options.artifact)
            _lap(times, "open", last)
        try:
            found = self.answers.ask(segmenter, image, options)
        except InputError as err:  # an image that does not fit, or scores of a network that has none
            raise Refusal(422, err.message, err.remedy) from err
        times["preprocess"] = found.timings.preprocess
        times["network"] = found.timings.infer
        times["postprocess"] = found.timings.postprocess
        last = time.perf_counter()
        answer = None if options.format == "json" else self.answers.encode(found, options)
        _lap(times, "encode", last)
        if answer is None:
            answer = self.answers.report(found, {stage: round(value, 2) for stage, value in times.items()})
        return found, times, answer

    def _opened(self, artifact: str) -> Segmenter | DepthEstimator:
        with self._opening:
            if artifact not in self._open:
                try:
                    self._open[artifact] = open_predictor(self.bundle, artifact=artifact, threads=self._threads)
                except DenseportError as err:
                    raise RuntimeError(f"{artifact} cannot be opened: {err}") from err  # for the log, not the client
            return self._open[artifact]


def _lap(times: dict[str, float], stage: str, since: float) -> float:
    """Note the milliseconds of a stage that ends now; returns the time, seconds."""
    now = time.perf_counter()
    times[stage] = 1000 * (now - since)
    return now


def _why_unsupported(bundle: Bundle) -> dict[str, str]:
    artifacts = bundle.manifest.artifacts
    machine = inspect_machine(look_for_gpus=any(each.kind == "engine" for each in artifacts.values()) or None)
    with reading_record(str(bundle.path)):
        return {name: why_unsupported(each, machine)[0] for name, each in artifacts.items()}


def _gradient() -> NDArray[np.uint8]:
    """A small image with something of every colour."""
    y, x = np.mgrid[:96, :128]
    return np.stack([2 * x, 2.6 * y, 255 - x - y], axis=-1).clip(0, 255).astype(np.uint8)

"""The work behind the door: bytes of an image in, an answer out, on a bounded number of threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import DenseportError, ImageError
from denseport.runtime.pipeline.results import Timings
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.selection import why_unsupported
from denseport.runtime.serving.http.answers import Encoded, Format, Segmented, Wish, encode, report
from denseport.runtime.serving.http.images import decode_upload
from denseport.runtime.serving.http.limits import Limits, Refusal
from denseport.runtime.system.machine import inspect_machine

__all__ = ["Answer", "ArtifactState", "Service"]

T = TypeVar("T")

CANARY_EVERY = 5.0  # seconds for which an answered image proves that the next one will be answered too


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    found: Segmented
    encoded: Encoded | None  # None: JSON was asked for, which `report` holds
    report: dict[str, Any]


@dataclass(frozen=True)
class ArtifactState:
    """Whether an artifact can be asked for."""

    name: str
    precision: str
    kind: str
    why_unsupported: str  # why it does not run on this machine; empty if it does
    record: dict[str, Any]


class Service:
    """A bundle whose artifacts are opened when they are first asked for; one is opened, and tried, at once.

    Args:
        artifact: the default one; None: the best for this machine.
        threads: CPU threads of each artifact's network and post-processing.

    Raises:
        BundleError, MachineError: as `Segmenter`.
    """

    def __init__(
        self, bundle: Bundle, limits: Limits, *, artifact: str | None = None, threads: int | None = None
    ) -> None:
        self.bundle, self.limits = bundle, limits
        self._threads = threads
        first = Segmenter(bundle, artifact=artifact, threads=threads)
        self.default = first.artifact
        self.description = first.description
        self.caution = first.selection.caution
        self._open = {first.artifact: first}
        self._opening = threading.Lock()
        self.artifacts = _states(bundle)
        self._pool = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="denseport-serve")
        self._canary = _gradient()
        self._expected = first(self._canary).mask  # warms the network up, too
        self._proved = time.monotonic()
        self._proving = asyncio.Lock()
        self._stages: dict[str, dict[str, float]] = {}  # milliseconds in all, by artifact and stage
        self._images: Counter[str] = Counter()  # by artifact

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def check(self, artifact: str | None) -> str:
        """The artifact that a request means.

        Raises:
            Refusal: 422, there is none of that name, or it does not run here.
        """
        if artifact is None:
            return self.default
        state = self.artifacts.get(artifact)
        if state is None:
            raise Refusal(422, f"no artifact {artifact!r}", f"Ask for one of: {', '.join(self.artifacts)}.")
        if state.why_unsupported:
            raise Refusal(
                422, f"{artifact} does not run on this server: {state.why_unsupported}", "Ask for another artifact."
            )
        return artifact

    async def segment(self, data: bytes, wish: Wish) -> Answer:
        """Decode, segment and encode one image in a thread.

        Raises:
            Refusal: 400, 413 or 415 for an image that is not taken, 422 for one that has no whole patch, 504 when
                the time is out.
        """
        artifact, queued = self.check(wish.artifact), time.perf_counter()
        answer = await self._within(lambda: self._work(data, wish, artifact, queued))
        self._note(answer.found)
        return answer

    def speed(self, artifact: str) -> dict[str, float] | None:
        """Mean milliseconds of a stage over the images so far; None before the first."""
        count = self._images[artifact]
        return {stage: round(total / count, 2) for stage, total in self._stages[artifact].items()} if count else None

    def _note(self, found: Segmented) -> None:
        if found.artifact == self.default:
            self._proved = time.monotonic()
        totals = self._stages.setdefault(found.artifact, {})
        for stage, milliseconds in found.milliseconds.items():
            if stage != "open":  # happens once
                totals[stage] = totals.get(stage, 0.0) + milliseconds
        self._images[found.artifact] += 1

    async def prove(self) -> None:
        """Segment a known image, unless a request was answered just now.

        Raises:
            Refusal: 503, it failed, took too long or came out otherwise than at the start.
        """
        async with self._proving:
            if time.monotonic() - self._proved < CANARY_EVERY:
                return
            try:
                mask = await self._within(lambda: self._open[self.default](self._canary).mask)
            except Exception as err:  # whatever went wrong, images should go elsewhere
                raise Refusal(503, f"the canary image failed: {type(err).__name__}", "See the server's log.") from err
            if not np.array_equal(mask, self._expected):
                raise Refusal(503, "the canary image came out otherwise than at the start", "Start the server again.")
            self._proved = time.monotonic()

    def close(self) -> None:
        """Stop the threads and let go of the artifacts; images that none has begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for segmenter in self._open.values():
            segmenter.close()

    async def _within(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread; when the time is out it is dropped if it waits, else its result is."""
        future: Future[T] = self._pool.submit(work)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError as err:
            raise Refusal(
                504, f"no answer within {self.limits.timeout:g} s", "Send a smaller image, or try again later."
            ) from err

    def _work(self, data: bytes, wish: Wish, artifact: str, queued: float) -> Answer:
        clock = _Clock(queued)
        clock.lap("queue")
        image = decode_upload(data, self.limits)
        clock.lap("decode")
        segmenter = self._open.get(artifact)
        if segmenter is None:
            segmenter = self._opened(artifact)
            clock.lap("open")
        try:
            segmentation = segmenter(image)
        except ImageError as err:
            raise Refusal(422, err.message, err.remedy) from err
        clock.note(segmentation.timings)
        found = Segmented(image, segmentation.mask, artifact, clock.milliseconds)
        encoded = None if wish.format is Format.JSON else encode(found, wish, self.manifest)
        clock.lap("encode")
        return Answer(found, encoded, report(found, self.manifest) if encoded is None else {})

    def _opened(self, artifact: str) -> Segmenter:
        with self._opening:
            if artifact not in self._open:
                try:
                    self._open[artifact] = Segmenter(self.bundle, artifact=artifact, threads=self._threads)
                except DenseportError as err:
                    raise RuntimeError(f"{artifact} cannot be opened: {err}") from err  # for the log, not the client
            return self._open[artifact]


def _states(bundle: Bundle) -> dict[str, ArtifactState]:
    artifacts = bundle.manifest.artifacts
    machine = inspect_machine(look_for_gpus=any(each.kind == "engine" for each in artifacts.values()) or None)
    return {
        name: ArtifactState(name, each.precision, each.kind, why_unsupported(each, machine)[0], each.record)
        for name, each in artifacts.items()
    }


def _gradient() -> NDArray[np.uint8]:
    """A small image with something of every colour."""
    y, x = np.mgrid[:96, :128]
    return np.stack([2 * x, 2.6 * y, 255 - x - y], axis=-1).clip(0, 255).astype(np.uint8)


class _Clock:
    """Milliseconds by stage."""

    def __init__(self, start: float) -> None:
        self._last = start
        self.milliseconds: dict[str, float] = {}

    def note(self, timings: Timings) -> None:
        """Take over the stages of a segmenter."""
        self._last = time.perf_counter()
        self.milliseconds["preprocess"] = timings.preprocess
        self.milliseconds["network"] = timings.infer
        self.milliseconds["postprocess"] = timings.postprocess

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.milliseconds[stage] = 1000 * (now - self._last)
        self._last = now

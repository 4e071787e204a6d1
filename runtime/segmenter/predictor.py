"""What a segmenter and a depth estimator share: an artifact opened on this machine, images in, results out."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.artifact import FOR_OPENVINO, QUANTIZED
from denseport.runtime.bundle.bundle import Bundle, refuse_other_task
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.errors import InputError
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.pipeline import Image, Job, Pipeline, Region
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.pipeline.results import MASK_ONLY, RequestedOutputs
from denseport.runtime.system.arguments import required_path, several, whole
from denseport.runtime.system.cpus import check_threads

if TYPE_CHECKING:
    from denseport.runtime.bundle.signature import Trust
    from denseport.runtime.selection import Selection

__all__ = ["BATCH", "Predictor"]

# Images of `submit` at a time: one in the network, one before or behind it.
SUBMITTED = 2
BATCH = 4  # images: of 150 classes at 683 x 512, their logits take 215 MB

Result = TypeVar("Result")


class Predictor(ABC, Generic[Result]):
    """A bundle of one task, ready for images. Safe to call from several threads.

    Args:
        bundle, artifact, protocol, threads, providers, device_path, session, trust: as of
            `denseport.runtime.segmenter.Segmenter`.
    """

    task: ClassVar[str]  # of the bundles that it opens
    _word: ClassVar[str]  # what messages call it
    _has_device_path: ClassVar[bool] = True  # a GPU can do all that is done to an image

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        artifact: str | None = None,
        protocol: str | Protocol = "reference",
        threads: int | None = None,
        providers: str | Sequence[str] | None = None,
        device_path: bool = False,
        session: Session | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        if trust is not None:
            from denseport.runtime.bundle.signature import verify

            verify(self.bundle, trust)
        refuse_other_task(self.bundle, self.task)
        if device_path and not self._has_device_path:
            raise InputError(f"device_path: a {self._word} resizes images on the CPU", "Leave it out.")
        self._device_path = device_path
        self.protocol = protocol if isinstance(protocol, Protocol) else parse_protocol(protocol, self.bundle.manifest)
        self._threads = threads = check_threads(threads)
        from denseport.runtime.selection import Selection, select_artifact  # reads installed packages: slow to import

        if session is not None:
            self.selection = Selection(artifact or "session", (), "given", {})
        else:
            self.selection = select_artifact(self.bundle, artifact, self.protocol)
            session = _open(self.bundle, self.selection, threads, providers)
        self.artifact = self.selection.name
        self._pipeline = self._open_pipeline(session)
        self._begin()

    @abstractmethod
    def _open_pipeline(self, session: Session) -> Pipeline[Result]:
        """What is done to every image, with an opened artifact."""

    @abstractmethod
    def __call__(self, image: Image) -> Result:
        """The result of one image."""

    def _begin(self) -> None:
        """The state that a clone does not share."""
        self._lock = threading.Lock()
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None  # of `submit`
        self._process = os.getpid()  # whose threads those are

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about the model: its task, pre-processing, …"""
        return self.bundle.manifest

    @property
    def session(self) -> Session:
        """The artifact opened on its back end: the network alone."""
        return self._pipeline.session

    @property
    def description(self) -> str:
        """Which artifact runs on what, for people."""
        return f"{self.artifact} on {self.session.description}"

    def read(self, path: Path | str) -> NDArray[np.uint8]:
        """An image file, (H, W, 3) uint8 BGR, as the checkpoint's test loads it.

        Raises:
            ImageError: it cannot be read.
        """
        return read_image(required_path("image", path), loading(self.protocol.preprocess))

    def _one(self, image: Image, requested: RequestedOutputs = MASK_ONLY, roi: Region | None = None) -> Result:
        self._refuse_closed()
        pipeline = self._pipeline
        return pipeline.finish(pipeline.infer(pipeline.prepare(image, requested, roi)))

    def _batch(self, images: Iterable[Image], size: int, requested: RequestedOutputs = MASK_ONLY) -> list[Result]:
        """Results in order; images that reach the network in one size go through it together, ``size`` at most."""
        self._refuse_closed()
        _refuse_one_image(images)
        size = whole("size", size, 1)
        results: dict[int, Result] = {}
        waiting: dict[tuple[int, ...], dict[int, Job]] = {}  # by the shape of the network's input
        for i, image in enumerate(images):
            job = self._pipeline.prepare(image, requested)
            key: tuple[int, ...] = (i,)  # alone: sliding windows and multiple scales have sizes of their own
            most = 1
            if job.single is not None:
                key = job.single.shape
                limits = self.session.largest_batch(*job.single.shape[2:]), self.manifest.input.shape[0]
                most = min([size, *filter(None, limits)])
            group = waiting.setdefault(key, {})
            group[i] = job
            if len(group) >= most:
                results.update(self._together(waiting.pop(key)))
        for group in waiting.values():
            results.update(self._together(group))
        return [results[i] for i in range(len(results))]

    def _together(self, group: dict[int, Job]) -> Iterator[tuple[int, Result]]:
        jobs = list(group.values())
        if len(jobs) == 1:
            self._pipeline.infer(jobs[0])
        else:
            self._pipeline.infer_together(jobs)
        for i, job in group.items():
            yield i, self._pipeline.finish(job)
            job.maps = None  # logits are large

    def _stream(
        self, images: Iterable[Image], depth: int, smoothing: float, requested: RequestedOutputs = MASK_ONLY
    ) -> Generator[Result]:
        """Results in order, their images decoded ahead of the network; arguments as of `Segmenter.stream`."""
        from denseport.runtime.pipeline.stream import pipelined
        from denseport.runtime.pipeline.temporal import Smoother

        self._refuse_closed()
        _refuse_one_image(images)
        depth = whole("depth", depth, 1)  # a stream of depth NaN would wait for ever
        requested.check(len(self.manifest.classes), self.manifest.scores)
        smoother = Smoother(smoothing)

        def prepare(image: Image) -> Job:
            self._refuse_closed()
            if isinstance(image, np.ndarray):
                image = image.copy()  # the source may fill one buffer with frame after frame
            return self._pipeline.prepare(image, requested, keep_logits=bool(smoothing))

        def infer(job: Job) -> Job:
            self._pipeline.infer(job)
            if smoothing:
                assert job.maps is not None  # they were asked for
                self._pipeline.check_finite(job.maps)  # one frame would spoil all that follow
                job.maps = smoother(job.maps, job.image)
            return job

        return pipelined(images, {"prepare": prepare, "infer": infer, "finish": self._pipeline.finish}, depth)

    async def _submit(self, image: Image, **options: Any) -> Result:
        """A call in a thread, without holding up the event loop."""
        import asyncio  # here: it would make up a fifth of this module's import

        with self._lock:
            self._refuse_closed()
            if self._executor is None or self._process != os.getpid():  # a forked process has none of its threads
                self._executor = ThreadPoolExecutor(SUBMITTED, "denseport-submit")
                self._process = os.getpid()
            future = self._executor.submit(self, image, **options)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self._refuse_closed()  # it was `close` that cancelled, not the task's owner
            raise

    def warmup(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Run a black image of each size (height, width), so that the first real one is not slower.

        What libraries do at the first run of a size (kernels compiled or chosen, memory taken, CUDA graphs recorded)
        is then done.

        Raises:
            ImageError, InputError: no image has that size, or one that reaches the network.
        """
        for height, width in shapes:
            try:
                image = np.zeros((height, width, 3), np.uint8)
            except (ValueError, TypeError, MemoryError) as err:
                raise InputError(f"no image is {height} pixels high and {width} wide: {err}") from err
            self(image)

    def clone(self) -> Self:
        """Another one of the same opened artifact, that is closed on its own.

        For parts of a program that each hold and close theirs; several threads may also share one. Weights
        are in memory once, and the artifact is closed with the last of them.
        """
        self._refuse_closed()
        self._pipeline.session.share()
        new = copy(self)
        new._begin()
        return new

    def predict(self, image: NDArray[np.uint8]) -> list[list[LogitMap]]:
        """The network's part of a call: its logits or depths for each view of an image, at their own resolution.

        Raises:
            ImageError, BundleError: as a call.
        """
        self._refuse_closed()
        job = self._pipeline.infer(self._pipeline.prepare(image, keep_logits=True))
        assert job.maps is not None  # they were asked for
        return job.maps

    def close(self) -> None:
        """Let go of the artifact; what waits in `submit` is given up, what is under way there is waited for.

        The last one of the artifact also waits for other threads' runs. It cannot be used again; closing it twice
        does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        self.session.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InputError(f"the {self._word} is closed", "Use it inside its with block, or open another.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_one_image(images: Iterable[Image]) -> None:
    if not isinstance(images, Iterable):
        raise InputError(f"images cannot be {images!r}", "Give a list of images.")
    if isinstance(images, str | Path | bytes):  # a text is iterable too: letter by letter
        shown = f"{len(images)} bytes" if isinstance(images, bytes) else repr(str(images))
        raise InputError(f"{shown} is one image, where several were expected", "Give a list: [image].")


def _open(bundle: Bundle, selection: Selection, threads: int | None, providers: Sequence[str] | None) -> Session:
    path, artifact = bundle.verified(selection.name), bundle.artifact(selection.name)
    providers = several("providers", providers)
    if artifact.target == FOR_OPENVINO:
        from denseport.runtime.backends.openvino import OpenVinoSession

        if providers:
            what = f"{selection.name} runs on OpenVINO, and {', '.join(providers)} is of ONNX Runtime"
            raise InputError(what, "Leave the providers out, or name another artifact.")
        digests = list(artifact.files.values())
        precision, quantized = artifact.float_precision, artifact.precision in QUANTIZED
        return OpenVinoSession(path, precision=precision, quantized=quantized, threads=threads, digests=digests)
    if artifact.kind == "onnx":
        from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession

        providers = providers or selection.providers
        return OnnxRuntimeSession(path, target=artifact.target, threads=threads, providers=providers)
    from denseport.runtime.backends.tensorrt import TensorRTSession
    from denseport.runtime.bundle.engine_record import BuildRecord

    return TensorRTSession(path, BuildRecord.from_dict(artifact.record, f"{bundle.path}: {selection.name}"))

"""The public runtime: image in, mask out."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.bundle.artifact import FOR_OPENVINO, QUANTIZED
from denseport.runtime.bundle.bundle import Bundle, refuse_other_task
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.pipeline import Image, Job, Pipeline, Region
from denseport.runtime.pipeline.reduce import decide
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.pipeline.results import RequestedOutputs, Segmentation
from denseport.runtime.system.arguments import several, whole
from denseport.runtime.system.cpus import check_threads

if TYPE_CHECKING:
    from denseport.runtime.pipeline.device_path import DevicePath
    from denseport.runtime.selection import Selection

__all__ = ["Segmenter"]

# Images of `submit` at a time: one in the network, one before or behind it.
SUBMITTED = 2
BATCH = 4  # images: of 150 classes at 683 x 512, their logits take 215 MB


class Segmenter:
    """A bundle, ready to segment images. Safe to call from several threads.

    ::

        with Segmenter("bundle") as segment:
            mask = segment("street.jpg").mask

    Args:
        bundle: a bundle's folder.
        artifact: which artifact runs; default: the best for this machine (`denseport.runtime.selection`).
        protocol: how images reach the network: "reference" is as the checkpoint was tested, "ms-flip" averages
            twelve scaled and mirrored views, "native" slides over images of any size without resizing them;
            `denseport.runtime.bundle.protocol.parse_protocol` has them all.
        threads: for the network and for post-processing; default: the CPUs this process may use.
        providers: ONNX Runtime's execution providers for an ONNX artifact, best first, such as
            ``("TensorrtExecutionProvider", "CUDAExecutionProvider")``; default: CUDA if it can, else the CPU.
        device_path: resize, normalise and decide on the GPU too, so that an image goes up as bytes and comes back as
            a mask, for calls that want only the mask. Where this cannot be, the CPU does it; `description` says why.
        session: an opened network to run instead of an artifact's, such as the checkpoint's own in torch; ``artifact``
            is what results and messages call it. It is closed with the segmenter.

    Raises:
        BundleError: the bundle is incomplete or altered.
        MachineError: what the artifact needs is not installed.
        InputError: another number of threads, or a protocol that does not exist.
    """

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
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        refuse_other_task(self.bundle, "segmentation")
        self.protocol = protocol if isinstance(protocol, Protocol) else parse_protocol(protocol, self.bundle.manifest)
        self._threads = threads = check_threads(threads)
        from denseport.runtime.selection import Selection, select_artifact  # reads installed packages: slow to import

        if session is not None:
            self.selection = Selection(artifact or "session", (), "given", {})
        else:
            self.selection = select_artifact(self.bundle, artifact, self.protocol)
            session = _open(self.bundle, self.selection, threads, providers)
        self.artifact = self.selection.name
        self._images_on = ""  # where images are resized, in words, if the GPU was asked to
        device = self._open_device_path(session) if device_path else None
        self._session = SharedSession(device or session)
        self._pipeline = Pipeline(
            self.manifest, self.bundle.path, self.artifact, self.protocol, self._session, threads, device
        )
        self._begin()

    def _open_device_path(self, session: Session) -> DevicePath | None:
        from denseport.runtime.pipeline.device_path import open_device_path

        try:
            device = open_device_path(session, self.protocol, align_corners=self.manifest.align_corners)
        except MachineError as err:
            self._images_on = f"; images on the CPU: {' '.join(filter(None, (err.message, err.remedy)))}"
            return None
        self._images_on = "; images on the GPU"
        return device

    def _begin(self) -> None:
        """The state that a clone does not share."""
        self._lock = threading.Lock()
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None  # of `submit`
        self._process = os.getpid()  # whose threads those are

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about the model: classes, palette, pre-processing, …"""
        return self.bundle.manifest

    @property
    def session(self) -> Session:
        """The artifact opened on its back end: the network alone."""
        return self._session

    @property
    def description(self) -> str:
        """Which artifact runs on what, for people; and where images are resized, if the GPU was asked to."""
        return f"{self.artifact} on {self._session.description}{self._images_on}"

    def read(self, path: Path | str) -> NDArray[np.uint8]:
        """An image file, (H, W, 3) uint8 BGR, as the checkpoint's test loads it.

        Raises:
            ImageError: it cannot be read.
        """
        return read_image(Path(path), loading(self.protocol.preprocess))

    def __call__(
        self, image: Image, *, scores: bool = False, top_k: int = 0, roi: Region | None = None
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: (H, W, 3) uint8 BGR, as cv2.imread gives it; a file, its bytes, or an object open for reading
                them; or an image of Pillow's.
            scores: also the probability of each pixel's class.
            top_k: also so many likeliest classes of each pixel, and their probabilities.
            roi: only this part of the image: x, y, width, height in pixels; the result has its size.

        Raises:
            ImageError: a file that cannot be read, another shape or type, or so narrow that it has no whole patch.
            InputError: a region outside the image, more classes than there are, or the segmenter is closed.
        """
        self._refuse_closed()
        pipeline = self._pipeline
        return pipeline.finish(pipeline.infer(pipeline.prepare(image, RequestedOutputs(scores, top_k), roi)))

    def batch(
        self, images: Iterable[Image], *, scores: bool = False, top_k: int = 0, size: int = BATCH
    ) -> list[Segmentation]:
        """Segment several images, of any sizes; those that reach the network in one size go through it together.

        Results are in order. On a GPU this is faster than one by one; on a CPU hardly. Masks equal those of single
        calls up to ties: a network rounds a batch and a single image differently. With ``device_path``, images of
        which only masks are wanted go one by one.

        Args:
            images, scores, top_k: as for a call.
            size: images that go through the network together at most; an engine built for fewer takes fewer.

        Raises:
            InputError: ``size`` is no whole number from 1 up; else as a call.
        """
        self._refuse_closed()
        _refuse_one_image(images)
        size = whole("size", size, 1)
        results: dict[int, Segmentation] = {}
        waiting: dict[tuple[int, ...], dict[int, Job]] = {}  # by the shape of the network's input
        for i, image in enumerate(images):
            job = self._pipeline.prepare(image, RequestedOutputs(scores, top_k))
            key: tuple[int, ...] = (i,)  # alone: sliding windows and multiple scales have sizes of their own
            most = 1
            if job.single is not None:
                key = job.single.shape
                limits = self._session.largest_batch(*job.single.shape[2:]), self.manifest.input.shape[0]
                most = min([size, *filter(None, limits)])
            group = waiting.setdefault(key, {})
            group[i] = job
            if len(group) >= most:
                results.update(self._together(waiting.pop(key)))
        for group in waiting.values():
            results.update(self._together(group))
        return [results[i] for i in range(len(results))]

    def _together(self, group: dict[int, Job]) -> Iterator[tuple[int, Segmentation]]:
        jobs = list(group.values())
        if len(jobs) == 1:
            self._pipeline.infer(jobs[0])
        else:
            self._pipeline.infer_together(jobs)
        for i, job in group.items():
            yield i, self._pipeline.finish(job)
            job.maps = None  # logits are large

    def stream(
        self,
        images: Iterable[Image],
        *,
        depth: int = 2,
        scores: bool = False,
        top_k: int = 0,
        smoothing: float = 0.0,
    ) -> Generator[Segmentation]:
        """Segment a sequence: the next image is decoded, and the last one post-processed, beside the network.

        Results are in order. Whoever does not fetch them holds up the sequence: about ``3 * depth`` images are in
        memory. An exception of ``images``, or of an image, is raised after the results before it and ends the stream.
        Leaving early is safe: when the generator is closed or dropped, its threads end.

        Args:
            images: arrays or files, as for a call; iterated in a thread. An array is copied, and may be filled anew.
            depth: images that wait between two stages.
            scores, top_k: as for a call.
            smoothing: for the frames of a video, the weight of the past in [0, 1)
                (`denseport.runtime.pipeline.temporal`).

        Raises:
            InputError: ``depth`` no whole number from 1 up, ``smoothing`` outside [0, 1), or as for a call.
        """
        from denseport.runtime.pipeline.stream import pipelined
        from denseport.runtime.pipeline.temporal import Smoother

        self._refuse_closed()
        _refuse_one_image(images)
        depth = whole("depth", depth, 1)  # a stream of depth NaN would wait for ever
        requested = RequestedOutputs(scores, top_k)
        requested.check(len(self.manifest.classes), self.manifest.scores)
        smoother = Smoother(smoothing)

        def prepare(image: Image) -> Job:
            self._refuse_closed()
            if isinstance(image, np.ndarray):
                image = image.copy()  # the source may fill one buffer with frame after frame
            return self._pipeline.prepare(image, requested, keep_logits=bool(smoothing))

        def infer(job: Job) -> Job:
            if not smoothing:
                return self._pipeline.infer(job)
            self._pipeline.infer(job, keep_logits=True)
            assert job.maps is not None  # they were asked for
            self._pipeline.check_finite(job.maps)  # one frame would spoil all that follow
            job.maps = smoother(job.maps, job.image)
            return job

        return pipelined(images, {"prepare": prepare, "infer": infer, "finish": self._pipeline.finish}, depth)

    async def submit(
        self, image: Image, *, scores: bool = False, top_k: int = 0, roi: Region | None = None
    ) -> Segmentation:
        """Segment one image without holding up the event loop; arguments and errors as for a call.

        Two images are worked on at a time, the others wait. A cancelled task's image is not begun; if it is under
        way, its result is dropped.
        """
        import asyncio  # here: it would make up a fifth of this module's import

        with self._lock:
            self._refuse_closed()
            if self._executor is None or self._process != os.getpid():  # a forked process has none of its threads
                self._executor = ThreadPoolExecutor(SUBMITTED, "denseport-submit")
                self._process = os.getpid()
            future = self._executor.submit(self, image, scores=scores, top_k=top_k, roi=roi)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self._refuse_closed()  # it was `close` that cancelled, not the task's owner
            raise

    def warmup(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Segment a black image of each size (height, width), so that the first real one is not slower.

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

    def clone(self) -> Segmenter:
        """Another segmenter of the same opened artifact, that is closed on its own.

        For parts of a program that each hold and close theirs; several threads may also share one segmenter. Weights
        are in memory once, and the artifact is closed with the last of them.
        """
        self._refuse_closed()
        self._session.share()
        new = copy(self)
        new._begin()
        return new

    def predict(self, image: NDArray[np.uint8]) -> list[list[LogitMap]]:
        """The network's part of a call: its logits for each view of an image, at their own resolution.

        Raises:
            ImageError, BundleError: as a call.
        """
        self._refuse_closed()
        job = self._pipeline.infer(self._pipeline.prepare(image, keep_logits=True), keep_logits=True)
        assert job.maps is not None  # they were asked for
        return job.maps

    def decide(self, views: list[list[LogitMap]], threads: int | None = None) -> NDArray[np.unsignedinteger[Any]]:
        """The rest of a call: the mask (H, W) from the logits of `predict`, resized and compared tile by tile."""
        return decide(views, decision=self._pipeline.decision, threads=threads or self._threads).mask

    def close(self) -> None:
        """Let go of the artifact; what waits in `submit` is given up, what is under way there is waited for.

        The last segmenter of the artifact also waits for other threads' runs. It cannot be used again; closing it twice
        does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        self._session.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InputError("the segmenter is closed", "Use it inside its with block, or open another.")

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_one_image(images: Iterable[Image]) -> None:
    if isinstance(images, str | Path | bytes):  # a text is iterable too: letter by letter
        shown = f"{len(images)} bytes" if isinstance(images, bytes) else repr(str(images))
        raise InputError(f"{shown} is one image, where several were expected", "Give a list: [image].")


def _open(bundle: Bundle, selection: Selection, threads: int | None, providers: Sequence[str] | None) -> Session:
    path, artifact = bundle.verified(selection.name), bundle.artifact(selection.name)
    if artifact.target == FOR_OPENVINO:
        from denseport.runtime.backends.openvino import OpenVinoSession

        if providers:
            what = f"{selection.name} runs on OpenVINO, and {', '.join(several(providers))} is of ONNX Runtime"
            raise InputError(what, "Leave the providers out, or name another artifact.")
        digests = list(artifact.files.values())
        precision, quantized = artifact.float_precision, artifact.precision in QUANTIZED
        return OpenVinoSession(path, precision=precision, quantized=quantized, threads=threads, digests=digests)
    if artifact.kind == "onnx":
        from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession

        providers = several(providers) or selection.providers
        return OnnxRuntimeSession(path, target=artifact.target, threads=threads, providers=providers)
    from denseport.runtime.backends.tensorrt import TensorRTSession
    from denseport.runtime.bundle.engine_record import BuildRecord

    return TensorRTSession(path, BuildRecord.from_dict(artifact.record, f"{bundle.path}: {selection.name}"))

"""The way of an image to its result, in three steps that run one after another or side by side.

`prepare` decodes, resizes and normalises; `infer` runs the network; `finish` turns its logits into classes
(`SegmentationPipeline`), or its depths into depths of the image (`denseport.runtime.pipeline.depth`). Images are
(H, W, 3) uint8 BGR, [0, 255]; network inputs (1, C, h, w) float32; logits (C, h / stride, w / stride) float32, of
depth with C = 1.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import isfinite
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import BundleError, ImageError, InputError
from denseport.runtime.media.images import PillowImage, open_image, reading
from denseport.runtime.pipeline.network_input import view_inputs
from denseport.runtime.pipeline.reduce import Canvas, Decision, decide
from denseport.runtime.pipeline.resample import LogitMap, Placement, slide_maps
from denseport.runtime.pipeline.results import MASK_ONLY, RequestedOutputs, Segmentation, Timings
from denseport.runtime.pipeline.views import View, protocol_views, windows

if TYPE_CHECKING:
    from denseport.runtime.pipeline.device_path import DevicePath

__all__ = ["Image", "Job", "Logits", "Pipeline", "Region", "SegmentationPipeline", "checked_image"]

# (H, W, 3) uint8 BGR; a file, its bytes, an object open for reading them; or Pillow's.
Image = NDArray[np.uint8] | Path | str | bytes | BinaryIO | PillowImage
Region = tuple[int, int, int, int]  # x, y, width, height; pixels from the image's upper left corner
Logits = NDArray[np.float32]  # (C, h, w)
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass
class Job:
    """One image on its way. Each step fills in its part and lets go of what the next does not need."""

    image: NDArray[np.uint8]  # (H, W, 3), what is segmented: the whole, or the region that was asked for
    requested: RequestedOutputs
    views: list[View]
    # Of each view: a list of one for a whole image; for sliding windows an iterator that makes them one by one.
    inputs: list[Iterable[NDArray[np.float32]]] = field(default_factory=list)
    maps: list[list[LogitMap]] | None = None  # of each view; None where the windows were decided one by one
    canvas: Canvas | None = None
    keep_logits: bool = False  # hold them in ``maps``, finite or not, whatever else could be done
    on_device: bool = False  # the GPU does all of it
    timings: Timings = field(default_factory=Timings)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, or of the region of it, in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def single(self) -> NDArray[np.float32] | None:
        """The one input of an image that the network sees once and whole; None for all others."""
        return self.inputs[0][0] if len(self.inputs) == 1 and isinstance(self.inputs[0], list) else None


@dataclass(frozen=True)
class Pipeline(ABC, Generic[Result]):
    """What is done to every image. Holds no state of its own: safe in threads.

    Args:
        name: of the artifact.
        where: the bundle, for messages.
        threads: for post-processing; None: all that this process may use.
    """

    manifest: Manifest
    where: Path
    name: str
    protocol: Protocol
    session: SharedSession
    threads: int | None

    gives: ClassVar[str]  # what the network gives, in the plural

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of the network's output."""

    @abstractmethod
    def _maps(self, job: Job, view: View, logits: Sequence[Logits]) -> list[LogitMap]:
        """What the network gave of a view's windows, or of the one whole, and its way to the image's pixels."""

    @abstractmethod
    def finish(self, job: Job) -> Result:
        """From what the network gave to the result at the image's own size."""

    def prepare(
        self,
        image: Image,
        requested: RequestedOutputs = MASK_ONLY,
        region: Region | None = None,
        *,
        keep_logits: bool = False,
    ) -> Job:
        """Decode, cut, resize and normalise; the last two happen in `infer` where the GPU does them.

        Args:
            keep_logits: as of `Job`.

        Raises:
            ImageError: a file that cannot be read, an array that is not an image, or one too narrow for a patch.
            InputError: a region that does not lie inside the image, or more classes requested than there are.
        """
        requested.check(len(self.manifest.classes), self.manifest.scores)
        begin = decoded = time.perf_counter()
        with reading(image) if isinstance(image, str | Path) else nullcontext():
            if not isinstance(image, np.ndarray):
                image = open_image(image, loading(self.protocol.preprocess))
                decoded = time.perf_counter()
            image = _cut(checked_image(image), region)
            views = protocol_views(image.shape[:2], self.protocol, self.manifest.patch_size)
        job = Job(image, requested, views, keep_logits=keep_logits, timings=Timings(decode=_ms(decoded - begin)))
        job.on_device = self._fits_device(job)
        if not job.on_device:
            made = [view_inputs(image, view, self.protocol) for view in job.views]
            job.inputs = [list(each) for each in made] if self.protocol.inference.mode == "whole" else [*made]
            job.timings = replace(job.timings, preprocess=_ms(time.perf_counter() - decoded))
        return job

    def _fits_device(self, job: Job) -> bool:
        """Whether the GPU does all of it."""
        return False

    def infer(self, job: Job) -> Job:
        """Run the network."""
        begin = time.perf_counter()
        job.maps = [
            self._maps(job, view, [self._network(each)[0] for each in inputs])
            for view, inputs in zip(job.views, job.inputs, strict=True)
        ]
        if not job.keep_logits:
            self.check_finite(job.maps)
        job.inputs = []
        job.timings = replace(job.timings, infer=_ms(time.perf_counter() - begin))
        return job

    def infer_together(self, jobs: Sequence[Job]) -> None:
        """Run the network once for several images of one network size, whole mode, one view each."""
        begin = time.perf_counter()
        logits = self._network(np.concatenate([job.single for job in jobs if job.single is not None]))
        each = _ms(time.perf_counter() - begin) / len(jobs)
        for job, own in zip(jobs, logits, strict=True):
            job.maps, job.inputs = [self._maps(job, job.views[0], [own])], []
            self.check_finite(job.maps)
            job.timings = replace(job.timings, infer=each)

    def _network(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits or depths (N, C, h, w) of a batch, of as many channels as the manifest says."""
        logits = self.session.run(tensor)
        self._check_channels(logits.shape[1] if logits.ndim == 4 else 0)
        return logits

    def _check_channels(self, found: int) -> None:
        if found != self.channels:
            raise BundleError(
                f"{self.where}: {self._of_channels(found)}",
                "Export or import it again; a manifest is not to be edited by hand.",
            )

    @abstractmethod
    def _of_channels(self, found: int) -> str:
        """What is wrong with so many, in words."""

    def check_finite(self, views: list[list[LogitMap]]) -> None:
        """Raises BundleError for logits or depths, of `infer`, that are not finite."""
        for view in views:
            for part in view:
                self._require_finite(_is_finite(part.logits))

    def _require_finite(self, finite: bool) -> None:
        """A NaN wins every comparison or none: a mask would be whole, and wrong."""
        if not finite:
            raise BundleError(
                f"{self.where}: {self.name} gave {self.gives} that are not finite",
                "Choose another artifact; of segmentation denseport eval --explain says where they come from.",
            )


@dataclass(frozen=True)
class SegmentationPipeline(Pipeline[Segmentation]):
    """What a segmenter does to every image.

    Args:
        device: the session's network, where it also takes images and gives masks on the GPU.
    """

    gives = "logits"
    device: DevicePath | None = None

    @property
    def channels(self) -> int:
        return len(self.manifest.classes)

    def _fits_device(self, job: Job) -> bool:
        """The GPU gives masks and nothing else."""
        if self.device is None or job.keep_logits or job.requested != MASK_ONLY:
            return False
        return self.device.takes(job.size, job.views[0].size)

    def infer(self, job: Job) -> Job:
        """Run the network; a single view of sliding windows is decided on the way, so that no logits need be held."""
        if job.on_device:
            self._paint(job)
        elif job.single is None and len(job.views) == 1 and not job.keep_logits:
            self._slide(job)
        else:
            super().infer(job)
        return job

    def _maps(self, job: Job, view: View, logits: Sequence[Logits]) -> list[LogitMap]:
        place = self._placement(view, job)
        if not self.manifest.via_input and self.protocol.inference.mode == "whole" and view.cut == (0, 0):
            _, height, width = logits[0].shape
            place = replace(place, resized=(height, width))
        rows, cols = windows(place.resized, self.protocol.inference)
        return slide_maps(logits, rows, cols, place)

    def _placement(self, view: View, job: Job) -> Placement:
        """Where the image lies in what the network sees."""
        resized = view.stretched if self.protocol.inference.mode == "whole" else view.size
        return Placement(resized, job.size, view.cut, view.flip, self.manifest.align_corners)

    @property
    def decision(self) -> Decision:
        """How a pixel's class follows from its logits."""
        return Decision(self.protocol.augmentation is not None, self.manifest.threshold, self.manifest.temperature)

    def _paint(self, job: Job) -> None:
        assert self.device is not None  # _fits_device
        begin = time.perf_counter()
        job.canvas = Canvas((len(self.manifest.classes), *job.size), job.requested, self.decision)
        with self.session.in_use():
            found = self.device.paint(job.image, job.views[0].size, job.canvas.mask)
        self._check_channels(found.classes)
        self._require_finite(found.finite)
        job.timings = replace(job.timings, infer=_ms(time.perf_counter() - begin))

    def _slide(self, job: Job) -> None:
        """Decide the windows of the one view one by one."""
        from denseport.runtime.pipeline.sliding import slide

        begin, (view,) = time.perf_counter(), job.views
        inputs = _Timed(job.inputs[0])
        logits = _Timed(map(self._window_logits, inputs))
        spans, place = windows(view.size, self.protocol.inference), self._placement(view, job)
        job.canvas = slide(logits, spans, place, job.requested, self.decision, self.threads)
        job.inputs = []
        job.timings = replace(
            job.timings,
            preprocess=job.timings.preprocess + _ms(inputs.seconds),
            infer=_ms(logits.seconds - inputs.seconds),
            postprocess=_ms(time.perf_counter() - begin - logits.seconds),
        )

    def _window_logits(self, tensor: NDArray[np.float32]) -> Logits:
        found: Logits = self._network(tensor)[0]
        self._require_finite(_is_finite(found))
        return found

    def _of_channels(self, found: int) -> str:
        return f"{self.name} tells {found} classes apart, the manifest names {self.channels}"

    def finish(self, job: Job) -> Segmentation:
        """Resample the logits to the image's own size and decide, tile by tile."""
        begin = time.perf_counter()
        canvas = job.canvas
        if canvas is None:
            assert job.maps is not None  # infer fills in one of the two
            canvas = decide(job.maps, job.requested, self.decision, threads=self.threads)
        spent = job.timings.postprocess + _ms(time.perf_counter() - begin)
        return Segmentation(
            mask=canvas.mask,
            artifact=self.name,
            image=job.image,
            classes=self.manifest.classes,
            palette=self.manifest.palette,
            timings=replace(job.timings, postprocess=spent),
            scores=canvas.scores,
            top_classes=canvas.top_classes,
            top_scores=canvas.top_scores,
        )


class _Timed(Iterator[Item]):
    """Items as they come, and the seconds that they took to come."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - start


def _is_finite(logits: Logits) -> bool:
    return isfinite(logits.max()) and isfinite(logits.min())  # a NaN is both


def _ms(seconds: float) -> float:
    return 1000 * seconds


def checked_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image; raises ImageError for an array, or anything else, that is none."""
    if image is None:
        raise ImageError(
            "the image is None: cv2.imread could not read the file",
            "Check its path, or give the path: a Segmenter says what is wrong with a file.",
        )
    if not isinstance(image, np.ndarray):
        raise ImageError(f"a {type(image).__name__} is not an image", "Give a numpy array, a path, or a file's bytes.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ImageError(
            f"expected an image of shape (height, width, 3), uint8 BGR; got {image.shape} {image.dtype}",
            "denseport.runtime.media.images.read_image reads any image file as such.",
        )
    return image


def _cut(image: NDArray[np.uint8], region: Region | None) -> NDArray[np.uint8]:
    if region is None:
        return image
    try:
        # As Python's integers: the sum of two of numpy's small ones, as detectors give them, may overflow.
        x, y, w, h = map(index, region)
    except (TypeError, ValueError):
        raise InputError(
            f"the region {region!r} is not x, y, width, height in whole pixels", "Give four integers."
        ) from None
    height, width = image.shape[:2]
    if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
        raise InputError(
            f"the region {region} (x, y, width, height) does not lie inside the image of {width} x {height}",
            "Cut the region to the image first.",
        )
    return image[y : y + h, x : x + w]

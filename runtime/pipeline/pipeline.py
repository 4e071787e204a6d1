"""The steps from a picture to its segmentation, apart, so that they can be run one after another or side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from operator import index
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import BundleError, ImageError, InputError
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.device_path import DevicePath
from denseport.runtime.pipeline.outputs import MASK_ONLY, Canvas, Wish, decide
from denseport.runtime.pipeline.preprocess import normalise
from denseport.runtime.pipeline.resample import Field, whole_field
from denseport.runtime.pipeline.results import Segmentation, Timings
from denseport.runtime.pipeline.sliding import slide
from denseport.runtime.pipeline.views import View, protocol_views, show, slide_view

__all__ = ["Picture", "Region", "Steps", "Work"]

Picture = NDArray[np.uint8] | Path | str  # (H, W, 3) uint8 BGR, or a file
Region = tuple[int, int, int, int]  # x, y, width, height; pixels from the picture's upper left corner


@dataclass
class Work:
    """One picture on its way. Each step fills in its part and lets go of what the next does not need."""

    image: NDArray[np.uint8]
    wish: Wish
    views: list[View]
    inputs: list[NDArray[np.float32]] = field(default_factory=list)  # whole mode: (1, 3, h, w) of each view
    shown: list[NDArray[np.uint8]] = field(default_factory=list)  # slide mode: each view's picture
    fields: list[list[Field]] | None = None  # of each view; None where the windows were decided one by one
    canvas: Canvas | None = None
    on_device: bool = False  # the GPU does all of it
    timings: Timings = field(default_factory=Timings)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture, or of the region of it, in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Steps:
    """What a segmenter does to every picture. Holds no state of its own: safe in threads.

    Args:
        name: of the artifact.
        where: the bundle, for messages.
        threads: for post-processing; None: all that this process may use.
        device: the session, where it also takes pictures and gives masks on the GPU.
    """

    manifest: Manifest
    where: Path
    name: str
    protocol: Protocol
    session: SharedSession
    threads: int | None
    device: DevicePath | None = None

    def prepare(
        self, picture: Picture, wish: Wish = MASK_ONLY, region: Region | None = None, *, keep_logits: bool = False
    ) -> Work:
        """Decode, cut, resize and normalise; the last two happen in `infer` where the GPU does them.

        Args:
            keep_logits: as `infer` will be told.

        Raises:
            ImageError: a file that cannot be read, an array that is no picture, or a picture too narrow for a patch.
            InputError: a region that does not lie inside the picture, or more classes wished than there are.
        """
        wish.check(len(self.manifest.classes))
        begin = time.perf_counter()
        if isinstance(picture, str | Path):
            image = read_image(Path(picture))
            decoded = time.perf_counter()
        else:
            image, decoded = _checked(picture), begin
        image = _cut(image, region)
        work = Work(image, wish, protocol_views(image.shape[:2], self.protocol, self.manifest.patch_size))
        if self._on_device(work) and not keep_logits:
            work.on_device = True
            work.timings = Timings(decode=_ms(decoded - begin))
            return work
        shown = [show(image, view) for view in work.views]
        if self.protocol.inference.mode == "whole":
            work.inputs = [normalise(each, self.protocol.preprocess) for each in shown]
        else:
            work.shown = shown
        work.timings = Timings(decode=_ms(decoded - begin), preprocess=_ms(time.perf_counter() - decoded))
        return work

    def _on_device(self, work: Work) -> bool:
        """Whether the GPU does all of it: it gives masks and nothing else."""
        return self.device is not None and work.wish == MASK_ONLY and self.device.takes(work.size, work.views[0].size)

    def infer(self, work: Work, *, keep_logits: bool = False) -> Work:
        """Run the network.

        A single view of sliding windows is decided on the way, so that the logits need not be held.

        Args:
            keep_logits: hold them all the same; `prepare` was told so too.
        """
        if work.on_device:
            return self._paint(work)
        if work.shown and len(work.views) == 1 and not keep_logits:
            return self._slide(work)
        begin, protocol = time.perf_counter(), self.protocol
        if work.shown:
            shown = zip(work.shown, work.views, strict=True)
            work.fields = [
                slide_view(self.session, picture, view, work.size, protocol.preprocess, protocol.inference)
                for picture, view in shown
            ]
        else:
            work.fields = [
                [whole_field(self._network(tensor)[0], view.size, work.size, flip=view.flip)]
                for tensor, view in zip(work.inputs, work.views, strict=True)
            ]
        self._check_classes(len(work.fields[0][0].logits))
        if not keep_logits:
            self.check_finite(work.fields)
        work.timings = replace(work.timings, infer=_ms(time.perf_counter() - begin))
        work.inputs, work.shown = [], []
        return work

    def _paint(self, work: Work) -> Work:
        assert self.device is not None  # _on_device
        begin = time.perf_counter()
        canvas = Canvas((len(self.manifest.classes), *work.size), work.wish, averaged=False)
        with self.session.in_use():
            found = self.device.paint(work.image, work.views[0].size, canvas.mask)
        self._check_classes(found)
        work.canvas = canvas
        work.timings = replace(work.timings, infer=_ms(time.perf_counter() - begin))
        return work

    def _slide(self, work: Work) -> Work:
        begin, normalising = time.perf_counter(), 0.0

        def network(window: NDArray[np.uint8]) -> NDArray[np.float32]:
            nonlocal normalising
            start = time.perf_counter()
            tensor = normalise(window, self.protocol.preprocess)
            normalising += time.perf_counter() - start
            logits: NDArray[np.float32] = self._network(tensor)[0]
            self._check_finite(logits)
            return logits

        slid = slide(work.shown[0], work.size, self.protocol.inference, network, work.wish, self.threads)
        work.canvas, work.shown = slid.canvas, []
        seconds = time.perf_counter() - begin - normalising - slid.seconds_painting
        work.timings = replace(
            work.timings,
            preprocess=work.timings.preprocess + _ms(normalising),
            infer=_ms(seconds),
            postprocess=_ms(slid.seconds_painting),
        )
        return work

    def infer_together(self, works: Sequence[Work]) -> None:
        """Run the network once for several pictures of one network size, whole mode, one view each."""
        begin = time.perf_counter()
        logits = self._network(np.concatenate([work.inputs[0] for work in works]))
        self._check_finite(logits)
        each = _ms(time.perf_counter() - begin) / len(works)
        for work, own in zip(works, logits, strict=True):
            view = work.views[0]
            work.fields, work.inputs = [[whole_field(own, view.size, work.size, flip=view.flip)]], []
            work.timings = replace(work.timings, infer=each)

    def _network(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a batch, of as many classes as the manifest names."""
        logits = self.session.run(tensor)
        self._check_classes(logits.shape[1] if logits.ndim == 4 else 0)
        return logits

    def _check_classes(self, found: int) -> None:
        named = len(self.manifest.classes)
        if found != named:
            raise BundleError(
                f"{self.where}: {self.name} tells {found} classes apart, the manifest names {named}",
                "Export the checkpoint again; a manifest is not to be edited by hand.",
            )

    def check_finite(self, views: list[list[Field]]) -> None:
        """Raises BundleError for logits, of `infer`, that are not finite."""
        self._check_finite(*(part.logits for view in views for part in view))

    def _check_finite(self, *logits: NDArray[np.float32]) -> None:
        """A NaN wins every comparison or none: the mask would be whole, and wrong."""
        if not all(isfinite(part.max()) and isfinite(part.min()) for part in logits):  # both hand on a NaN
            raise BundleError(
                f"{self.where}: {self.name} gave logits that are not finite",
                "Choose another artifact; denseport eval --explain says where they come from.",
            )

    def finish(self, work: Work) -> Segmentation:
        """Resize the logits to the picture's own size and compare them, tile by tile."""
        begin = time.perf_counter()
        canvas = work.canvas
        if canvas is None:
            assert work.fields is not None  # infer fills in one of the two
            canvas = decide(work.fields, work.wish, averaged=self.protocol.tta is not None, threads=self.threads)
        spent = work.timings.postprocess + _ms(time.perf_counter() - begin)
        return Segmentation(
            mask=canvas.mask,
            artifact=self.name,
            image=work.image,
            timings=replace(work.timings, postprocess=spent),
            scores=canvas.scores,
            top_classes=canvas.top_classes,
            top_scores=canvas.top_scores,
        )


def _ms(seconds: float) -> float:
    return 1000 * seconds


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image is None:
        raise ImageError(
            "the picture is None: cv2.imread could not read the file",
            "Check its path, or give the path: a Segmenter says what is wrong with a file.",
        )
    if not isinstance(image, np.ndarray):
        raise ImageError(f"a {type(image).__name__} is no picture", "Give a numpy array or a path.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ImageError(
            f"expected a picture of shape (height, width, 3), uint8 BGR; got {image.shape} {image.dtype}",
            "denseport.runtime.media.images.read_image reads any picture file as such.",
        )
    return image


def _cut(image: NDArray[np.uint8], region: Region | None) -> NDArray[np.uint8]:
    if region is None:
        return image
    height, width = image.shape[:2]
    x, y, w, h = _whole_numbers(region)
    if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
        raise InputError(
            f"the region {region} (x, y, width, height) does not lie inside the picture of {width} x {height}",
            "Cut the region to the picture first.",
        )
    return image[y : y + h, x : x + w]


def _whole_numbers(region: Region) -> tuple[int, ...]:
    """As Python's integers: the sum of two of numpy's small ones, as detectors give them, may overflow."""
    try:
        values = tuple(index(value) for value in region)
    except TypeError:
        values = ()
    if len(values) != 4:
        raise InputError(f"the region {region!r} is not x, y, width, height in whole pixels", "Give four integers.")
    return values

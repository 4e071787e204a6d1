"""The public runtime: image in, mask out; `denseport.runtime.segmenter.depth` has what gives depths."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.errors import MachineError
from denseport.runtime.pipeline.pipeline import Image, Region, SegmentationPipeline
from denseport.runtime.pipeline.reduce import Decision, decide
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.pipeline.results import RequestedOutputs, Segmentation
from denseport.runtime.segmenter.predictor import BATCH, Predictor

if TYPE_CHECKING:
    from denseport.runtime.pipeline.device_path import DevicePath

__all__ = ["Segmenter"]


class Segmenter(Predictor[Segmentation]):
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
        trust: a file with a public key or certificates (PEM), or several files: a bundle that none of their owners
            signed, or that changed since, is refused (`denseport.runtime.bundle.signature.verify`).

    Raises:
        BundleError: the bundle is incomplete or altered, or not signed by whom ``trust`` names.
        MachineError: what the artifact needs is not installed.
        InputError: another number of threads, a protocol that does not exist, or a bundle of another task.
    """

    task, _word = "segmentation", "segmenter"
    _pipeline: SegmentationPipeline
    _images_on = ""  # where images are resized, in words, if the GPU was asked to

    def _open_pipeline(self, session: Session) -> SegmentationPipeline:
        device = self._open_device_path(session) if self._device_path else None
        shared = SharedSession(session, device.close if device else None)
        return SegmentationPipeline(
            self.manifest, self.bundle.path, self.artifact, self.protocol, shared, self._threads, device
        )

    def _open_device_path(self, session: Session) -> DevicePath | None:
        from denseport.runtime.pipeline.device_path import open_device_path

        try:
            how = {"align_corners": self.manifest.align_corners, "via_input": self.manifest.via_input}
            device = open_device_path(session, self.protocol, **how)
        except MachineError as err:
            self._images_on = f"; images on the CPU: {' '.join(filter(None, (err.message, err.remedy)))}"
            return None
        self._images_on = "; images on the GPU"
        return device

    @property
    def description(self) -> str:
        """Which artifact runs on what, for people; and where images are resized, if the GPU was asked to."""
        return f"{super().description}{self._images_on}"

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
        return self._one(image, RequestedOutputs(scores, top_k), roi)

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
            InputError: ``size`` is not a whole number from 1 up; else as a call.
        """
        return self._batch(images, size, RequestedOutputs(scores, top_k))

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
        return self._stream(images, depth, smoothing, RequestedOutputs(scores, top_k))

    async def submit(
        self, image: Image, *, scores: bool = False, top_k: int = 0, roi: Region | None = None
    ) -> Segmentation:
        """Segment one image without holding up the event loop; arguments and errors as for a call.

        Two images are worked on at a time, the others wait. A cancelled task's image is not begun; if it is under
        way, its result is dropped.
        """
        return await self._submit(image, scores=scores, top_k=top_k, roi=roi)

    @property
    def decision(self) -> Decision:
        """How a pixel's class and its probability follow from the logits."""
        return self._pipeline.decision

    def decide(
        self, views: list[list[LogitMap]], threads: int | None = None, *, scores: bool = False
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float32] | None]:
        """The rest of a call: the mask (H, W) from the logits of `predict`, resized and compared tile by tile.

        Args:
            scores: also the probability of each pixel's class, (H, W).
        """
        found = decide(views, RequestedOutputs(scores), self.decision, threads=threads or self._threads)
        return found.mask, found.scores

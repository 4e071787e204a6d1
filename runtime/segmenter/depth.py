"""The public runtime for depth: image in, depth of each pixel out."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.pipeline.depth import Depth, DepthPipeline, resized_depth
from denseport.runtime.pipeline.pipeline import Image, Region
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.segmenter.predictor import BATCH, Predictor

__all__ = ["DepthEstimator"]


class DepthEstimator(Predictor[Depth]):
    """A bundle of the task depth, ready for images. Safe to call from several threads.

    ::

        with DepthEstimator("bundle") as estimate:
            found = estimate("street.jpg")
            print(found.depth.shape, found.unit, found.larger_is)

    Arguments and errors are those of `denseport.runtime.segmenter.Segmenter`. ``device_path`` is refused: images are
    resized on the CPU.
    """

    task, _word, _has_device_path = "depth", "depth estimator", False

    def _open_pipeline(self, session: Session) -> DepthPipeline:
        shared = SharedSession(session)
        return DepthPipeline(self.manifest, self.bundle.path, self.artifact, self.protocol, shared, self._threads)

    def __call__(self, image: Image, *, roi: Region | None = None) -> Depth:
        """Estimate the depth of one image; arguments and errors as of `Segmenter.__call__`."""
        return self._one(image, roi=roi)

    def batch(self, images: Iterable[Image], *, size: int = BATCH) -> list[Depth]:
        """Several images, of any sizes; arguments and errors as of `Segmenter.batch`."""
        return self._batch(images, size)

    def stream(self, images: Iterable[Image], *, depth: int = 2, smoothing: float = 0.0) -> Generator[Depth]:
        """A sequence of images, side by side; arguments and errors as of `Segmenter.stream`.

        Args:
            depth: images that wait between two stages.
            smoothing: of metres, or of a relative depth whose scale does not jump from frame to frame.
        """
        return self._stream(images, depth, smoothing)

    async def submit(self, image: Image, *, roi: Region | None = None) -> Depth:
        """One image without holding up the event loop; arguments and errors as of `Segmenter.submit`."""
        return await self._submit(image, roi=roi)

    def resize(self, views: list[list[LogitMap]]) -> NDArray[np.float32]:
        """The rest of a call: (H, W) from the depths of `predict`."""
        return resized_depth(views)

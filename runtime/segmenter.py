"""The public runtime: picture in, mask out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime import postprocess
from denseport.runtime.backends import Session
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle import Bundle
from denseport.runtime.errors import ImageError
from denseport.runtime.inference import predict_view, single_view, tta_views
from denseport.runtime.manifest import Manifest

__all__ = ["Segmentation", "Segmenter"]

DEFAULT_ARTIFACT = "model.onnx"


@dataclass(frozen=True)
class Segmentation:
    """The result for one picture."""

    mask: NDArray[np.unsignedinteger[Any]]  # (H, W), class index of each pixel, at the picture's own size
    artifact: str  # the artifact that ran


class Segmenter:
    """A bundle, ready to segment pictures.

    ::

        with Segmenter("bundle") as segment:
            mask = segment(cv2.imread("street.jpg")).mask

    Args:
        bundle: a bundle's folder.
        artifact: which artifact runs.
        tta: multi-scale and flip testing in the convention of "0.x" or "1.x" (`denseport.runtime.inference.tta_views`);
            twelve times the work.
        threads: for the network and for post-processing; default: the CPUs this process may use.

    Raises:
        BundleError: the bundle is incomplete or altered.
        MachineError: what the artifact needs is not installed.
    """

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        artifact: str = DEFAULT_ARTIFACT,
        tta: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.artifact = artifact
        self.tta = tta
        self._threads = threads
        self._session: Session = OnnxRuntimeSession(self.bundle.verified(artifact), threads=threads)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about the model: classes, palette, pre-processing, …"""
        return self.bundle.manifest

    @property
    def description(self) -> str:
        """Which artifact runs on what, for people."""
        return f"{self.artifact} on {self._session.description}"

    def __call__(self, image: NDArray[np.uint8]) -> Segmentation:
        """Segment one picture.

        Args:
            image: (H, W, 3) uint8 BGR, as cv2.imread gives it.

        Raises:
            ImageError: another shape or type, or so narrow that it has no whole patch.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ImageError(
                f"expected a picture of shape (height, width, 3), uint8 BGR; got {image.shape} {image.dtype}",
                "denseport.runtime.images.read_image reads any picture file as such.",
            )
        manifest = self.manifest
        size = (image.shape[0], image.shape[1])
        if self.tta is None:
            views = [single_view(size, manifest.preprocess, manifest.patch_size)]
        else:
            views = tta_views(size, manifest.preprocess, self.tta)
        fields = [predict_view(self._session, image, view, manifest.preprocess, manifest.inference) for view in views]
        if self.tta is None:
            mask = postprocess.argmax(fields[0], threads=self._threads)
        else:
            mask = postprocess.mean_softmax_argmax(fields, threads=self._threads)
        return Segmentation(mask, self.artifact)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session

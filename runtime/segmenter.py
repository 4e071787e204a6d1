"""The public runtime: picture in, mask out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime import postprocess
from denseport.runtime.backends import Session
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.build_record import BuildRecord
from denseport.runtime.bundle import Bundle
from denseport.runtime.choice import choose
from denseport.runtime.errors import BundleError, ImageError
from denseport.runtime.inference import predict_view, single_view, tta_views
from denseport.runtime.manifest import Manifest
from denseport.runtime.postprocess import Field
from denseport.runtime.protocol import Protocol, parse_protocol

__all__ = ["Segmentation", "Segmenter"]


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
        artifact: which artifact runs; default: the best for this machine (`denseport.runtime.choice`).
        protocol: how pictures reach the network: "reference" is as the checkpoint was tested, "ms-flip" averages
            twelve scaled and mirrored views; `denseport.runtime.protocol.parse_protocol` has them all.
        threads: for the network and for post-processing; default: the CPUs this process may use.
        providers: ONNX Runtime's execution providers for an ONNX artifact, best first, such as
            ``("TensorrtExecutionProvider", "CUDAExecutionProvider")``; default: CUDA if it can, else the CPU.

    Raises:
        BundleError: the bundle is incomplete or altered.
        MachineError: what the artifact needs is not installed.
    """

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        artifact: str | None = None,
        protocol: str | Protocol = "reference",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.protocol = protocol if isinstance(protocol, Protocol) else parse_protocol(protocol, self.manifest)
        self._threads = threads
        self._providers = providers
        self.choice = choose(self.bundle, artifact)
        self.artifact = self.choice.name
        self._session = self._open()

    def _open(self) -> Session:
        path, artifact = self.bundle.verified(self.artifact), self.bundle.artifact(self.artifact)
        if artifact.kind == "onnx":
            return OnnxRuntimeSession(path, threads=self._threads, providers=self._providers or self.choice.providers)
        from denseport.runtime.backends.tensorrt import TensorRTSession

        return TensorRTSession(path, BuildRecord.from_dict(artifact.record, f"{self.bundle.path}: {self.artifact}"))

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
        """Which artifact runs on what, for people."""
        return f"{self.artifact} on {self._session.description}"

    def __call__(self, image: NDArray[np.uint8]) -> Segmentation:
        """Segment one picture.

        Args:
            image: (H, W, 3) uint8 BGR, as cv2.imread gives it.

        Raises:
            ImageError: another shape or type, or so narrow that it has no whole patch.
        """
        if image is None:
            raise ImageError(
                "the picture is None: cv2.imread could not read the file",
                "Check its path; denseport.runtime.images.read_image says what is wrong with a file.",
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ImageError(
                f"expected a picture of shape (height, width, 3), uint8 BGR; got {image.shape} {image.dtype}",
                "denseport.runtime.images.read_image reads any picture file as such.",
            )
        return Segmentation(self.decide(self.predict(image)), self.artifact)

    def predict(self, image: NDArray[np.uint8]) -> list[list[Field]]:
        """The network's part of a call: its logits for each view of a picture, at their own resolution.

        Raises:
            BundleError: the network has another number of classes than the manifest names.
        """
        protocol, size = self.protocol, (image.shape[0], image.shape[1])
        if protocol.tta is None:
            views = [single_view(size, protocol.preprocess, self.manifest.patch_size)]
        else:
            views = tta_views(size, protocol.preprocess, protocol.tta)
        fields = [predict_view(self._session, image, view, protocol.preprocess, protocol.inference) for view in views]
        found, named = len(fields[0][0].logits), len(self.manifest.classes)
        if found != named:
            raise BundleError(
                f"{self.bundle.path}: {self.artifact} tells {found} classes apart, the manifest names {named}",
                "Export the checkpoint again; a manifest is not to be edited by hand.",
            )
        return fields

    def decide(self, views: list[list[Field]], threads: int | None = None) -> NDArray[np.unsignedinteger[Any]]:
        """The rest of a call: the mask (H, W) from the logits of `predict`, resized and compared tile by tile."""
        threads = threads or self._threads
        if self.protocol.tta is None:
            return postprocess.argmax(views[0], threads=threads)
        return postprocess.mean_softmax_argmax(views, threads=threads)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session

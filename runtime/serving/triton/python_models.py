"""The models of a repository that run in Triton's Python back end.

A repository's ``model.py`` is one import of a class below; the environment of the server must have Denseport. Triton
calls ``initialize`` once for each instance (a process), then ``execute`` with the requests of a batch. The module
``triton_python_backend_utils`` exists in those processes only, hence the late imports. Arrays pass through DLPack:
stubs built for NumPy 1 read arrays of NumPy 2 as empty ("known issues" of release 2.51).
Source: README.md of triton-inference-server/python_backend (2.51).
"""

from __future__ import annotations

import json
import os
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.errors import ImageError, InputError, MachineError, ServerError
from denseport.runtime.serving.triton import ENCODED, IMAGE, MASK, OUTPUT

__all__ = ["BUNDLE", "Decoder", "NetworkSession", "SegmenterModel", "check_images"]

BUNDLE = "bundle"  # folder of a version that holds the bundle

# While a repository is reloaded the network can be ready a moment later than the model that asks it.
PATIENCE, PAUSE = 5.0, 0.05  # seconds


def check_images(images: NDArray[Any], max_pixels: int) -> None:
    """Refuse anything but a batch of images, (N, H, W, 3) uint8 of at most ``max_pixels`` each.

    Raises:
        ImageError: another shape or type, no pixel, or too many.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.size:
        raise ImageError(
            f"expected images of shape (N, height, width, 3), uint8 BGR; got {images.shape} {images.dtype}",
            "Send images as cv2.imread gives them.",
        )
    height, width = images.shape[1:3]
    if height * width > max_pixels:
        raise ImageError(
            f"an image of {width} x {height} pixels; this model takes {max_pixels} at most",
            "Scale it down, or export the repository with a larger --max-pixels.",
        )


class _Model(ABC):
    """What Triton's Python back end calls."""

    input = IMAGE  # the tensors' names
    output = MASK

    @abstractmethod
    def respond(self, array: NDArray[Any]) -> NDArray[Any]:
        """The output for the input of one request; errors are turned into Triton's by `execute`."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a request that fails does not touch the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import triton_python_backend_utils as pb

        if request.is_cancelled():
            error = pb.TritonError("the client gave up", pb.TritonError.CANCELLED)
            return pb.InferenceResponse(error=error)
        try:
            output = self.respond(np.from_dlpack(pb.get_input_tensor_by_name(request, self.input)))
            return pb.InferenceResponse([pb.Tensor.from_dlpack(self.output, output)])
        except InputError as err:
            code, text = pb.TritonError.INVALID_ARG, str(err)
        except ServerError as err:
            code, text = pb.TritonError.UNAVAILABLE, str(err)
        except Exception as err:  # must reach the client and the log, and not end the process
            pb.Logger.log_error(traceback.format_exc())
            code, text = pb.TritonError.INTERNAL, f"{type(err).__name__}: {err}"
        return pb.InferenceResponse(error=pb.TritonError(text, code))


class SegmenterModel(_Model):
    """Images in, masks or depths out, through the `Segmenter` or the `DepthEstimator` of the version's bundle.

    With the back ends onnxruntime and tensorrt_plan the network is another model of this server, of this version.
    Pre-processing, windows and post-processing are the runtime's own code all the same.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        """Open the bundle; where that fails, Triton reports the model as failed."""
        import cv2

        from denseport.runtime.bundle.bundle import Bundle
        from denseport.runtime.segmenter.opening import open_predictor

        parameters, version = _parameters(arguments), arguments["model_version"]
        self._max_pixels = int(parameters["max_pixels"])
        network, threads = parameters.get("network"), int(parameters["threads"])
        cv2.setNumThreads(threads)
        bundle = Bundle(Path(arguments["model_repository"]) / version / BUNDLE)
        self.output = parameters.get(OUTPUT, MASK)
        self._segmenter: Any = open_predictor(
            bundle,
            artifact=network or parameters["artifact"],
            threads=threads,
            session=NetworkSession(network, int(version), bundle.manifest.output) if network else None,
        )

    def respond(self, array: NDArray[Any]) -> NDArray[Any]:
        check_images(array, self._max_pixels)
        return np.stack([getattr(self._segmenter(image), self.output) for image in array])


@dataclass(frozen=True)
class NetworkSession(Session):
    """A session on another model of the same server."""

    model: str
    version: int
    output: str  # its tensor: "logits" or "depth"

    @property
    def description(self) -> str:
        return f"Triton's {self.model}, version {self.version}"

    def largest_batch(self, height: int, width: int) -> int | None:
        """One: the server itself makes batches, of several requests."""
        return 1

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits or depths (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32.

        Raises:
            InputError: the network refuses the input.
            ServerError: it is not served, and was not within `PATIENCE`.
            MachineError: it failed.
        """
        import triton_python_backend_utils as pb

        refusals = {
            pb.TritonError.INVALID_ARG: InputError,
            pb.TritonError.NOT_FOUND: ServerError,
            pb.TritonError.UNAVAILABLE: ServerError,
        }
        give_up = time.monotonic() + PATIENCE
        while True:
            request = pb.InferenceRequest(
                model_name=self.model,
                model_version=self.version,
                inputs=[pb.Tensor.from_dlpack(IMAGE, image)],
                requested_output_names=[self.output],
                preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
            )
            response = request.exec()
            if not response.has_error():
                # A copy: the response's memory is the server's again when it goes.
                return np.array(np.from_dlpack(pb.get_output_tensor_by_name(response, self.output)), np.float32)
            error = response.error()
            kind = refusals.get(error.code(), MachineError)
            if kind is not ServerError or time.monotonic() > give_up:
                raise kind(f"{self.model}, version {self.version}: {error.message()}")
            time.sleep(PAUSE)


class Decoder(_Model):
    """First step of the ensemble: an image file's bytes to (1, H, W, 3) uint8 BGR."""

    input = ENCODED
    output = IMAGE

    def initialize(self, arguments: dict[str, str]) -> None:
        """Set the limit before OpenCV, which reads it once, is loaded: a small file can hold a huge image."""
        parameters = _parameters(arguments)
        self._load = json.loads(parameters["load"])
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = parameters["max_pixels"]
        os.environ["OPENCV_LOG_LEVEL"] = "SILENT"

    def respond(self, array: NDArray[Any]) -> NDArray[Any]:
        from denseport.runtime.bundle.steps import Load
        from denseport.runtime.media.images import decode_image

        return decode_image(array.tobytes(), ENCODED, Load(**self._load))[None]


def _parameters(arguments: dict[str, str]) -> dict[str, str]:
    """What the export gave the model, from what Triton hands to ``initialize``."""
    config = json.loads(arguments["model_config"])
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}

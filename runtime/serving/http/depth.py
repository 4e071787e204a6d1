"""The formats in which the server sends depths."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import OutputError
from denseport.runtime.pipeline.depth import Depth
from denseport.runtime.serving.http.answers import JPEG_QUALITY, Answer, AnswerOptions
from denseport.runtime.serving.http.limits import Refusal

__all__ = ["DEPTH", "DEPTH_FORMATS", "DepthAnswers", "DepthFormat", "DepthReport"]

DEPTH = "/v1/depth"  # where images are sent
DEPTH_FORMATS = (
    "png: 16 bits, depth = value / X-Depth-Scale + X-Depth-Offset; overlay: JPEG of colours with a bar; json: unit and "
    "range; raw: little-endian float32 row by row, whose size is in X-Depth-Height, -Width; npz: numpy's arrays"
)


class DepthFormat(StrEnum):
    """What is sent back."""

    PNG = "png"
    OVERLAY = "overlay"
    JSON = "json"
    RAW = "raw"
    NPZ = "npz"


@dataclass(frozen=True)
class DepthReport:
    """What was found."""

    artifact: str
    width: int
    height: int
    unit: str  # "metres" or "relative"
    larger_is: str  # "farther" or "nearer"
    least: float
    most: float
    milliseconds: dict[str, float]  # by stage; "queue" is the wait for a free thread


class DepthAnswers:
    """`denseport.runtime.serving.http.answers.MaskAnswers` for depths."""

    formats = DepthFormat

    def ask(self, estimate: Any, image: NDArray[np.uint8], options: AnswerOptions) -> Depth:
        found: Depth = estimate(image)
        return found

    def numbers(self, found: Depth) -> NDArray[Any]:
        return found.depth

    def encode(self, found: Depth, options: AnswerOptions) -> Answer | None:
        height, width = found.depth.shape
        about = {"X-Depth-Width": str(width), "X-Depth-Height": str(height)}
        about |= {"X-Depth-Unit": found.unit, "X-Depth-Larger-Is": found.larger_is}
        if options.format == DepthFormat.OVERLAY:
            painted = found.overlay(opacity=options.opacity, legend=options.legend)
            return Answer(
                cv2.imencode(".jpg", painted, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(),
                "image/jpeg",
                about,
            )
        if options.format == DepthFormat.RAW:
            return Answer(found.depth.astype("<f4", copy=False).tobytes(), "application/octet-stream", about)
        if options.format == DepthFormat.NPZ:
            return Answer(found.to_npz(), "application/x-npz", about)
        if options.format == DepthFormat.JSON:
            return None
        try:
            png = found.to_png()
        except OutputError as err:
            raise Refusal(422, err.message, "Ask for format=npz or format=raw.") from err
        return Answer(
            png.data, "image/png", about | {"X-Depth-Scale": repr(png.scale), "X-Depth-Offset": repr(png.offset)}
        )

    def report(self, found: Depth, milliseconds: dict[str, float]) -> Answer:
        (height, width), (least, most) = found.depth.shape, found.span
        rounded = {stage: round(value, 2) for stage, value in milliseconds.items()}
        report = DepthReport(found.artifact, width, height, found.unit, found.larger_is, least, most, rounded)
        return Answer(json.dumps(dataclasses.asdict(report)).encode(), "application/json")

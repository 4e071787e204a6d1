"""The formats in which the server sends a mask, or depths."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import OutputError
from denseport.runtime.media.overlay import class_shares
from denseport.runtime.pipeline.results import Segmentation
from denseport.runtime.pipeline.saving import encode_npz
from denseport.runtime.serving.http.limits import Refusal

if TYPE_CHECKING:
    from denseport.runtime.pipeline.depth import Depth

__all__ = [
    "Answer", "AnswerOptions", "BatchFormat", "Coco", "DepthAnswers", "DepthBatchFormat", "DepthFormat", "DepthReport",
    "Format", "FoundClass", "GeoJson", "MaskAnswers", "Report", "pack",
]  # fmt: skip

JPEG_QUALITY = 92
# What is no JSON, in a zip.
ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "application/x-npz": "npz"}


@dataclass(frozen=True)
class AnswerOptions:
    """What a request asks for besides its image."""

    format: StrEnum  # one of the answers' formats
    artifact: str
    opacity: float  # of an overlay's colours, [0, 1]
    legend: bool  # beside an overlay
    gzip: bool  # the client can inflate a raw mask


@dataclass(frozen=True)
class Answer:
    """The body of an answer."""

    body: bytes
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


def pack(answers: Sequence[Answer]) -> Answer:
    """The answers to several images as one, in their order: a list of JSON, or a zip of 1.png, 2.png, …"""
    if answers[0].media_type not in ENDINGS:
        return Answer(b"[" + b",".join(each.body for each in answers) + b"]", "application/json")
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # not compressed: its entries are
        for number, each in enumerate(answers, 1):
            archive.writestr(zipfile.ZipInfo(f"{number}.{ENDINGS[each.media_type]}"), each.body)
    return Answer(packed.getvalue(), "application/zip")


def _overlay(found: Segmentation | Depth, options: AnswerOptions) -> Answer:
    image = found.overlay(opacity=options.opacity, legend=options.legend)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV cannot encode {image.shape} of {image.dtype} as JPEG")
    return Answer(data.tobytes(), "image/jpeg")


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


# Masks


class Format(StrEnum):
    """What is sent back."""

    MASK = "mask"  # PNG: indexed in the model's colours; 16-bit grey when there are more than 256 classes
    OVERLAY = "overlay"  # JPEG: the colours over the image, with a legend
    JSON = "json"  # the classes and their shares
    RAW = "raw"  # the indices themselves, row by row, uint8 or little-endian uint16
    COCO = "coco"  # JSON: a document of COCO's, with run lengths
    GEOJSON = "geojson"  # JSON: polygons in pixels
    NPZ = "npz"  # numpy's arrays: mask, and scores, the probability of each pixel's class


# Of several images. A raw mask's size stands in the header of its answer.
BatchFormat = Literal["mask", "overlay", "json", "coco", "geojson", "npz"]


@dataclass(frozen=True)
class FoundClass:
    """A class that occurs in the image."""

    index: int
    name: str
    colour: str  # "#rrggbb"
    percent: float  # of the image's pixels


@dataclass(frozen=True)
class Report:
    """What was found, largest class first."""

    artifact: str
    width: int
    height: int
    classes: list[FoundClass]
    milliseconds: dict[str, float]  # by stage; "queue" is the wait for a free thread


@dataclass(frozen=True)
class Coco:
    """COCO's document of one image (`denseport.runtime.media.shapes.coco`)."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


@dataclass(frozen=True)
class GeoJson:
    """GeoJSON's document of one image (`denseport.runtime.media.shapes.geojson`)."""

    type: Literal["FeatureCollection"]
    features: list[dict[str, Any]]


class MaskAnswers:
    """What a server does with an image and its result, of segmentation."""

    formats = Format
    opacity = 0.5  # of an overlay, unless a request says otherwise

    def ask(self, segment: Any, image: NDArray[np.uint8], options: AnswerOptions) -> Segmentation:
        """The result for an image, with all that the format holds."""
        found: Segmentation = segment(image, scores=options.format == Format.NPZ)
        return found

    def about(self, found: Segmentation) -> dict[str, str]:
        """Headers that say what the numbers of a result are."""
        height, width = found.mask.shape
        return {"X-Mask-Width": str(width), "X-Mask-Height": str(height)}

    def numbers(self, found: Segmentation) -> NDArray[Any]:
        """What is equal for equal images."""
        return found.mask

    def encode(self, found: Segmentation, options: AnswerOptions) -> Answer:
        """The result in every format but JSON."""
        if options.format == Format.OVERLAY:
            return _overlay(found, options)
        if options.format == Format.RAW:
            return _raw(found.mask, options.gzip)
        if options.format == Format.NPZ:
            return Answer(encode_npz(found), "application/x-npz")
        if options.format == Format.COCO:
            return Answer(_json(found.to_coco()), "application/json")
        if options.format == Format.GEOJSON:
            return Answer(_json(found.to_geojson()), "application/geo+json")
        return Answer(found.to_png(), "image/png")

    def report(self, found: Segmentation, milliseconds: dict[str, float]) -> Answer:
        """The result in JSON, which tells the time of each stage too."""
        classes = [
            FoundClass(
                index, found.classes[index].strip(), "#" + bytes(found.palette[index]).hex(), round(100 * share, 4)
            )
            for index, share in class_shares(found.mask, len(found.classes))
        ]
        height, width = found.mask.shape
        report = Report(found.artifact, width, height, classes, milliseconds)
        return Answer(_json(dataclasses.asdict(report)), "application/json")


def _raw(mask: NDArray[np.unsignedinteger[Any]], gzip: bool) -> Answer:
    little_endian = mask.astype("<u2" if mask.dtype.itemsize > 1 else "u1", copy=False)
    body = little_endian.tobytes()
    headers = {"X-Mask-Type": f"uint{8 * little_endian.itemsize}", "Vary": "Accept-Encoding"}
    if gzip:
        packer = zlib.compressobj(level=1, wbits=31)  # 31: with gzip's head and tail
        body = packer.compress(body) + packer.flush()
        headers["Content-Encoding"] = "gzip"
    return Answer(body, "application/octet-stream", headers)


# Depths

# Of several images. Each PNG says in itself how its values are meant.
DepthBatchFormat = Literal["png", "overlay", "json", "npz"]


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
    """`MaskAnswers` for depths."""

    formats = DepthFormat
    opacity = 1.0

    def ask(self, estimate: Any, image: NDArray[np.uint8], options: AnswerOptions) -> Depth:
        found: Depth = estimate(image)
        return found

    def about(self, found: Depth) -> dict[str, str]:
        height, width = found.depth.shape
        size = {"X-Depth-Width": str(width), "X-Depth-Height": str(height)}
        return size | {"X-Depth-Unit": found.unit, "X-Depth-Larger-Is": found.larger_is}

    def numbers(self, found: Depth) -> NDArray[Any]:
        return found.depth

    def encode(self, found: Depth, options: AnswerOptions) -> Answer:
        if options.format == DepthFormat.OVERLAY:
            return _overlay(found, options)
        if options.format == DepthFormat.RAW:
            return Answer(found.depth.astype("<f4", copy=False).tobytes(), "application/octet-stream")
        if options.format == DepthFormat.NPZ:
            return Answer(found.to_npz(), "application/x-npz")
        try:
            png = found.to_png()
        except OutputError as err:
            raise Refusal(422, err.message, "Ask for format=npz or format=raw.") from err
        return Answer(png.data, "image/png", {"X-Depth-Scale": repr(png.scale), "X-Depth-Offset": repr(png.offset)})

    def report(self, found: Depth, milliseconds: dict[str, float]) -> Answer:
        (height, width), (least, most) = found.depth.shape, found.span
        report = DepthReport(found.artifact, width, height, found.unit, found.larger_is, least, most, milliseconds)
        return Answer(_json(dataclasses.asdict(report)), "application/json")

"""The formats in which the server sends a mask."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.media.overlay import class_shares
from denseport.runtime.pipeline.results import Segmentation
from denseport.runtime.pipeline.saving import encode_npz

__all__ = [
    "Answer", "AnswerOptions", "BatchFormat", "Coco", "Format", "FoundClass", "GeoJson", "Report", "encode",
    "encode_report", "pack",
]  # fmt: skip

JPEG_QUALITY = 92
# What is no JSON, in a zip.
ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "application/x-npz": "npz"}


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
class AnswerOptions:
    """What a request asks for besides its image."""

    format: Format
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


def encode(found: Segmentation, options: AnswerOptions) -> Answer:
    """What was found, in every format but `Format.JSON`."""
    if options.format is Format.OVERLAY:
        image = found.overlay(opacity=options.opacity, legend=options.legend)
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not done:
            raise RuntimeError(f"OpenCV cannot encode {image.shape} of {image.dtype} as JPEG")
        return Answer(data.tobytes(), "image/jpeg")
    if options.format is Format.RAW:
        return _raw(found.mask, options.gzip)
    if options.format is Format.NPZ:
        return Answer(encode_npz(found), "application/x-npz")
    if options.format in (Format.COCO, Format.GEOJSON):
        is_coco = options.format is Format.COCO
        document = found.to_coco() if is_coco else found.to_geojson()
        return Answer(_json(document), "application/json" if is_coco else "application/geo+json")
    return Answer(found.to_png(), "image/png")


def _raw(mask: NDArray[np.unsignedinteger[Any]], gzip: bool) -> Answer:
    little_endian = mask.astype("<u2" if mask.dtype.itemsize > 1 else "u1", copy=False)
    body = little_endian.tobytes()
    headers = {"X-Mask-Type": f"uint{8 * little_endian.itemsize}", "Vary": "Accept-Encoding"}
    if gzip:
        packer = zlib.compressobj(level=1, wbits=31)  # 31: with gzip's head and tail
        body = packer.compress(body) + packer.flush()
        headers["Content-Encoding"] = "gzip"
    return Answer(body, "application/octet-stream", headers)


def encode_report(found: Segmentation, milliseconds: dict[str, float], manifest: Manifest) -> Answer:
    """`Report` as JSON."""
    classes = [
        FoundClass(
            index,
            manifest.classes[index].strip(),
            "#" + bytes(manifest.palette[index]).hex(),
            round(100 * share, 4),
        )
        for index, share in class_shares(found.mask, len(manifest.classes))
    ]
    height, width = found.mask.shape
    rounded = {stage: round(value, 2) for stage, value in milliseconds.items()}
    report = Report(found.artifact, width, height, classes, rounded)
    return Answer(_json(dataclasses.asdict(report)), "application/json")


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def pack(answers: Sequence[Answer]) -> Answer:
    """The answers to several images as one, in their order: a list of JSON, or a zip of 1.png, 2.png, …"""
    if answers[0].media_type not in ENDINGS:
        return Answer(b"[" + b",".join(each.body for each in answers) + b"]", "application/json")
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # not compressed: its entries are
        for number, each in enumerate(answers, 1):
            archive.writestr(zipfile.ZipInfo(f"{number}.{ENDINGS[each.media_type]}"), each.body)
    return Answer(packed.getvalue(), "application/zip")

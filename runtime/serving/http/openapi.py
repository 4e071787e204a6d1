"""What /openapi.json says of the paths that take images: texts, bodies, examples, errors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from denseport.runtime.media.shapes import coco, geojson
from denseport.runtime.serving.http.answers import (
    BatchFormat,
    Coco,
    DepthBatchFormat,
    DepthFormat,
    DepthReport,
    Format,
    FoundClass,
    GeoJson,
    Report,
)
from denseport.runtime.serving.http.schema import Failure
from denseport.runtime.serving.http.upload import BATCH, DEPTH, FIELD, IMAGE_TYPES, SEGMENT

__all__ = ["Endpoint", "batch_endpoint", "image_endpoint"]


@dataclass(frozen=True)
class Endpoint:
    """A path to which images are sent."""

    path: str
    summary: str
    description: str | None
    formats: Any  # the type of the parameter `format`
    formats_text: str
    body: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]


# Of the parameter `format`.
MASK_FORMATS = (
    "mask: PNG of class indices in the model's colours; overlay: JPEG; json: classes and shares; coco: run lengths; "
    "geojson: polygons in pixels; npz: numpy's arrays mask and scores"
)
RAW_MASK = "; raw: class indices row by row, whose size and type are in the headers X-Mask-Height, -Width, -Type"
DEPTH_FORMATS = (
    "png: 16 bits, depth = value / X-Depth-Scale + X-Depth-Offset, as its tEXt chunk says; overlay: JPEG of colours "
    "with a bar; json: unit and range; raw: little-endian float32 row by row, whose size is in X-Depth-Height, -Width; "
    "npz: numpy's arrays"
)
SEGMENT_TEXT = f"""A form with one file called {FIELD}, or the image as the body. EXIF rotation is applied.

    curl -F {FIELD}=@street.jpg -o mask.png 'http://127.0.0.1:8000{SEGMENT}'
    curl -F {FIELD}=@street.jpg 'http://127.0.0.1:8000{SEGMENT}?format=json'
    curl -H 'Content-Type: image/jpeg' --data-binary @street.jpg 'http://127.0.0.1:8000{SEGMENT}?format=coco'
"""
BATCH_TEXT = f"""A form with files, each called {FIELD}. The answer has a result for each, in their order: a JSON
list, or a zip of 1.png, 2.png, … where the format is not JSON. The files are segmented one after another. The limits
hold for all files together. A refused file refuses the request, and the error names it by its number.

    curl -F {FIELD}=@street.jpg -F {FIELD}=@photo.jpg -o masks.zip 'http://127.0.0.1:8000{BATCH}'
    curl -F {FIELD}=@street.jpg -F {FIELD}=@photo.jpg 'http://127.0.0.1:8000{BATCH}?format=json'
"""
DEPTH_BATCH_TEXT = f"""A form with files, each called {FIELD}. The answer has a result for each, in their order: a JSON
list, or a zip of 1.png, 2.png, … where the format is not JSON. The limits hold for all files together.

    curl -F {FIELD}=@street.jpg -F {FIELD}=@photo.jpg -o depths.zip 'http://127.0.0.1:8000{BATCH}'
"""

_IMAGE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP or BMP"}


def _form(field: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: field}, "additionalProperties": False}
    return {"multipart/form-data": {"schema": form}}


IMAGE_BODY = {"required": True, "content": {**_form(_IMAGE), **{kind: {"schema": _IMAGE} for kind in IMAGE_TYPES}}}
BATCH_BODY = {"required": True, "content": _form({"type": "array", "minItems": 1, "items": _IMAGE})}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_GEOJSON = {"$ref": "#/components/schemas/GeoJson"}
# By status: when, and an example.
_ERRORS = {
    400: (
        "The request or an image is damaged.",
        Failure("the form has no file 'image'", "Send a form: curl -F image=@street.jpg URL"),
    ),
    408: ("The images did not arrive in time.", Failure("no whole image within 60 s", "Try again.")),
    413: (
        "More bytes, images, pixels or JPEG scans than the server takes.",
        Failure("the request is larger than 33554432 bytes", "Scale the image down, or save it as JPEG."),
    ),
    415: (
        "An image of another format.",
        Failure("the image is not in one of the formats JPEG, PNG, WebP and BMP", "Convert it to PNG or JPEG."),
    ),
    422: (
        "A parameter that does not fit, or an image without one whole patch.",
        Failure("there is no parameter 'opacty'", "The parameters are: format, artifact, opacity, legend."),
    ),
    500: ("The server failed.", Failure("the server failed", "See its log.")),
    503: (
        "The queue is full, or the server is shutting down; Retry-After says when to try again.",
        Failure("18 requests are waiting already", "Try again later."),
    ),
    504: ("No answer in time.", Failure("no answer within 60 s", "Send a smaller image, or try again later.")),
}


def image_endpoint(task: str) -> Endpoint:
    """The path for one image."""
    if task == "depth":
        kinds = ("image/png", "image/jpeg", "application/x-npz", "application/octet-stream")
        content = {"application/json": _named({"json": _depth_example()}), **dict.fromkeys(kinds, _BINARY)}
        responses = _responses(DepthReport, content)
        summary = "Estimate the depth of an image"
        return Endpoint(DEPTH, summary, None, DepthFormat, DEPTH_FORMATS, IMAGE_BODY, responses)
    report, document, polygons = _examples()
    content = {
        "application/json": _named({"json": report, "coco": document}),
        "image/png": _BINARY,
        "image/jpeg": _BINARY,
        "application/geo+json": {"schema": _GEOJSON, **_named({"geojson": polygons})},
        "application/x-npz": _BINARY,
        "application/octet-stream": _BINARY,
    }
    responses = _responses(Report | Coco, content)
    return Endpoint(SEGMENT, "Segment an image", SEGMENT_TEXT, Format, MASK_FORMATS + RAW_MASK, IMAGE_BODY, responses)


def batch_endpoint(task: str) -> Endpoint:
    """The path for several images."""
    if task == "depth":
        content = {"application/json": _named({"json": [_depth_example()]}), "application/zip": _BINARY}
        responses = _responses(list[DepthReport], content)
        summary = "Estimate the depth of several images"
        return Endpoint(BATCH, summary, DEPTH_BATCH_TEXT, DepthBatchFormat, DEPTH_FORMATS, BATCH_BODY, responses)
    report, document, polygons = _examples()
    lists = {"json": [report], "coco": [document], "geojson": [polygons]}
    content = {"application/json": _named(lists), "application/zip": _BINARY}
    responses = _responses(list[Report] | list[Coco] | list[GeoJson], content)
    return Endpoint(BATCH, "Segment several images", BATCH_TEXT, BatchFormat, MASK_FORMATS, BATCH_BODY, responses)


def _depth_example() -> dict[str, Any]:
    times = {"queue": 0.1, "decode": 0.4, "network": 8.2, "encode": 0.1}
    return dataclasses.asdict(DepthReport("model.onnx", 640, 480, "metres", "farther", 0.71, 9.3, times))


def _responses(model: Any, content: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {
        200: {"model": model, "description": "In the format asked for.", "content": content}
    }
    for status, (text, failure) in _ERRORS.items():
        example = {"application/json": {"example": dataclasses.asdict(failure)}}
        found[status] = {"model": Failure, "description": text, "content": example}
    return found


def _named(examples: dict[str, Any]) -> dict[str, Any]:
    """Examples by the format that asks for them."""
    return {"examples": {name: {"summary": f"format={name}", "value": each} for name, each in examples.items()}}


def _examples() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The report, the document of COCO's and the polygons of a mask of 3 x 4 pixels, a sky over a road."""
    classes = ("road", "sky")
    mask = np.repeat(np.array([[1], [0], [0], [0]], np.uint8), 3, axis=1)
    found = [FoundClass(0, "road", "#804080", 75.0), FoundClass(1, "sky", "#4682b4", 25.0)]
    report = Report("model.onnx", 3, 4, found, {"queue": 0.1, "decode": 0.4, "network": 8.2, "encode": 0.1})
    return dataclasses.asdict(report), coco(mask, classes), geojson(mask, classes)

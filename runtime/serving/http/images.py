"""Uploaded images: format and size are checked before anything is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.steps import Load
from denseport.runtime.errors import ImageError
from denseport.runtime.media.images import LOAD, PNG_SIGNATURE, decode_image
from denseport.runtime.serving.http.limits import MAX_SIDE, Limits, Refusal

__all__ = ["check_sizes", "decode_upload", "image_size", "naming"]

NAME = "the image"  # in messages; what the client calls it is never used

# Start-of-frame markers; C4, C8 and CC are tables and extensions (ITU-T T.81, table B.1).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# A marker that ends the coded data of a scan; a stuffed FF, a restart and a fill byte do not (T.81, B.1.1.2).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# A decoder goes over the whole image for each scan of a progressive JPEG. A scan without data takes 10 bytes: a
# megabyte of them keeps a thread busy for many minutes. Encoders make about ten scans.
MAX_SCANS = 100


def decode_upload(data: bytes, limits: Limits, load: Load = LOAD) -> NDArray[np.uint8]:
    """Decode an image that a client sent, if its header is within the limits.

    Args:
        load: of the bundle's steps.

    Returns:
        (H, W, 3) BGR uint8.

    Raises:
        Refusal: 400 damaged, 413 too many pixels, 415 another format.
    """
    width, height = image_size(data)
    if width * height > limits.max_pixels or max(width, height) > MAX_SIDE:
        raise Refusal(
            413,
            f"{NAME} is {width} x {height}; the limit is {limits.max_pixels} pixels and {MAX_SIDE} a side",
            "Scale it down.",
        )
    if data.startswith(b"\xff\xd8\xff") and _has_more_scans(data):
        raise Refusal(413, f"{NAME} has more than {MAX_SCANS} scans", "Save it again, as a baseline JPEG.")
    try:
        image = decode_image(data, NAME, load)
    except ImageError as err:
        raise Refusal(400, err.message, err.remedy) from err
    if image.shape[0] * image.shape[1] != width * height:  # EXIF may have turned it
        raise Refusal(400, f"{NAME} is damaged: its header states another size", "Convert it to PNG or JPEG.")
    return image


def check_sizes(images: Sequence[bytes], limits: Limits) -> None:
    """Refuse several images that have too many pixels together.

    Raises:
        Refusal: 413; 400 and 415 as of `decode_upload`. It names the first image that is too much.
    """
    pixels = 0
    for number, data in enumerate(images, 1):
        with naming(number, len(images)):
            width, height = image_size(data)
            pixels += width * height
            if pixels > limits.max_pixels:
                raise Refusal(
                    413,
                    f"{NAME} is {width} x {height}: with those before it, {pixels} pixels; "
                    f"the limit is {limits.max_pixels} together",
                    "Send fewer images in a request, or scale them down.",
                )


@contextmanager
def naming(number: int, count: int) -> Iterator[None]:
    """Refusals within the block say which of the request's images they are about; ``number`` counts from 1."""
    try:
        yield
    except Refusal as err:
        raise Refusal(err.status, f"image {number} of {count}: {err.message}", err.remedy) from err


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG, PNG, WebP or BMP states in its header, before any EXIF rotation.

    Other formats are refused, because their headers are not checked here. OpenCV gives no size without decoding.
    Pillow 12 does, in 15 µs where this takes 1, but it would add 22 MB to a server, and counts no scans.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            size = _jpeg(data)
        elif data.startswith(PNG_SIGNATURE):
            size = struct.unpack_from(">II", data, 16)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            size = _webp(data)
        elif data.startswith(b"BM"):
            size = _bmp(data)
        else:
            what = f"{NAME} is empty" if not data else f"{NAME} is not in one of the formats JPEG, PNG, WebP and BMP"
            raise Refusal(415, what, "Convert it to PNG or JPEG.")
    except (struct.error, IndexError) as err:
        raise _damaged() from err
    if min(size) < 1:
        raise _damaged()
    return size[0], size[1]


def _damaged() -> Refusal:
    return Refusal(400, f"{NAME} is damaged: its header is not whole", "Copy it again, or convert it to PNG or JPEG.")


def _jpeg(data: bytes) -> tuple[int, ...]:
    """From the first start of frame; segments are skipped by their length (T.81, B.1.1)."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _FRAMES:
            return struct.unpack_from(">HH", data, at + 5)[::-1]
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise _damaged()


def _has_more_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `MAX_SCANS`, counted as a decoder does: segments are skipped by their length."""
    at, scans = 2, 0
    while found := _MARKER.search(data, at):
        at, marker = found.end(), data[found.start() + 1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            return True
        if marker not in (0x01, 0xD8):  # these have no length
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def _webp(data: bytes) -> tuple[int, ...]:
    """Source: RFC 9649, sections 2.5 to 2.7, and RFC 6386, section 9.1."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    raise _damaged()


def _bmp(data: bytes) -> tuple[int, ...]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2's header
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height: rows from the top

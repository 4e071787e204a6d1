"""Images, in and out.

Everything in memory is (H, W, 3), BGR, uint8, as OpenCV has it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.steps import Load
from denseport.runtime.errors import ImageError, MachineError, OutputError, is_out_of_memory
from denseport.runtime.system.files import write_atomic

__all__ = [
    "LOAD",
    "PNG_SIGNATURE",
    "PillowImage",
    "decode_image",
    "encode_palette_png",
    "is_cut_short",
    "open_image",
    "png_chunk",
    "read_image",
    "reading",
    "write_image",
    "write_mask",
]


class PillowImage(Protocol):
    """What is used of an image of Pillow's, which need not be installed."""

    mode: str

    def getbands(self) -> tuple[str, ...]: ...
    def convert(self, mode: str) -> Any: ...


LOAD = Load()  # as upstream loads images unless told otherwise
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# For masks: run lengths of the differences from the row above. 19 and 32 are IMWRITE_PNG_FILTER and its value UP, which
# OpenCV has names for since 4.12 and ignores before.
_RUNS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, 19, 32)


def read_image(path: Path, load: Load = LOAD) -> NDArray[np.uint8]:
    """Read an image as mmsegmentation's LoadImageFromFile does.

    By default with OpenCV's IMREAD_COLOR: the EXIF orientation is applied, grey replicated, alpha dropped, 16 bits
    become 8, a palette is expanded.

    Args:
        load: of the bundle's steps.

    Returns:
        (H, W, 3) BGR uint8, [0, 255].

    Raises:
        ImageError: the file is missing, a folder, unreadable, or `decode_image` refuses it.
    """
    with reading(path):
        data = path.read_bytes()
    return decode_image(data, str(path), load)


def open_image(source: Any, load: Load = LOAD) -> NDArray[np.uint8]:
    """The image in a file, in the bytes of one, in an object open for reading bytes, or of Pillow's.

    Args:
        source: anything else, an array too, is given back as it is. Pillow's image is taken in its mode's 8 bits, its
            alpha dropped, and not turned by its EXIF orientation.
        load: how files are decoded.

    Raises:
        ImageError: as `read_image`; an object that gives no bytes; Pillow's image of more than 8 bits, or a damaged or
            closed one.
    """
    if isinstance(source, str | Path):
        return read_image(Path(source), load)
    if hasattr(source, "getbands"):
        return _of_pillow(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source), "the image", load)
    if not callable(getattr(source, "read", None)):
        return source  # type: ignore[no-any-return]
    name, remedy = str(getattr(source, "name", "the image")), 'Open it for bytes: open(path, "rb").'
    try:
        data = source.read()
    except (OSError, ValueError) as err:  # ValueError: closed, or opened for text, which an image is not
        raise ImageError(f"{name}: cannot be read: {err}", remedy) from err
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: is open for reading {type(data).__name__}", remedy)
    return decode_image(data, name, load)


def _of_pillow(image: PillowImage) -> NDArray[np.uint8]:
    _check_bits(image.mode, "the image", "Scale it to 8 bits, or give its file.")
    try:
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    except (OSError, ValueError, SyntaxError) as err:  # Pillow decodes only now
        raise ImageError(f"the image: Pillow cannot decode it: {err}", "Copy or download it again.") from err


def _check_bits(mode: str, name: str, remedy: str) -> None:
    """Refuse what Pillow would cut off at 255 in silence."""
    if mode.startswith(("I", "F")):
        raise ImageError(f"{name} is of Pillow's mode {mode}: more than 8 bits a channel", remedy)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns an OSError, an ImageError that names no file, or a name that no file can have, into one about ``path``."""
    try:
        yield
    except ImageError as err:
        if str(path) in err.message:
            raise
        raise ImageError(f"{path}: {err.message}", err.remedy) from err
    except FileNotFoundError as err:
        raise ImageError(f"{path}: there is no such file", "Check the path.") from err
    except IsADirectoryError as err:
        raise ImageError(f"{path}: this is a folder, not a file", "Name a file in it.") from err
    except OSError as err:
        raise ImageError(f"{path}: cannot be read: {err.strerror}", "Check its permissions.") from err
    except ValueError as err:  # a zero byte in the name
        raise ImageError(f"{str(path)!r}: cannot be the name of a file: {err}", "Check the path.") from err


def decode_image(data: bytes, name: str, load: Load = LOAD) -> NDArray[np.uint8]:
    """Decode an image held in memory, like `read_image`.

    Args:
        data: the bytes of the file.
        name: what to call the image in an error message.
        load: as for `read_image`.

    Returns:
        (H, W, 3) BGR uint8, [0, 255]; three equal channels where ``load`` wants grey.

    Raises:
        ImageError: the data is empty, cut short, too large or in no format that the library decodes.
        MachineError: memory ran out, or Pillow is wanted and not installed.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty", "Copy or download it again.")
    # OpenCV 4 fills the missing part of a JPEG with grey and reports success; OpenCV 5 refuses it.
    if is_cut_short(data):
        what = "cut short, or has no pixels" if data.startswith(PNG_SIGNATURE) else "cut short"
        raise ImageError(f"{name}: the image is {what}", "Copy or download it again.")
    if load.library == "pillow":
        return _decode_with_pillow(data, name, load)
    flags = cv2.IMREAD_GRAYSCALE if load.grey else cv2.IMREAD_COLOR
    flags |= 0 if load.orientation else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as err:
        if "CV_IO_MAX_IMAGE" in str(err):
            raise ImageError(
                f"{name}: the image has more pixels than OpenCV accepts",
                "Scale it down, or raise the limit: OPENCV_IO_MAX_IMAGE_PIXELS=<pixels> in the environment.",
            ) from err
        if is_out_of_memory(err):
            raise MachineError(f"{name}: memory ran out when it was decoded", "Scale it down, or free some.") from err
        raise ImageError(f"{name}: cannot be decoded: {_reason(err)}", "Convert it to PNG or JPEG.") from err
    if image is None:
        message = f"{name}: damaged, or not an image that OpenCV {cv2.__version__} can decode"
        raise ImageError(message, "Convert it to PNG or JPEG.")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if load.grey else image, np.uint8)


def _decode_with_pillow(data: bytes, name: str, load: Load) -> NDArray[np.uint8]:
    """As mmcv's back end "pillow" (``mmcv/image/io.py``): grey with transparency lies on a canvas of one colour."""
    from denseport.runtime.system.machine import require

    require(("PIL",), "pillow")
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(BytesIO(data))
        _check_bits(image.mode, name, "Scale it to 8 bits.")
        if load.orientation:
            image = ImageOps.exif_transpose(image)
        if image.mode == "LA":
            canvas, clear = Image.new("RGB", image.size, (124, 117, 104)), image.convert("RGBA")
            canvas.paste(clear, mask=clear.split()[3])
            image = canvas
        image = image.convert("RGB")
        if load.grey:
            image = image.convert("L").convert("RGB")
        return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
    except ImageError:
        raise
    except Exception as err:  # hostile bytes make Pillow's plugins fail in any way they can
        if isinstance(err, MemoryError):
            raise MachineError(f"{name}: memory ran out when it was decoded", "Scale it down, or free some.") from err
        raise ImageError(f"{name}: Pillow cannot decode it: {err}", "Convert it to PNG or JPEG.") from err


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG, PNG or WebP lacks its end, or a PNG its pixels, told without decoding.

    Data after the end (motion photos) is allowed.
    """
    if data.startswith(PNG_SIGNATURE):
        # By the chunks, not only the last: OpenCV makes room for as many bytes as a chunk claims, up to 4 GiB, and
        # where there are no pixels it takes what follows the end for chunks.
        at, has_pixels = 8, False
        while at + 12 <= len(data):
            length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            if kind == b"IEND":
                return length > 0 or not has_pixels
            has_pixels |= kind == b"IDAT"
            at += 12 + length
        return True
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"\xff\xd8\xff"):
        # Segments are skipped by their length: the EXIF thumbnail has an end marker of its own.
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return data.find(b"\xff\xd9", at) < 0
    return False


def _reason(err: cv2.error) -> str:
    """The telling part of OpenCV's message, without its source file and line."""
    return str(getattr(err, "err", "") or err).strip()


def write_image(path: Path, image: NDArray[Any]) -> None:
    """Encode an image in the format of the path's suffix, and write it.

    Args:
        path: the file; its suffix chooses the format.
        image: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, or uint16 where the format has 16 bits.

    Raises:
        OutputError: no such format, an image that the format cannot hold, or a place that cannot be written.
    """
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error as err:
        raise OutputError(f"{path}: cannot be encoded: {_reason(err)}", "Write a .png or .jpg file.") from err
    if not done:
        raise OutputError(f"{path}: the format cannot hold an array of {image.shape}", "Write a .png file.")
    write_atomic(path, data.tobytes())


def write_mask(path: Path, mask: NDArray[Any], palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write class indices as a PNG: the value of a pixel is its class.

    Args:
        path: the file, ending in .png.
        mask: (H, W) of class indices, uint8 or uint16 (written as 8 or 16 bits of grey).
        palette: RGB triples, one a class; makes it an indexed PNG, which viewers show in colour.

    Raises:
        OutputError: another suffix or type, more than 256 classes with a palette, or a place that cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: a mask is a PNG, which keeps its values", "End the name in .png.")
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.uint16):
        raise OutputError(
            f"{path}: a mask is (H, W) of uint8 or uint16, found {mask.shape} of {mask.dtype}",
            "Convert it with mask.astype(numpy.uint16).",
        )
    if palette is None:
        write_image(path, mask)
        return
    try:
        write_atomic(path, encode_palette_png(mask, palette))
    except ValueError as err:
        raise OutputError(f"{path}: {err}", "Write it without a palette, as 16-bit grey.") from err


def encode_palette_png(mask: NDArray[Any], palette: Sequence[Sequence[int]]) -> bytes:
    """Encode a mask as an indexed PNG (colour type 3, 8 bits).

    OpenCV cannot write one, but its 8-bit grey lacks the header and the palette alone. It is faster than Pillow 12
    (683 x 512: 1.4 and 11 ms; 2048 x 1536: 24 and 99 ms, two cores of an EPYC), whose import takes another 30 ms.

    Indices beyond the palette, such as 255 for "ignore", are black.

    Args:
        mask: (H, W) of class indices, [0, 255].
        palette: RGB triples, [0, 255], one a class.

    Raises:
        ValueError: the mask is empty, or an index or the palette goes beyond 256 colours.

    Source: https://www.w3.org/TR/png-3/ (chunks: section 5, PLTE: 11.2.2).
    """
    height, width = mask.shape
    entries = max(len(palette), int(mask.max(initial=0)) + 1)  # no index may go beyond the palette
    if not mask.size or mask.min() < 0 or entries > 256:
        raise ValueError("an indexed PNG has at least one pixel and at most 256 classes, numbered from 0")
    colours = np.zeros((entries, 3), np.uint8)
    colours[: len(palette)] = palette
    grey = cv2.imencode(".png", mask.astype(np.uint8, copy=False), _RUNS)[1].tobytes()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
    return PNG_SIGNATURE + header + png_chunk(b"PLTE", colours.tobytes()) + grey[len(PNG_SIGNATURE) + len(header) :]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file: its length, kind, body and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

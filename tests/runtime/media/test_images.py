from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support import stored_indices

from denseport.runtime.bundle.steps import Load
from denseport.runtime.errors import ImageError, OutputError
from denseport.runtime.media.images import decode_image, encode_palette_png, read_image, write_image, write_mask


def smooth_image(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([3 * x, 5 * y, 2 * (x + y)], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(suffix: str, image: NDArray[np.generic]) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def png(colour_type: int, bits: int, width: int, rows: list[bytes], palette: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", palette) if palette else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


def chunks_of(data: bytes) -> dict[bytes, bytes]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body, crc = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        assert struct.unpack(">I", crc)[0] == zlib.crc32(kind + body)
        found[kind] = body
        at += 12 + length
    return found


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"x{suffix}", smooth_image())
    np.testing.assert_array_equal(read_image(tmp_path / f"x{suffix}"), smooth_image())


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_back_closely(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"x{suffix}", smooth_image())
    error = np.abs(read_image(tmp_path / f"x{suffix}").astype(int) - smooth_image())
    assert error.mean() < 2


def test_grey_alpha_and_sixteen_bits_become_bgr_uint8() -> None:
    grey = np.full((4, 5), 77, np.uint8)
    assert (decode_image(encoded(".png", grey), "x") == 77).all()
    bgra = np.full((4, 5, 4), (10, 20, 30, 0), np.uint8)
    assert (decode_image(encoded(".png", bgra), "x") == (10, 20, 30)).all()
    deep = decode_image(encoded(".png", np.full((4, 5, 3), 0x80FF, np.uint16)), "x")
    assert deep.dtype == np.uint8 and (deep == 0x80).all()


def test_pillow_is_not_left_to_cut_off_grey_levels() -> None:
    """It makes all of a deep grey image white but its darkest 256 levels, and all of floats black."""
    pytest.importorskip("PIL")
    load, grey = Load(orientation=False, library="pillow"), np.full((4, 5), 30000, np.uint16)
    for name, image in ((".png", grey), (".tif", grey), (".tif", grey.astype(np.float32))):
        with pytest.raises(ImageError, match=r"x is of Pillow's mode .*: more than 8 bits a channel"):
            decode_image(encoded(name, image), "x", load)
    colours = encoded(".png", np.full((4, 5, 3), 0x80FF, np.uint16))
    assert (decode_image(colours, "x", load) == 0x80).all()


def test_palette_and_one_bit_are_expanded() -> None:
    indexed = png(3, 8, 2, [b"\0\1"], palette=bytes([255, 0, 0, 0, 0, 255]))  # red, blue
    np.testing.assert_array_equal(decode_image(indexed, "x"), [[[0, 0, 255], [255, 0, 0]]])
    np.testing.assert_array_equal(decode_image(png(0, 1, 2, [b"\x40"]), "x"), [[[0] * 3, [255] * 3]])


# Where the bright top left corner of the stored image is seen (EXIF 2.32, tag 0x0112).
@pytest.mark.parametrize(
    ("orientation", "shape", "corner"),
    [
        (1, (40, 60), (0, 0)),
        (2, (40, 60), (0, -1)),
        (3, (40, 60), (-1, -1)),
        (4, (40, 60), (-1, 0)),
        (5, (60, 40), (0, 0)),
        (6, (60, 40), (0, -1)),
        (7, (60, 40), (-1, -1)),
        (8, (60, 40), (-1, 0)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, shape: tuple[int, int], corner: tuple[int, int]) -> None:
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:16, :16] = 255
    jpeg = encoded(".jpg", stored)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, orientation, 0, 0)
    tagged = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    seen = decode_image(tagged, "x")
    assert seen.shape == (*shape, 3)
    corners = {(y, x): seen[y, x].mean() > 200 for y in (0, -1) for x in (0, -1)}
    assert [place for place, bright in corners.items() if bright] == [corner]


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.jpg: there is no such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="a folder"):
        read_image(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.jpg: damaged, or not an image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match="void: the file is empty"):
        decode_image(b"", "void")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_cut_image_is_refused(suffix: str, part: float) -> None:
    data = encoded(suffix, smooth_image())
    with pytest.raises(ImageError, match="cut short"):
        decode_image(data[: int(len(data) * part)], "x")


def test_a_cut_jpeg_is_seen_behind_the_thumbnail_and_data_after_the_end_is_allowed() -> None:
    data = encoded(".jpg", smooth_image())
    assert decode_image(data + b"motion photo \xff\xda", "x").shape == (40, 60, 3)
    thumbnail = b"Exif\0\0" + data
    nested = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert decode_image(nested, "x").shape == (40, 60, 3)
    with pytest.raises(ImageError, match="cut short"):
        decode_image(nested[:-50], "x")


@pytest.mark.parametrize("chunk", [b"IDAT", b"IEND"])
def test_a_png_whose_chunk_claims_more_than_the_file_has_is_refused(chunk: bytes) -> None:
    """OpenCV would take as much memory, 4 GiB here, before it looks."""
    data = encoded(".png", smooth_image())
    at = data.index(chunk) - 4
    with pytest.raises(ImageError, match="cut short"):
        decode_image(data[:at] + b"\xff\xff\xff\x00" + data[at + 4 :], "x")


def test_a_png_without_pixels_is_refused_whatever_follows_its_end() -> None:
    """OpenCV would look for pixels behind the end, and take 3 GiB for a chunk there that claims as much."""
    data = encoded(".png", smooth_image())
    with pytest.raises(ImageError, match="cut short"):
        decode_image(data.replace(b"IDAT", b"TAIx") + b"\xd0\xd0\x00\x00IDAT" + bytes(8), "x")


def test_too_many_pixels_are_refused() -> None:
    data = png(0, 8, 60000, [b""] * 60000)
    with pytest.raises(ImageError, match="more pixels") as caught:
        decode_image(data, "big.png")
    assert "OPENCV_IO_MAX_IMAGE_PIXELS" in str(caught.value)


def test_an_image_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    for name, shape in [("x.xyz", (4, 4, 3)), ("x.webp", (4, 20000, 3)), ("x.png", (0, 4, 3))]:
        with pytest.raises(OutputError, match="x"):
            write_image(tmp_path / name, np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_mask_holds_the_indices(tmp_path: Path, dtype: type[np.generic]) -> None:
    mask = np.array([[0, 149, 255], [1, 2, np.iinfo(dtype).max]]).astype(dtype)
    write_mask(tmp_path / "m.png", mask)
    back = cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_UNCHANGED)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, mask)


def test_an_indexed_mask_holds_the_indices_and_shows_the_colours(tmp_path: Path) -> None:
    palette = [(255, 0, 0), (0, 255, 0), (10, 20, 30)]
    mask = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    write_mask(tmp_path / "m.png", mask, palette)
    chunks = chunks_of((tmp_path / "m.png").read_bytes())
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 3, 2, 8, 3, 0, 0, 0)
    assert chunks[b"PLTE"][:9] == bytes([255, 0, 0, 0, 255, 0, 10, 20, 30])
    assert len(chunks[b"PLTE"]) == 3 * 256  # an index beyond the palette would break the specification
    np.testing.assert_array_equal(stored_indices((tmp_path / "m.png").read_bytes()), mask)
    seen = cv2.cvtColor(read_image(tmp_path / "m.png"), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(seen[0], palette)
    np.testing.assert_array_equal(seen[1, 1], [0, 0, 0])


@pytest.mark.parametrize("shape", [(1, 1), (9, 1), (1, 7), (300, 411)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_an_indexed_png_of_any_mask_is_expanded_to_its_colours(shape: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 150, shape).repeat(2, axis=1).astype(dtype)[:, ::2]  # not contiguous
    palette = rng.integers(0, 256, (150, 3))
    seen = cv2.imdecode(np.frombuffer(encode_palette_png(mask, palette.tolist()), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(seen, palette[mask])


def test_masks_that_a_png_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="at most 256 classes"):
        write_mask(tmp_path / "m.png", np.full((2, 2), 256, np.uint16), [(0, 0, 0)])
    with pytest.raises(ValueError, match="at most 256"):
        encode_palette_png(np.zeros((2, 2), np.uint8), [(0, 0, 0)] * 257)
    with pytest.raises(OutputError, match="int64"):
        write_mask(tmp_path / "m.png", np.zeros((2, 2), np.int64))
    with pytest.raises(OutputError, match=r"\.png"):
        write_mask(tmp_path / "m.jpg", np.zeros((2, 2), np.uint8))

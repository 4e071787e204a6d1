"""Bundles whose images Pillow decodes and resizes: as in Python, to the bit, where they are not refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cpp import Library, built, colour_depth, run
from PIL import Image
from support import ASSETS

from denseport.runtime.bundle.steps import Load, Resize
from denseport.runtime.pipeline.pillow_resize import FILTERS
from denseport.runtime.segmenter.depth import DepthEstimator

STREET = sorted((ASSETS / "street/images").rglob("*.jpg"))[0]
NOISE = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.mark.parametrize("kind", ["nearest", *FILTERS])
@pytest.mark.parametrize("size", [(31, 20), (83, 200), (301, 47), (2, 3)])
def test_images_are_resized_as_python_does(library: Library, tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    """The sizes of images are those that the network sees, so that each of its pixels counts."""
    bundle = colour_depth(tmp_path / "bundle", (Resize(size, False, kind, "pillow"),))
    extreme = np.where(NOISE > 127, 255, 0).astype(np.uint8)  # overshoots as far as can be
    with library.opened(bundle.path, depth=True) as estimator, DepthEstimator(bundle, threads=1) as python:
        for image in (NOISE, extreme, extreme[::-1, ::2].copy(), NOISE[10:40, 5:60]):
            np.testing.assert_array_equal(library.estimate(estimator, image), python(image).depth)


def by_pillow(mode: str = "RGB", **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.open(STREET).resize((203, 150)).convert(mode).save(path, **options)

    return write


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    return exif


FILES: dict[str, Callable[[Path], None]] = {
    "rgb.png": by_pillow(),
    "rgba.png": by_pillow("RGBA"),
    "grey.png": by_pillow("L"),
    "palette.png": by_pillow("P"),
    "clear.png": by_pillow("P", transparency=3),
    "420.jpg": by_pillow(quality=80),
    "422.jpg": by_pillow(subsampling=1),
    "444.jpg": by_pillow(subsampling=0),
    "progressive.jpg": by_pillow(progressive=True),
    "grey.jpg": by_pillow("L"),
    "turned.jpg": by_pillow(exif=turned()),
}


@pytest.mark.parametrize("options", [{"orientation": False}, {}, {"grey": True}])
def test_files_are_decoded_as_pillow_does(tmp_path: Path, options: dict[str, bool]) -> None:
    load = Load(library="pillow", **options)  # type: ignore[arg-type]
    program, bundle = built("release/denseport-cpp"), colour_depth(tmp_path / "bundle", (load,))
    for name, write in FILES.items():
        write(tmp_path / name)
    given = [tmp_path / name for name in FILES]
    for i, file in enumerate(given):  # the results' names are those of the images, without their endings
        given[i] = file.rename(file.with_name(f"{i}{file.suffix}"))
    done = run(program, "run", bundle.path, *given, "-o", tmp_path / "out", "--format", "npy", "--threads", "1")
    assert done.returncode == 0, done.stderr
    with DepthEstimator(bundle, threads=1) as python:
        for file, name in zip(given, FILES, strict=True):
            found, expected = np.load(tmp_path / "out" / f"{file.stem}.npy"), python(file).depth
            np.testing.assert_array_equal(found, expected, err_msg=name)


def bits_16(path: Path) -> None:
    cv2.imwrite(str(path), np.uint16(NOISE) * 257)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.png", bits_16, "a PNG of 16 bits"),
        ("a.png", by_pillow("1"), "a PNG of 1 bits"),
        ("a.png", by_pillow("LA"), "a grey PNG with transparency"),
        ("a.png", by_pillow(exif=turned()), "a PNG with EXIF data"),
        ("a.jpg", by_pillow("CMYK"), "a JPEG of 4 channels"),
        ("a.webp", by_pillow(), "neither PNG nor JPEG"),
        ("a.bmp", by_pillow(), "neither PNG nor JPEG"),
    ],
    ids=["16 bits", "1 bit", "grey and alpha", "turned PNG", "CMYK", "WebP", "BMP"],
)
def test_files_that_pillow_may_decode_otherwise_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path], None], words: str
) -> None:
    program = built("sanitized/denseport-cpp")
    bundle = colour_depth(tmp_path / "bundle", (Load(library="pillow"),))
    write(tmp_path / name)
    done = run(program, "run", bundle.path, tmp_path / name, "-o", tmp_path / "depth.npy")
    assert done.returncode == 2 and f"may differ from OpenCV: it is {words}" in done.stderr
    assert "decode it yourself and give the array" in done.stderr

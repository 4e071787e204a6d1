"""Depths in C++ are Python's to the bit where the network's are, in the library, its C functions and its files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from cpp import OPENVINO, Library, built, colour_depth, for_openvino, run
from numpy.typing import NDArray
from support import ASSETS

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.bundle.steps import Pad
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter.depth import DepthEstimator

IMAGE = sorted((ASSETS / "street/images").rglob("*.jpg"))[0]
RELATIVE = DepthOutput("relative", "nearer", None, "bilinear")


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture
def bundle(depth_sample: Bundle, tmp_path: Path) -> Bundle:
    """A copy, to be changed."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in depth_sample.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Bundle(folder)


def rewritten(bundle: Bundle, **fields: object) -> Bundle:
    changed = replace(bundle.manifest, **fields)  # type: ignore[arg-type]
    (bundle.path / MANIFEST).write_text(changed.to_json())
    return Bundle(bundle.path)


def images() -> Iterator[NDArray[np.uint8]]:
    image = read_image(IMAGE)
    yield image
    yield image[:91, :120]
    yield cv2.resize(image, (700, 50))  # type: ignore[misc]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_depths_are_pythons(library: Library, bundle: Bundle, interpolation: str, corners: bool, padded: bool) -> None:
    output = DepthOutput("metres", "farther", 10.0, interpolation)
    steps = bundle.manifest.preprocess
    if padded:
        steps = (replace(steps[0], size=(100, 70)), steps[1], Pad(divisor=32, crop=True))  # type: ignore[call-arg]
    bundle = rewritten(bundle, depth=output, align_corners=corners, preprocess=steps)
    with library.opened(bundle.path, depth=True) as estimator, DepthEstimator(bundle, threads=1) as python:
        assert library.meaning(estimator) == ("metres", "farther")
        for image in images():
            np.testing.assert_array_equal(library.estimate(estimator, image), python(image).depth)


def test_openvinos_depths_are_pythons(library: Library, bundle: Bundle) -> None:
    path = for_openvino(bundle).path
    with (
        library.opened(path, OPENVINO, "fixed:96x64", depth=True) as estimator,
        DepthEstimator(path, artifact=OPENVINO, protocol="fixed:96x64", threads=1) as python,
    ):
        for image in images():
            np.testing.assert_allclose(library.estimate(estimator, image), python(image).depth, atol=1e-5)


def text_of(png: bytes) -> dict[str, object]:
    """The JSON in the chunk "Depth", which comes behind the header."""
    length, kind = struct.unpack(">I4s", png[33:41])
    keyword, _, text = png[41 : 41 + length].partition(b"\0")
    assert (kind, keyword) == (b"tEXt", b"Depth")
    found: dict[str, object] = json.loads(text)
    return found


@pytest.mark.parametrize("build", ["release", "sanitized"])
@pytest.mark.parametrize("output", [None, DepthOutput("metres", "farther", 80.0, "bicubic"), RELATIVE])
def test_the_program_writes_pythons_files(
    bundle: Bundle, tmp_path: Path, build: str, output: DepthOutput | None
) -> None:
    program = built(f"{build}/denseport-cpp")
    bundle = rewritten(bundle, depth=output or bundle.manifest.depth)
    options = ("--threads", "1", "--artifact", "model.onnx", "--quiet")
    for name in ("depth.png", "depth.npy"):
        done = run(program, "run", bundle.path, IMAGE, "-o", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    with DepthEstimator(bundle, threads=1) as python:
        found = python(IMAGE)
    array = np.load(tmp_path / "depth.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, found.depth)
    found.save(tmp_path / "python.png")
    files = [tmp_path / "depth.png", tmp_path / "python.png"]
    assert text_of(files[0].read_bytes()) == text_of(files[1].read_bytes())
    values = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
    assert values[0].dtype == np.uint16 and values[0].max() > 1000
    np.testing.assert_array_equal(*values)


def test_several_images_go_into_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    program = built("release/denseport-cpp")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(IMAGE.read_bytes())
    given = (tmp_path / "a.jpg", tmp_path / "b.jpg", "-o", tmp_path / "out", "--format", "npy")
    assert run(program, "run", bundle.path, *given).returncode == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.npy", "b.npy"]
    assert "depth, metres, larger is farther" in run(program, "inspect", bundle.path).stdout


def test_what_has_no_meaning_is_refused(library: Library, bundle: Bundle, sample: Bundle, tmp_path: Path) -> None:
    assert library.try_open(bundle.path)[0] == 2 and "is for depth, not for segmentation" in library.error()
    assert library.try_open(sample.path, depth=True)[0] == 2
    assert "is for segmentation, not for depth" in library.error()
    for protocol in ("ms-flip", "slide", "slide:64:42", "native"):
        assert library.try_open(bundle.path, None, protocol, depth=True)[0] == 2
        assert f"the protocol {protocol} is of segmentation" in library.error()
    program = built("release/denseport-cpp")
    for output in ("depth.npy", "out"):
        done = run(program, "run", sample.path, IMAGE, "-o", tmp_path / output, "--format", "npy")
        assert done.returncode == 2 and "a mask is a PNG" in done.stderr


def test_depths_that_a_png_cannot_hold_are_refused(tmp_path: Path) -> None:
    program, bundle = built("release/denseport-cpp"), colour_depth(tmp_path / "bundle", (), (2.0, 0.0, 0.0))
    image = np.zeros((4, 5, 3), np.uint8)
    image[0, 0] = 150
    cv2.imwrite(str(tmp_path / "image.png"), image)
    done = run(program, "run", bundle.path, tmp_path / "image.png", "-o", tmp_path / "depth.png")
    assert done.returncode == 2 and not (tmp_path / "depth.png").exists()
    assert "holds 0 to 255.996 metres at the scale 256, and the depths go from 0 to 300" in done.stderr
    assert run(program, "run", bundle.path, tmp_path / "image.png", "-o", tmp_path / "depth.npy").returncode == 0
    assert np.load(tmp_path / "depth.npy").max() == 300

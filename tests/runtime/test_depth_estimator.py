"""Depth: resized to the image as upstream does, from every way to ask, and kept as files that say what they hold."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import ASSETS

from denseport.runtime import Depth, DepthEstimator, Segmenter
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.bundle.steps import Pad
from denseport.runtime.errors import BundleError, InputError, OutputError
from denseport.runtime.media.images import read_image

IMAGE = next((ASSETS / "street").rglob("*.jpg"))
GOLDEN = [("hf_depth_anything", 2), ("hf_depth_anything_metric", 2), ("hf_dpt_depth", 2), ("hf_dpt_dinov2", 2)]


class Fixed(Session):
    """A session that gives the same depths whatever it sees."""

    description = "fixed"

    def __init__(self, depth: np.ndarray) -> None:
        self.depth = depth.astype(np.float32)

    def run(self, image: np.ndarray) -> np.ndarray:
        return np.repeat(self.depth[None, None], len(image), 0)


@pytest.fixture(scope="module")
def estimate(depth_sample: Bundle) -> Iterator[DepthEstimator]:
    with DepthEstimator(depth_sample, threads=1) as estimator:
        yield estimator


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Small ones, of two sizes."""
    image = cv2.resize(read_image(IMAGE), (240, 180), interpolation=cv2.INTER_AREA)
    return [image[:90, :120], image[90:, 20:140], image[:100, :150]]


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    """The same bundle under another manifest, in memory."""
    new = Bundle(bundle.path)
    new.manifest = replace(new.manifest, **fields)
    return new


def answered(bundle: Bundle, given: np.ndarray, size: tuple[int, int], **fields: Any) -> Depth:
    """What becomes of a network's depths for an image of ``size`` (height, width)."""
    with DepthEstimator(changed(bundle, **fields), session=Fixed(given)) as estimator:
        return estimator(np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize(("family", "count"), GOLDEN)
def test_depths_are_resized_as_transformers_does(shared: Path, depth_sample: Bundle, family: str, count: int) -> None:
    golden = np.load(shared / "oracle_families" / family / "golden.npz")
    names = [name for name in golden if name.startswith("post_")]
    assert len(names) == count
    for name in names:
        _, size, _, network = name.split("_")
        want = golden[name]
        found = answered(depth_sample, golden[f"out_{network}"][0], want.shape).depth
        assert f"{found.shape[0]}x{found.shape[1]}" == size and found.dtype == np.float32
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("sizes", [((14, 21), (97, 50)), ((40, 60), (13, 29)), ((1, 3), (5, 1)), ((9, 9), (1300, 11))])
def test_every_rule_of_resizing_is_torchs(depth_sample: Bundle, interpolation: str, corners: bool, sizes: Any) -> None:
    low, size = sizes
    depth = np.random.default_rng(0).uniform(0, 10, low).astype(np.float32)
    output = DepthOutput("metres", "farther", 10.0, interpolation)
    found = answered(depth_sample, depth, size, depth=output, align_corners=corners).depth
    given = torch.from_numpy(depth)[None, None]
    want = F.interpolate(given, size, mode=interpolation, align_corners=corners)[0, 0].numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * 10)


def test_what_was_padded_is_cut_off_before_the_resize(depth_sample: Bundle) -> None:
    """The network sees 100 x 70 padded to 128 x 96 and answers at that size."""
    resize, normalise = depth_sample.manifest.preprocess
    steps = (replace(resize, size=(100, 70)), normalise, Pad(divisor=32, crop=True))
    depth = np.random.default_rng(0).uniform(0, 10, (96, 128)).astype(np.float32)
    found = answered(depth_sample, depth, (140, 200), preprocess=steps).depth
    want = F.interpolate(torch.from_numpy(depth[None, None, :70, :100]), (140, 200), mode="bicubic")[0, 0].numpy()
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_all_ways_to_ask_give_the_same(estimate: DepthEstimator, images: list[np.ndarray]) -> None:
    single = [estimate(image) for image in images]
    assert [each.depth.shape for each in single] == [(90, 120), (90, 120), (100, 150)]
    assert all(each.depth.dtype == np.float32 and 0 < each.depth.mean() < 10 for each in single)
    assert (single[0].unit, single[0].larger_is, single[0].artifact) == ("metres", "farther", "model.onnx")
    assert single[0].timings.infer > 0 and "metres>" in repr(single[0])
    with estimate.clone() as other:
        ways = [estimate.batch(images), list(estimate.stream(images)), [other(image) for image in images]]

    async def submitted() -> list[Depth]:
        return await asyncio.gather(*(estimate.submit(image) for image in images))

    for way in [*ways, asyncio.run(submitted())]:
        for found, want in zip(way, single, strict=True):
            np.testing.assert_allclose(found.depth, want.depth, atol=1e-5)
    part = estimate(images[2], roi=(20, 10, 64, 48)).depth
    np.testing.assert_allclose(part, estimate(images[2][10:58, 20:84]).depth, atol=1e-6)
    np.testing.assert_allclose(estimate.resize(estimate.predict(images[0])), single[0].depth, atol=1e-6)
    estimate.warmup([(48, 64)])


def test_smoothing_averages_depths_over_time(estimate: DepthEstimator, images: list[np.ndarray]) -> None:
    frames = [images[0], np.clip(images[0].astype(int) + 8, 0, 255).astype(np.uint8)]
    first, second = (estimate(frame).depth for frame in frames)
    _, smoothed = estimate.stream(frames, smoothing=0.5)
    np.testing.assert_allclose(smoothed.depth, (first + second) / 2, atol=1e-4)
    assert np.abs(first - second).max() > 1e-3


def test_the_way_on_a_gpu_is_refused_by_name(depth_sample: Bundle) -> None:
    with pytest.raises(InputError, match="device_path: a depth estimator resizes images on the CPU"):
        DepthEstimator(depth_sample, device_path=True)


def test_each_class_refuses_the_others_bundles(depth_sample: Bundle, sample: Bundle) -> None:
    with pytest.raises(InputError, match=r"for segmentation, not for depth\n.*runtime.Segmenter"):
        DepthEstimator(sample)
    with pytest.raises(InputError, match=r"for depth, not for segmentation\n.*runtime.DepthEstimator"):
        Segmenter(depth_sample)


@pytest.mark.parametrize("protocol", ["ms-flip", "slide", "native", "slide:64:42"])
def test_protocols_without_meaning_are_refused(depth_sample: Bundle, protocol: str) -> None:
    with pytest.raises(InputError, match=f"protocol {protocol} is of segmentation"):
        DepthEstimator(depth_sample, protocol=protocol)
    with DepthEstimator(depth_sample, protocol="fixed:64x48") as estimator:
        assert estimator(np.zeros((30, 40, 3), np.uint8)).depth.shape == (30, 40)


def test_what_is_no_depth_is_refused(depth_sample: Bundle, images: list[np.ndarray]) -> None:
    with (
        DepthEstimator(depth_sample, session=Fixed(np.full((4, 4), np.nan))) as estimator,
        pytest.raises(BundleError, match="session gave depths that are not finite"),
    ):
        estimator(images[0])

    class Pairs(Fixed):
        def run(self, image: np.ndarray) -> np.ndarray:
            return np.zeros((1, 2, 4, 4), np.float32)

    with (
        DepthEstimator(depth_sample, session=Pairs(np.zeros((4, 4)))) as estimator,
        pytest.raises(BundleError, match="gives 2 channels; a depth has one"),
    ):
        estimator(images[0])
    with pytest.raises(InputError, match="the depth estimator is closed"):
        estimator(images[0])


def result(depth: np.ndarray, unit: str = "metres", larger_is: str = "farther", largest: float | None = 10.0) -> Depth:
    image = np.full((*depth.shape, 3), 90, np.uint8)
    return Depth(depth.astype(np.float32), unit, larger_is, largest, "a", image)


def text_of(png: bytes) -> dict[str, Any]:
    """The JSON in the chunk "Depth", by the PNG standard."""
    at = 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind == b"tEXt":
            keyword, _, text = png[at + 8 : at + 8 + length].partition(b"\0")
            assert keyword == b"Depth"
            found: dict[str, Any] = json.loads(text)
            return found
        at += length + 12
    raise AssertionError("no text")


@pytest.mark.parametrize(
    ("found", "scale", "expected"),
    [
        (result(np.linspace(0, 10, 12).reshape(3, 4)), None, 1000),
        (result(np.linspace(0, 80, 12).reshape(3, 4), largest=80.0), None, 256),
        (result(np.linspace(0, 30, 12).reshape(3, 4), largest=None), None, 256),
        (result(np.linspace(0, 10, 12).reshape(3, 4)), 5000.0, 5000),
        (result(np.linspace(-3, 7, 12).reshape(3, 4), "relative", "nearer", None), None, 6553.5),
        (result(np.full((3, 4), 2.5), "relative", "nearer", None), None, 1),
    ],
    ids=["indoors", "outdoors", "unlimited", "asked", "relative", "constant"],
)
def test_a_png_says_how_its_values_are_meant(
    found: Depth, scale: float | None, expected: float, tmp_path: Path
) -> None:
    found.save(tmp_path / "d.png", scale=scale)
    said = text_of((tmp_path / "d.png").read_bytes())
    values = cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16 and said["scale"] == pytest.approx(expected)
    assert (said["unit"], said["larger_is"]) == (found.unit, found.larger_is)
    np.testing.assert_allclose(values / said["scale"] + said["offset"], found.depth, atol=0.51 / said["scale"])


def test_depths_that_a_png_cannot_hold_are_refused(tmp_path: Path) -> None:
    far = result(np.array([[1.0, 300.0]]), largest=None)
    with pytest.raises(OutputError, match=r"holds 0 to 255\.996 metres at the scale 256, and .* 1 to 300"):
        far.save(tmp_path / "d.png")
    for options, path in (({"scale": 0.0}, "d.png"), ({"scale": 10.0}, "d.npy"), ({}, "d.json"), ({}, "d")):
        with pytest.raises(OutputError):
            far.save(tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_arrays_are_kept_to_the_bit(tmp_path: Path) -> None:
    found = result(np.random.default_rng(0).uniform(0, 10, (5, 6)))
    found.save(tmp_path / "d.npy")
    found.save(tmp_path / "d.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), found.depth)
    packed = np.load(tmp_path / "d.npz")
    np.testing.assert_array_equal(packed["depth"], found.depth)
    assert (str(packed["unit"]), str(packed["larger_is"])) == ("metres", "farther")


@pytest.mark.parametrize("larger_is", ["nearer", "farther"])
def test_near_is_bright_in_the_overlay(larger_is: str, tmp_path: Path) -> None:
    depth = np.tile(np.linspace(1, 5, 300, dtype=np.float32), (200, 1))  # larger to the right
    found = result(depth, "relative", larger_is, None)
    plain = found.overlay(legend=False)
    assert plain.shape == (200, 300, 3)
    left, right = plain[:, :10].mean(), plain[:, -10:].mean()
    assert (right > left + 50) == (larger_is == "nearer")
    barred = found.overlay()
    assert barred.shape[0] == 200 and barred.shape[1] > 300
    np.testing.assert_array_equal(barred[:200, :300], plain)
    np.testing.assert_array_equal(found.overlay(opacity=0, legend=False), found.image)
    flat = result(np.full((30, 20), 2.0), "relative", larger_is, None).overlay()
    assert flat.shape[0] >= 256
    with pytest.raises(InputError, match="opacity"):
        found.overlay(opacity=2)
    found.save(tmp_path / "d.jpg")
    assert cv2.imread(str(tmp_path / "d.jpg")).shape == barred.shape

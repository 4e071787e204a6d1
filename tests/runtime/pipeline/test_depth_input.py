"""What depth networks are given is what the original Depth Anything and MiDaS give theirs: OpenCV's cubic on floats.

Theirs are of float64, and ours of float32, in which OpenCV rounds the weights otherwise: on noise, which is the worst
case, by a fiftieth of a grey level at a width of 1280.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Load, Normalise, Pad, ResizeRounded
from denseport.runtime.errors import ImageError
from denseport.runtime.pipeline.network_input import network_inputs
from denseport.runtime.pipeline.preprocess import fit_labels
from denseport.runtime.pipeline.views import show, view_of, window_input

LOAD = Load(float32=True)
HALF = Normalise((127.5,) * 3, (127.5,) * 3, bgr_to_rgb=True)


def given(image: NDArray[np.uint8], *steps: ResizeRounded | Normalise | Load | Pad) -> NDArray[np.float32]:
    (tensor,) = network_inputs(image, Protocol("own", steps, Inference()), 14)
    return tensor


@pytest.mark.parametrize("name", ["da2_relative", "da2_metric"])
def test_depth_anything_is_given_what_its_own_code_gives(shared: Path, name: str) -> None:
    with np.load(shared / f"oracle_families/{name}/golden.npz") as golden:
        cases = [key.removeprefix("tensor_") for key in golden.files if key.startswith("tensor_")]
        for case in cases:
            side = int(case.partition("_at")[2])
            resize = ResizeRounded((side, side), "lower_bound", 14, "bicubic")
            found = given(golden[f"bgr_{case}"], LOAD, resize, USUAL_NORMALISE)
            np.testing.assert_allclose(found[:, :, ::3, ::3], golden[f"tensor_{case}"], atol=2e-5, rtol=0)
    assert len(cases) >= 3


@pytest.mark.parametrize(
    ("old", "new"),
    [((480, 640), (384, 512)), ((375, 1242), (384, 1280)), ((333, 500), (384, 576)), ((90, 70), (384, 288))],
)
def test_midas_is_given_what_its_own_code_gives(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Its transforms: RGB in [0, 1] as float64, OpenCV's cubic, (x - 0.5) / 0.5; sizes by its own rule."""
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    found = given(image, LOAD, ResizeRounded((384, 384), "minimal", 32, "bicubic"), HALF)
    expected = cv2.resize(image[:, :, ::-1] / 255.0, new[::-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), (expected - 0.5) / 0.5, atol=4e-4, rtol=0)


def test_an_image_that_would_have_no_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match=r"1000 x 1 would become 518 x 0 .*, without pixels"):
        given(np.zeros((1, 1000, 3), np.uint8), ResizeRounded((518, 518), "minimal", 14), HALF)


@pytest.mark.parametrize("size", [(10, 21), (33, 32), (5, 64)])
def test_a_centred_pad_lies_around_every_window(size: tuple[int, int]) -> None:
    """Sliding windows show the parts of the whole; around the image are the pads' values, the inner one first."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    steps = (HALF, Pad(divisor=14, value=(1.0, 2.0, 3.0), centred=True), Pad(divisor=32, value=(4.0, 5.0, 6.0)))
    view = view_of(size, steps)
    height, width = view.size
    whole = window_input(show(image, view), view, (0, height), (0, width))
    inner = [-(-side // 14) * 14 for side in size]
    top, left = ((new - old) // 2 for new, old in zip(inner, size, strict=True))
    plain = ((image[:, :, ::-1].astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)
    np.testing.assert_array_equal(whole[0, :, top : top + size[0], left : left + size[1]], plain)
    expected = np.empty_like(whole[0])
    expected[:] = np.reshape([4, 5, 6], (3, 1, 1))
    expected[:, : inner[0], : inner[1]] = np.reshape([1, 2, 3], (3, 1, 1))
    expected[:, top : top + size[0], left : left + size[1]] = plain
    np.testing.assert_array_equal(whole[0], expected)
    for row in ((0, 5), (3, 19), (height - 7, height)):
        for col in ((0, 5), (9, 30), (width - 3, width)):
            part = window_input(show(image, view), view, row, col)
            np.testing.assert_array_equal(part, whole[:, :, slice(*row), slice(*col)])


def test_labels_lie_where_a_centred_pad_puts_the_image() -> None:
    labels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    fitted = fit_labels(labels, (HALF, Pad(divisor=14, centred=True)))
    assert fitted.shape == (14, 28)
    np.testing.assert_array_equal(fitted[2:12, 4:24], labels)
    assert (fitted[:2] == 255).all() and (fitted[12:] == 255).all() and (fitted[:, [0, 3, 24, 27]] == 255).all()

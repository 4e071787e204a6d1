"""Pre-processing is bit for bit what mmsegmentation computes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from bundles import steps
from hypothesis import given
from hypothesis import strategies as st

from denseport.runtime.bundle.preprocessing import normalisation
from denseport.runtime.bundle.steps import rescaled_size
from denseport.runtime.pipeline.preprocess import fit_image, normalise
from denseport.runtime.pipeline.views import view_of

ADE20K = steps()


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["a_333x500", "b_511x347", "c_61x389", "d_37x53", "e_701x525"])
def test_every_bit_is_upstreams(oracle: Path, name: str) -> None:
    golden = json.loads((oracle / "preprocess.json").read_text())["info"][name]
    image = np.load(oracle / "preprocess.npz")[f"{name}_img_bgr"]
    size = view_of(image.shape[:2], ADE20K).size
    assert size == tuple(golden["metainfo"]["img_shape"])
    resized = fit_image(image, ADE20K)
    assert sha256(resized.transpose(2, 0, 1)) == golden["resized_sha256"]
    tensor = normalise(resized, ADE20K)
    assert (tensor.dtype, list(tensor.shape)) == (np.float32, golden["tensor_shape"])
    assert sha256(tensor) == golden["tensor_sha256"]


def test_normalisation_is_the_formula_in_either_channel_order() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for rgb in (True, False):
        step = dataclasses.replace(normalisation(ADE20K), bgr_to_rgb=rgb)
        preprocess = (*ADE20K[:-1], step)
        ordered = (image[..., ::-1] if rgb else image).astype(np.float32)
        expected = (ordered - np.float32(step.mean)) / np.float32(step.std)
        np.testing.assert_array_equal(normalise(image, preprocess)[0], expected.transpose(2, 0, 1))


def test_normalisation_takes_views() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    window = image[3:19, 5:37]
    np.testing.assert_array_equal(normalise(window, ADE20K), normalise(window.copy(), ADE20K))
    mirrored = image[:, ::-1]
    np.testing.assert_array_equal(normalise(mirrored, ADE20K), normalise(image, ADE20K)[..., ::-1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((100, 1000), (205, 2048)),  # the longer side binds
        ((1000, 100), (2048, 205)),
        ((480, 640), (512, 683)),  # the shorter side binds
        ((1, 1), (512, 512)),
        ((1, 5000), (1, 2048)),
    ],
)
def test_sizes_that_keep_the_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert view_of(size, ADE20K).size == expected
    assert view_of(size, steps((512, 2048))).size == expected


def test_a_fixed_size_is_width_by_height() -> None:
    assert view_of((480, 640), steps((300, 200), keep_ratio=False)).size == (200, 300)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 2048), st.integers(16, 2048))
def test_sizes_fit_the_limits(height: int, width: int, longer: int, shorter: int) -> None:
    new_height, new_width = view_of((height, width), steps((longer, shorter))).size
    longer, shorter = max(longer, shorter), min(longer, shorter)
    assert 1 <= min(new_height, new_width) <= shorter and max(new_height, new_width) <= longer
    assert min(new_height, new_width) == shorter or max(new_height, new_width) == longer


def test_sizes_round_half_up() -> None:
    assert rescaled_size((5, 7), 0.5) == (3, 4)
    assert rescaled_size((1, 1), 0.1) == (1, 1)


def test_sizes_are_rounded_half_up_and_never_0() -> None:
    assert rescaled_size((5, 7), 0.5) == (3, 4)
    assert rescaled_size((10, 1), 0.1) == (1, 1) == rescaled_size((1, 10), 0.1)


def test_an_image_of_the_right_size_is_not_copied() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert fit_image(image, steps((6, 4), keep_ratio=False)) is image
    assert fit_image(image, steps((3, 8), keep_ratio=False)).shape == (8, 3, 3)
    assert fit_image(np.full((4, 6, 3), 77, np.uint8), steps((11, 9), keep_ratio=False)).min() == 77

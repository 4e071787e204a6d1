"""Resizing equals Pillow's to the bit: the oracle's Pillow 12, and the one that is installed, an axis at a time.

Pillow 13 may resize the height first. With one axis in each call it has no choice, and all versions give the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from denseport.runtime.pipeline.pillow_resize import FILTERS, resize

KINDS = ("nearest", *FILTERS)
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 400))


def of_pillow(image: NDArray[np.uint8], size: tuple[int, int], kind: str) -> NDArray[np.uint8]:
    pixels, way = Image.fromarray(np.ascontiguousarray(image)), Image.Resampling[kind.upper()]
    return np.array(pixels.resize((size[1], pixels.height), way).resize(size[::-1], way))


def test_pictures_are_those_of_pillow_12(shared: Path) -> None:
    settings = json.loads((shared / "oracle_families/preprocess.json").read_text())
    with np.load(shared / "oracle_families/preprocess.npz") as golden:
        keys = [key for key in golden.files if key.endswith("_grey_pil")]
        for key in keys:
            setting, shape = key.removesuffix("_grey_pil").rsplit("_", 1)
            kind = {2: "bilinear", 3: "bicubic"}[settings[setting]["settings"]["resample"]]
            expected = golden[key]
            np.testing.assert_array_equal(
                resize(golden[f"rgb_{shape}"], expected.shape[1:], kind).transpose(2, 0, 1), expected
            )
    assert len(keys) >= 20


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from(KINDS), st.integers(0, 2**32), st.booleans())
def test_any_size_is_as_pillow_has_it(
    old: tuple[int, int], new: tuple[int, int], kind: str, seed: int, extreme: bool
) -> None:
    """Black and white, with nothing in between, overshoot as far as can be."""
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), np.uint8)
    image = np.where(image > 127, 255, 0).astype(np.uint8) if extreme else image
    np.testing.assert_array_equal(resize(image, new, kind), of_pillow(image, new, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("old", "new"), [((3, 4001), (2, 5)), ((5, 7), (1203, 3)), ((700, 901), (518, 686)), ((900, 701), (8, 8))]
)
def test_large_ratios_and_many_tiles_are_as_pillow_has_them(
    old: tuple[int, int], new: tuple[int, int], kind: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    np.testing.assert_array_equal(resize(image, new, kind), of_pillow(image, new, kind))


def test_views_are_taken() -> None:
    """Regions and mirrored images, as numpy cuts them."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for view in (image[3:31, 5:50], image[:, ::-1], image[::-1, ::2], image.transpose(1, 0, 2)):
        for kind in ("nearest", "bicubic"):
            np.testing.assert_array_equal(resize(view, (21, 33), kind), of_pillow(view, (21, 33), kind))

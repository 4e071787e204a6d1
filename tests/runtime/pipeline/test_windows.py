"""Views, windows and what is padded, worked out by hand on images of a few pixels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bundles import steps

from denseport.runtime.bundle.manifest import Inference, NetworkInput
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Augmentation, Normalise, Pad, Resize, ResizeBy, ResizeToMultiple
from denseport.runtime.errors import ImageError
from denseport.runtime.pipeline.views import input_sizes, protocol_views, view_of, window_input, window_starts, windows

NORMALISE = Normalise((1.0, 2.0, 3.0), (2.0, 4.0, 5.0), bgr_to_rgb=True)
TO_10_BY_8 = Resize((10, 8), keep_ratio=False)


def protocol(*preprocess: Any, **fields: Any) -> Protocol:
    return Protocol("by hand", (*preprocess, NORMALISE), **{"inference": Inference(), **fields})


@pytest.mark.parametrize(
    ("preprocess", "size", "stretched", "cut"),
    [
        ((NORMALISE,), (5, 7), (5, 7), (0, 0)),
        ((TO_10_BY_8, NORMALISE), (8, 10), (8, 10), (0, 0)),
        ((TO_10_BY_8, Pad((16, 9)), NORMALISE), (9, 16), (9, 16), (0, 0)),
        ((TO_10_BY_8, Pad((16, 9), crop=True), NORMALISE), (9, 16), (9, 16), (1, 6)),
        ((TO_10_BY_8, Pad((11, 20), crop=True), NORMALISE, Pad(divisor=16, crop=True)), (32, 16), (32, 16), (24, 6)),
        ((TO_10_BY_8, NORMALISE, Pad((16, 9))), (9, 16), (9, 16), (0, 0)),
        ((TO_10_BY_8, ResizeToMultiple((4, 3)), NORMALISE), (9, 12), (9, 12), (0, 0)),
        # Upstream's oddity: the first stretch is to the last multiple or pad that is not cut off.
        ((ResizeToMultiple((4, 3)), TO_10_BY_8, NORMALISE), (8, 10), (6, 8), (0, 0)),
        ((Pad((9, 9)), TO_10_BY_8, NORMALISE), (8, 10), (9, 9), (0, 0)),
        ((Pad((9, 9), crop=True), TO_10_BY_8, NORMALISE), (8, 10), (8, 10), (0, 0)),
        ((ResizeToMultiple((4, 3)), TO_10_BY_8, NORMALISE, Pad((12, 9), crop=True)), (9, 12), (9, 12), (1, 2)),
    ],
)
def test_how_large_an_image_of_7_by_5_is_seen(
    preprocess: Preprocessing, size: tuple[int, int], stretched: tuple[int, int], cut: tuple[int, int]
) -> None:
    view = view_of((5, 7), preprocess)
    assert (view.size, view.stretched, view.cut, view.flip) == (size, stretched, cut, False)
    assert view_of((5, 7), preprocess, flip=True).flip


def test_views_are_scales_and_within_each_its_mirror() -> None:
    scales = (ResizeBy((1.0, 1.0)), ResizeBy((2.0, 2.0)))
    for flip, expected in (
        (True, [(5, False), (5, True), (10, False), (10, True)]),
        (False, [(5, False), (10, False)]),
    ):
        told = protocol(augmentation=Augmentation(scales, flip=flip))
        views = protocol_views((5, 7), told, 16)  # however small: a mean of several views has no least size
        assert [(view.size[0], view.flip) for view in views] == expected


@pytest.mark.parametrize(("size", "patch"), [((16, 16), 16), ((16, 90), 16), ((90, 16), 16), ((1, 1), 1)])
def test_one_patch_is_enough(size: tuple[int, int], patch: int) -> None:
    (view,) = protocol_views(size, protocol(), patch)
    assert view.size == size
    with pytest.raises(ImageError, match=f"{size[1]} x {size[0]} pixels .* less than one patch of {patch + 1} x"):
        protocol_views(size, protocol(), patch + 1)


@pytest.mark.parametrize(
    ("shape", "inference", "refused"),
    [
        ((1, 3, 32, 48), Inference(), False),
        ((None, 3, None, None), Inference(), False),
        ((None, 3, 32, None), Inference(), False),
        ((2, 3, None, None), Inference(), True),
        ((None, 3, 31, None), Inference(), True),
        ((None, 3, None, 47), Inference(), True),
        ((1, 3, 20, 30), Inference("slide", (20, 30), (10, 10)), False),
        ((1, 3, 32, 48), Inference("slide", (20, 30), (10, 10)), True),
        ((1, 3, 30, 20), Inference("slide", (20, 30), (10, 10)), True),
    ],
)
def test_the_network_takes_a_shape_or_any(shape: tuple[Any, ...], inference: Inference, refused: bool) -> None:
    told = protocol(inference=inference, input=NetworkInput(shape=shape))
    if refused:
        with pytest.raises(ImageError, match=f"reaches the network as .*; it takes \\({shape[0]}, 3, "):
            protocol_views((32, 48), told, 1)
    else:
        assert len(protocol_views((32, 48), told, 1)) == 1


def test_the_sizes_of_images_that_nothing_resizes() -> None:
    assert input_sizes(protocol()) == ((1536, 2048), (2048, 1536))
    inference = Inference("slide", (1600, 1700), (10, 10))
    assert input_sizes(protocol(inference=inference)) == ((1536, 1700), (1600, 1536))
    strict = protocol(input=NetworkInput(shape=(1, 3, 9, 9)))
    assert input_sizes(strict) == ((1536, 2048), (2048, 1536)), "nothing is refused"
    thin = replace(strict, preprocess=steps((2, 1), keep_ratio=False))
    assert input_sizes(thin) == ((1, 2),)


@pytest.mark.parametrize(
    ("length", "crop", "stride", "expected"),
    [
        (5, 4, 2, [(0, 4), (1, 5)]),
        (6, 4, 2, [(0, 4), (2, 6)]),
        (7, 4, 2, [(0, 4), (2, 6), (3, 7)]),
        (4, 4, 2, [(0, 4)]),
        (4, 4, 1, [(0, 4)]),
        (3, 4, 1, [(0, 3)]),
        (1, 4, 4, [(0, 1)]),
        (9, 4, 4, [(0, 4), (4, 8), (5, 9)]),
    ],
)
def test_the_last_window_is_moved_back(length: int, crop: int, stride: int, expected: list[tuple[int, int]]) -> None:
    assert window_starts(length, crop, stride) == expected


def test_rows_and_columns_have_windows_of_their_own() -> None:
    assert windows((5, 9), Inference("slide", (4, 6), (2, 3))) == ([(0, 4), (1, 5)], [(0, 6), (3, 9)])
    assert windows((5, 9), Inference()) == ([(0, 5)], [(0, 9)])


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_padded_after_normalising_has_its_own_values(channels: int) -> None:
    """Two pads, each with its value, around 7 x 5 pixels; every window of them."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    normalise = replace(NORMALISE, mean=NORMALISE.mean[:channels], std=NORMALISE.std[:channels])
    inner, outer = Pad((9, 6), value=(7.0, 8.0, 9.0)), Pad(divisor=4, value=(-1.0, -2.0, -3.0))
    view = view_of((5, 7), (normalise, inner, outer))
    assert view.size == (8, 12)
    expected = np.empty((channels, 8, 12), np.float32)
    order = (2, 1, 0)[:channels]
    for c, channel in enumerate(order):
        expected[c] = outer.value[c]
        expected[c, :6, :9] = inner.value[c]
        expected[c, :5, :7] = (image[..., channel].astype(np.float32) - normalise.mean[c]) / normalise.std[c]
    spans = [[*itertools.combinations(range(side + 1), 2)] for side in view.size]
    for row in spans[0]:
        for col in spans[1]:
            found = window_input(image, view, row, col)
            np.testing.assert_array_equal(found, expected[None, :, slice(*row), slice(*col)], strict=True)

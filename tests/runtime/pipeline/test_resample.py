"""Tiles against the long way: torch resizes to the network's input, then to the image, then argmax."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import postprocess
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from postprocess import slide_maps, whole_map
from torch.nn import functional as F

from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.reduce import Decision, decide
from denseport.runtime.pipeline.resample import LogitMap, ResampleMatrix
from denseport.runtime.pipeline.results import RequestedOutputs

Floats = NDArray[np.float32]
Size = tuple[int, int]

SHAPES = [  # classes, logits, network input, image
    pytest.param(150, (24, 33), (48, 65), (101, 127), id="up-up"),
    pytest.param(150, (40, 53), (160, 211), (61, 83), id="up-down"),
    pytest.param(7, (61, 90), (31, 44), (13, 17), id="down-down"),
    pytest.param(7, (35, 45), (70, 90), (70, 90), id="image-is-input"),
    pytest.param(300, (9, 11), (50, 70), (97, 131), id="uint16"),
    pytest.param(1, (5, 6), (10, 12), (50, 60), id="one-class"),
    pytest.param(7, (1, 1), (16, 16), (100, 50), id="one-logit"),
    pytest.param(7, (1, 40), (2, 80), (1, 301), id="one-row"),
    pytest.param(7, (40, 1), (80, 2), (301, 1), id="one-column"),
]


def noise(classes: int, size: Size, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((classes, *size), dtype=np.float32)


def smooth(classes: int, size: Size, seed: int = 0) -> Floats:
    return 4 * torch_resize(noise(classes, (3, 4), seed), size) + 0.01 * noise(classes, size, seed + 1)


def torch_resize(logits: Floats, size: Size) -> Floats:
    return F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear")[0].numpy()


def torch_slide(windows: list[Floats], rows: list[Size], cols: list[Size], resized: Size) -> Floats:
    """mmseg's slide_inference: add up the resized windows, divide by how many cover each pixel."""
    total = np.zeros((len(windows[0]), *resized), np.float32)
    count = np.zeros(resized, np.float32)
    areas = [(slice(*row), slice(*col)) for row in rows for col in cols]
    for logits, (y, x) in zip(windows, areas, strict=True):
        total[:, y, x] += torch_resize(logits, (y.stop - y.start, x.stop - x.start))
        count[y, x] += 1
    return total / count


def assert_argmax_of(mask: NDArray[np.unsignedinteger], scores: Floats) -> None:
    """The mask is the argmax of (C, H, W) scores, except where the two best are equal up to rounding."""
    expected = scores.argmax(0)
    chosen = np.take_along_axis(scores, mask[None].astype(np.intp), 0)[0]
    scale = max(1.0, float(np.abs(scores).max()))
    assert mask.shape == expected.shape
    np.testing.assert_allclose(chosen, scores.max(0), rtol=0, atol=1e-5 * scale)
    assert (mask != expected).mean() < 1e-3


@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize(("classes", "size", "resized", "image"), SHAPES)
def test_whole_image(make: Callable[[int, Size], Floats], classes: int, size: Size, resized: Size, image: Size) -> None:
    given_logits = make(classes, size)
    expected = torch_resize(torch_resize(given_logits, resized), image)
    maps = [whole_map(given_logits, resized, image)]
    np.testing.assert_allclose(postprocess.logits(maps), expected, rtol=0, atol=1e-5)
    mask = postprocess.argmax(maps)
    assert_argmax_of(mask, expected)
    assert mask.dtype == (np.uint8 if classes <= 256 else np.uint16)


def test_flip_mirrors_the_resized_logits() -> None:
    given_logits = noise(7, (11, 14))
    expected = torch_resize(np.flip(torch_resize(given_logits, (44, 57)), 2).copy(), (90, 103))
    maps = [whole_map(given_logits, (44, 57), (90, 103), flip=True)]
    np.testing.assert_allclose(postprocess.logits(maps), expected, rtol=0, atol=1e-5)
    assert_argmax_of(postprocess.argmax(maps), expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize("image", [(97, 131), (211, 300), (31, 40)])
def test_sliding_windows(make: Callable[[int, Size, int], Floats], image: Size, flip: bool) -> None:
    rows, cols, resized = [(0, 64), (36, 100)], [(0, 64), (42, 106), (71, 135)], (100, 135)
    windows = [make(20, (16, 16), seed) for seed in range(6)]
    scores = torch_slide(windows, rows, cols, resized)
    expected = torch_resize(np.flip(scores, 2).copy() if flip else scores, image)
    maps = slide_maps(windows, rows, cols, resized, image, flip=flip)
    np.testing.assert_allclose(postprocess.logits(maps), expected, rtol=0, atol=1e-5)
    assert_argmax_of(postprocess.argmax(maps), expected)


def test_mean_softmax_of_scales_flip_and_windows() -> None:
    image = (75, 110)
    windows, rows, cols = [noise(9, (8, 8), seed) for seed in range(2)], [(0, 32)], [(0, 32), (15, 47)]
    small, mirrored = smooth(9, (8, 12)), 3 * noise(9, (20, 31))
    views = [
        [whole_map(small, (32, 47), image)],
        [whole_map(mirrored, (80, 121), image, flip=True)],
        slide_maps(windows, rows, cols, (32, 47), image),
    ]
    scores = [
        torch_resize(small, (32, 47)),
        np.flip(torch_resize(mirrored, (80, 121)), 2).copy(),
        torch_slide(windows, rows, cols, (32, 47)),
    ]
    softmax = [torch.from_numpy(torch_resize(score, image)).softmax(0) for score in scores]
    expected = torch.stack(softmax).mean(0).numpy()
    np.testing.assert_allclose(postprocess.probabilities(views), expected, rtol=0, atol=1e-5)
    assert_argmax_of(decide(views, decision=Decision(averaged=True)).mask, expected)


@pytest.mark.parametrize("classes", [2, 5, 150])
def test_the_first_of_equal_classes_wins(classes: int) -> None:
    whole_numbers = np.rint(4 * noise(classes, (20, 30)))  # doubled twice: all sums are exact, many are equal
    repeated = np.concatenate([whole_numbers, whole_numbers])
    expected = torch_resize(torch_resize(repeated, (40, 60)), (80, 120)).argmax(0)
    np.testing.assert_array_equal(postprocess.argmax([whole_map(repeated, (40, 60), (80, 120))]), expected)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden_by_pruning(special: float) -> None:
    given_logits = smooth(7, (12, 15))
    given_logits[0] -= 50  # so that class 0 would be left out of every tile
    given_logits[0, 5, 6] = special
    given_logits[3, 5, 7] = -np.inf
    # 40 / 12 and 52 / 15: no pixel centre falls on a logit's, so that torch meets no 0 * inf inside
    expected = torch_resize(given_logits, (40, 52))
    maps = [whole_map(given_logits, (40, 52), (40, 52))]
    np.testing.assert_allclose(postprocess.logits(maps), expected, atol=1e-5)
    mask = postprocess.argmax(maps)
    np.testing.assert_array_equal(mask, expected.argmax(0))
    assert (mask == 0).any() == (special != -np.inf)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_spoils_no_pixel_beside_it(special: float) -> None:
    """All other logits are finite: a product with 0 would make NaN of the whole tile."""
    given_logits = smooth(7, (12, 15))
    given_logits[2, 5, 6] = special
    expected = torch_resize(given_logits, (40, 52))  # no pixel's centre falls on a logit's, as above
    maps = [whole_map(given_logits, (40, 52), (40, 52))]
    np.testing.assert_array_equal(postprocess.argmax(maps), expected.argmax(0))
    mask = decide([maps], RequestedOutputs(scores=True), threads=1).mask
    np.testing.assert_array_equal(mask[:12], expected.argmax(0)[:12], "rows that the value does not reach")


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_logits_whose_exponential_overflows_have_probabilities(offset: float) -> None:
    """float32's exp overflows from 88.7 on, and is 0 below -103.3."""
    given_logits = np.float32([[[0.0]], [[200.0]], [[201.0]]]) + np.float32(offset)
    chances = 1 / (1 + np.e ** np.float64([1, -1]))  # of two classes one apart; the third's is 0
    maps = [whole_map(given_logits, (1, 1), (1, 1))]
    np.testing.assert_allclose(postprocess.probabilities([maps]).ravel(), [0, *chances], atol=1e-6)
    canvas = decide([maps], RequestedOutputs(scores=True, top_k=3), threads=1)
    assert canvas.scores is not None and canvas.top_classes is not None and canvas.top_scores is not None
    np.testing.assert_allclose(canvas.scores.ravel(), chances[1], atol=1e-6)
    np.testing.assert_allclose(canvas.top_scores.ravel(), [*chances[::-1], 0], atol=1e-6)
    assert canvas.top_classes.ravel().tolist() == [2, 1, 0] and canvas.mask.tolist() == [[2]]


def test_infinities_of_both_signs_make_nan() -> None:
    given_logits = np.zeros((2, 1, 2), np.float32)
    given_logits[1, 0] = np.inf, -np.inf
    assert np.isnan(postprocess.logits([whole_map(given_logits, (1, 3), (1, 3))])[1, 0, 1])
    assert postprocess.argmax([whole_map(given_logits, (1, 3), (1, 3))]).tolist() == [[1, 1, 0]]


def test_threads_do_not_change_the_result() -> None:
    maps = [whole_map(noise(20, (30, 40)), (60, 80), (203, 307))]
    one, three = (postprocess.argmax(maps, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


@settings(max_examples=25, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 9), st.booleans())
def test_any_shape(size: Size, resized: Size, image: Size, classes: int, flip: bool) -> None:
    given_logits = noise(classes, size)
    middle = torch_resize(given_logits, resized)
    expected = torch_resize(np.flip(middle, 2).copy() if flip else middle, image)
    maps = [whole_map(given_logits, resized, image, flip=flip)]
    np.testing.assert_allclose(postprocess.logits(maps), expected, rtol=0, atol=2e-5)


def test_upstream_masks(oracle: Path) -> None:
    golden = np.load(oracle / "tiny_dpt_project.npz")
    for size in ((70, 90), (80, 112), (64, 64)):
        name = f"{size[0]}x{size[1]}"
        for logits, expected in zip(golden[f"head_{name}"], golden[f"argmax_{name}"], strict=True):
            mask = postprocess.argmax([whole_map(logits, size, size)])
            assert (mask != expected).mean() < 1e-3
            assert_argmax_of(mask, torch_resize(logits, size))


def test_inputs_that_do_not_fit() -> None:
    logits = noise(3, (4, 5))
    with pytest.raises(InputError, match="float64"):
        whole_map(logits.astype(np.float64), (8, 10), (8, 10))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected logits of shape \(C, 4, 6\)"):
        LogitMap(logits, ResampleMatrix.linear(4, 8), ResampleMatrix.linear(6, 8))
    with pytest.raises(InputError, match="must be positive"):
        whole_map(logits, (8, 10), (0, 10))
    with pytest.raises(InputError, match="cannot follow"):
        ResampleMatrix.linear(4, 8).after(ResampleMatrix.linear(4, 5))
    with pytest.raises(InputError, match="1 x 2 windows, found 1"):
        slide_maps([logits], [(0, 8)], [(0, 8), (4, 12)], (8, 12), (8, 12))
    with pytest.raises(InputError, match="1 x 0 windows, found 0"):
        slide_maps([], [(0, 8)], [], (8, 12), (8, 12))
    with pytest.raises(InputError, match="lies in no window"):
        slide_maps([logits, logits], [(0, 8)], [(0, 5), (6, 12)], (8, 12), (8, 12))
    with pytest.raises(InputError, match="does not lie inside"):
        slide_maps([logits], [(0, 8)], [(0, 13)], (8, 12), (8, 12))
    with pytest.raises(InputError, match="one shape"):
        postprocess.argmax([whole_map(logits, (8, 8), (8, 8)), whole_map(logits, (8, 8), (8, 9))])
    with pytest.raises(InputError, match="threads"):
        postprocess.argmax([whole_map(logits, (8, 8), (8, 8))], threads=0)


def test_pixels_that_no_logits_reach_are_an_error() -> None:
    """Windows of 50 of 200 rows, or columns: the tiles of 48 from 96 on have none."""
    counts = np.ones(200, np.intp)
    part, whole = ResampleMatrix.linear(5, 50).window(0, counts), ResampleMatrix.linear(5, 200)
    with pytest.raises(InputError, match=r"from row 96$"):
        decide([[LogitMap(noise(3, (5, 5)), part, whole)]], threads=1)
    with pytest.raises(InputError, match=r"from row 0, column 96$"):
        decide([[LogitMap(noise(3, (5, 5)), whole, part)]], threads=1)


def test_a_block_of_outputs_that_nothing_reaches_is_empty() -> None:
    axis = ResampleMatrix.linear(5, 50).window(0, np.ones(200, np.intp))
    touched, matrix = axis.block(60, 100)
    assert touched == slice(0, 0) and matrix.shape == (40, 0)
    touched, matrix = axis.block(0, 50)
    assert touched == slice(0, 5) and matrix.shape == (50, 5)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_averaged_views_rank_all_classes_where_there_are_more_than_pixels() -> None:
    views = [[whole_map(noise(60, (2, 3), seed), (2, 3), (2, 3))] for seed in range(2)]
    mean = sum(torch.from_numpy(noise(60, (2, 3), seed)).softmax(0) for seed in range(2)).numpy() / 2  # type: ignore[union-attr]
    canvas = decide(views, RequestedOutputs(scores=True, top_k=60), decision=Decision(averaged=True), threads=1)
    order = np.argsort(-mean, axis=0, kind="stable")
    np.testing.assert_array_equal(canvas.mask, order[0])
    np.testing.assert_array_equal(canvas.top_classes, order)
    np.testing.assert_allclose(canvas.top_scores, np.take_along_axis(mean, order, 0), atol=1e-6)
    np.testing.assert_allclose(canvas.scores, mean.max(0), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 8.0])
@pytest.mark.parametrize("make", [noise, smooth])
def test_a_temperature_divides_the_logits_of_one_view(make: Callable[[int, Size], Floats], temperature: float) -> None:
    """Of 40 classes most lie far below: what may be left out of the sum depends on the temperature too."""
    given_logits = 12 * make(40, (9, 12))
    maps = [whole_map(given_logits, (40, 52), (75, 110))]
    canvas = decide([maps], RequestedOutputs(True, 3), Decision(temperature=temperature), threads=1)
    full = torch.from_numpy(postprocess.logits(maps))
    chances, order = (full / temperature).softmax(0).numpy(), np.argsort(-full.numpy(), axis=0, kind="stable")[:3]
    np.testing.assert_array_equal(canvas.mask, postprocess.argmax(maps))
    np.testing.assert_array_equal(canvas.top_classes, order)
    np.testing.assert_allclose(canvas.scores, chances.max(0), atol=2e-5)
    np.testing.assert_allclose(canvas.top_scores, np.take_along_axis(chances, order, 0), atol=2e-5)


def test_a_temperature_of_several_views_is_of_their_mean() -> None:
    views = [[whole_map(3 * noise(5, (6, 8), seed), (6, 8), (12, 16))] for seed in range(2)]
    plain = decide(views, RequestedOutputs(True, 2), Decision(averaged=True), threads=1)
    canvas = decide(views, RequestedOutputs(True, 2), Decision(averaged=True, temperature=2.5), threads=1)
    power = postprocess.probabilities(views) ** (1 / 2.5)
    np.testing.assert_array_equal(canvas.mask, plain.mask)
    np.testing.assert_array_equal(canvas.top_classes, plain.top_classes)
    np.testing.assert_allclose(canvas.scores, power.max(0) / power.sum(0), atol=1e-5)


def test_a_low_temperature_of_many_classes_leaves_probabilities() -> None:
    """No float32 holds the 20th power of 1 / 300."""
    views = [[whole_map(0.1 * noise(300, (6, 8), seed), (6, 8), (6, 8))] for seed in range(2)]
    canvas = decide(views, RequestedOutputs(True, 2), Decision(averaged=True, temperature=0.05), threads=1)
    power = postprocess.probabilities(views).astype(np.float64) ** 20
    np.testing.assert_allclose(canvas.scores, power.max(0) / power.sum(0), rtol=1e-3)


def test_a_temperature_moves_no_pixel_over_a_threshold() -> None:
    logits = 6 * noise(2, (10, 10))
    logits[0] = np.log(0.3 / 0.7)
    maps = [whole_map(logits, (10, 10), (10, 10))]
    decision = Decision(threshold=0.3, temperature=3.0)
    canvas = decide([maps], RequestedOutputs(scores=True), decision, threads=1)
    second = torch.from_numpy(logits[1]).sigmoid().numpy() > 0.3
    np.testing.assert_array_equal(canvas.mask, second)
    tempered = torch.from_numpy(logits[1] / 3).sigmoid().numpy()
    np.testing.assert_allclose(canvas.scores, np.where(second, tempered, 1 - tempered), atol=1e-5)

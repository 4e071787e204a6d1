"""The steps of pre-processing: what size each gives, what it is called, and which of its values are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bundles import steps

from denseport.runtime.bundle.preprocessing import (
    USUAL_NORMALISE,
    USUAL_RESIZE,
    check_steps,
    described,
    is_usual,
    loading,
    needs_pillow,
    of_one_size,
    output_size,
    paddings,
    resized_to,
    resizing,
    size_steps,
    with_resize,
    without_resize,
)
from denseport.runtime.bundle.steps import (
    LARGEST_SIDE,
    Augmentation,
    Load,
    Normalise,
    Pad,
    Resize,
    ResizeBy,
    ResizeRounded,
    ResizeShortestEdge,
    ResizeToMultiple,
    rescaled_size,
)
from denseport.runtime.errors import ImageError

GREY = Normalise((120.0,), (60.0,), bgr_to_rgb=False)


@pytest.mark.parametrize(
    ("step", "expected", "words"),
    [
        (Resize((30, 20), keep_ratio=False), (20, 30), "fixed 30 x 20"),
        (Resize((30, 20), keep_ratio=True), (15, 30), "keep-ratio 30 x 20"),  # the longer side binds
        (
            Resize((20, 90), keep_ratio=True),
            (20, 40),
            "keep-ratio 20 x 90",
        ),  # the shorter one, whichever is named first
        (Resize((30, 20), False, "nearest"), (20, 30), "fixed 30 x 20 (nearest)"),
        (Resize((30, 20), False, "box", "pillow"), (20, 30), "fixed 30 x 20 (box, Pillow)"),
        (Resize((30, 20), False, library="pillow"), (20, 30), "fixed 30 x 20 (Pillow)"),
        (ResizeBy((1.5, 0.5)), (5, 30), "by 1.5 (width) and 0.5 (height)"),
        (ResizeBy((0.33, 0.33)), (3, 7), "by 0.33"),  # 3.3 and 6.6, half up
        (ResizeBy((0.33, 0.33), round_down=True), (3, 6), "by 0.33"),
        (ResizeBy((0.01, 0.01)), (1, 1), "by 0.01"),
        (ResizeBy((2.0, 4.0), keep_ratio=True), (20, 40), "by 2 (width) and 4 (height)"),
        (ResizeShortestEdge(5, 99), (5, 10), "shorter side 5, longer at most 99"),
        (ResizeShortestEdge(5, 10), (5, 10), "shorter side 5, longer at most 10"),
        (ResizeShortestEdge(5, 8), (4, 8), "shorter side 5, longer at most 8"),
        (ResizeToMultiple((8, 3)), (12, 24), "up to multiples of 8 (width) and 3 (height)"),
        (ResizeToMultiple((10, 10)), (10, 20), "up to multiples of 10"),
        (ResizeRounded((30, 20), "stretch", 8), (16, 32), "stretch 30 x 20, multiples of 8"),  # 2.5 to even
        (ResizeRounded((30, 18), "minimal", 7), (14, 28), "minimal 30 x 18, multiples of 7"),  # by 1.5
        (ResizeRounded((30, 18), "minimal"), (15, 30), "minimal 30 x 18"),
        (ResizeRounded((30, 18), "lower_bound", 7), (21, 35), "lower bound 30 x 18, multiples of 7"),
        (Pad((30, 5)), (10, 30), "padded to 30 x 5"),  # never cuts
        (Pad(divisor=16, centred=True), (16, 32), "padded to multiples of 16, centred"),
        (Pad((5, 30), crop=True), (30, 20), "padded to 5 x 30, cut off again"),
        (Pad(divisor=8, mode="edge"), (16, 24), "padded to multiples of 8 (edge)"),
        (Pad(square=True), (20, 20), "padded to a square"),
        (
            Pad(square=True, divisor=32, mode="reflect", crop=True),
            (32, 32),
            "padded to a square of multiples of 32 (reflect), cut off again",
        ),
    ],
    ids=str,
)
def test_what_becomes_of_20_x_10_pixels(step: Any, expected: tuple[int, int], words: str) -> None:
    assert step.output((10, 20)) == output_size((10, 20), step) == expected
    assert step.words == words


def test_portraits() -> None:
    assert Resize((30, 20), keep_ratio=True).output((20, 10)) == (30, 15)
    assert ResizeShortestEdge(5, 8).output((20, 10)) == (8, 4)
    assert Pad(square=True).output((20, 10)) == (20, 20)
    assert rescaled_size((3, 5), 0.5) == (2, 3) and rescaled_size((1, 1), 0.4) == (1, 1)


def test_scales_of_multi_scale_testing() -> None:
    assert Resize((101, 51), True, "nearest").scaled(0.5) == Resize((50, 25), True, "nearest")
    assert ResizeBy((1.0, 2.0)).scaled(1.5) == ResizeBy((1.5, 3.0))
    assert ResizeShortestEdge(51, 101).scaled(0.5) == ResizeShortestEdge(25, 50)
    assert ResizeRounded((51, 101), "minimal", 14).scaled(0.5) == ResizeRounded((25, 50), "minimal", 14)


@pytest.mark.parametrize(
    ("make", "inside", "outside"),
    [
        (lambda side: Resize((side, 9), True), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1, -1]),
        (lambda side: Resize((9, side), True), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda factor: ResizeBy((factor, 1)), [0.001, LARGEST_SIDE], [0, -1, LARGEST_SIDE + 1, math.nan, math.inf]),
        (lambda factor: ResizeBy((1, factor)), [0.001, LARGEST_SIDE], [0, -1, LARGEST_SIDE + 1, math.nan]),
        (lambda side: ResizeShortestEdge(side, 9), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: ResizeShortestEdge(9, side), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: ResizeToMultiple((side, 9)), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: ResizeToMultiple((9, side)), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: ResizeRounded((side, 9), "minimal"), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: ResizeRounded((9, side), "minimal"), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: ResizeRounded((9, 9), "minimal", side), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda rule: ResizeRounded((9, 9), rule), ["minimal", "lower_bound", "stretch"], ["upper_bound"]),
        (lambda kind: ResizeRounded((9, 9), "minimal", 1, kind), ["nearest"], ["box"]),
        (lambda side: Pad((side, 9)), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: Pad((9, side)), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda side: Pad(divisor=side), [1, LARGEST_SIDE], [0, LARGEST_SIDE + 1]),
        (lambda value: Pad((9, 9), value=(1.0, value, 1.0)), [-300.0], [math.nan, math.inf]),
        (lambda mode: Pad((9, 9), mode=mode), ["constant", "edge", "reflect", "symmetric"], ["wrap"]),
        (lambda library: Load(library=library), ["opencv", "pillow"], ["turbojpeg"]),
        (lambda kind: Resize((9, 9), True, kind), ["nearest", "area", "lanczos"], ["box", "linear"]),
        (lambda kind: ResizeBy((1, 1), interpolation=kind), ["nearest"], ["box"]),
        (lambda kind: ResizeShortestEdge(9, 9, kind), ["nearest"], ["box"]),
        (lambda kind: ResizeToMultiple((9, 9), kind, "pillow"), ["box", "hamming"], ["area"]),
        (lambda mean: Normalise((mean,), (1.0,), True), [0.0, -1.0], [math.nan, math.inf]),
        (lambda std: Normalise((1.0, 2.0, 3.0), (1.0, std, 1.0), True), [0.001], [0.0, -1.0, math.inf, math.nan]),
        (lambda n: Normalise((1.0,) * n, (1.0,) * n, True), [1, 3], [0, 2, 4]),
        (lambda n: Normalise((1.0,) * 3, (1.0,) * n, True), [3], [1, 2, 4]),
    ],
)
def test_the_values_of_a_step_end_where_it_says(make: Any, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        make(value)
    for value in outside:
        with pytest.raises(ValueError, match=r"not|none of"):
            make(value)


def test_a_pad_has_one_way_to_its_size() -> None:
    Pad(square=True, divisor=8)
    for bad in ({"size": (9, 9), "divisor": 3}, {"size": (9, 9), "square": True}):
        with pytest.raises(ValueError, match="has a size, or a divisor, or is square"):
            Pad(**bad)
    with pytest.raises(ValueError, match="needs a size or a divisor"):
        Pad()
    with pytest.raises(ValueError, match="centred pad are not cut off"):
        Pad((9, 9), crop=True, centred=True)


def test_where_a_pad_adds() -> None:
    assert Pad(divisor=16).added((10, 21)) == ((0, 6), (0, 11))
    assert Pad(divisor=16, centred=True).added((10, 21)) == ((3, 3), (5, 6))  # the odd one at the right


def test_defaults_are_the_usual() -> None:
    usual = Load(orientation=True, grey=False, float32=False, library="opencv")
    assert usual == Load()
    assert Load().words == "" and Pad((9, 9)) == Pad((9, 9), None, False, (0.0, 0.0, 0.0), "constant", crop=False)
    odd = Load(orientation=False, grey=True, float32=True, library="pillow")
    assert odd.words == "decoded by Pillow, EXIF orientation ignored, grey, float32"
    assert ResizeBy((1, 1)) == ResizeBy((1, 1), keep_ratio=False, round_down=False)
    assert (USUAL_RESIZE.size, USUAL_RESIZE.keep_ratio) == ((2048, 512), True)
    published = Normalise((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True)
    assert published == USUAL_NORMALISE
    resizes = [USUAL_RESIZE, ResizeBy((1, 1)), ResizeShortestEdge(1, 1), ResizeToMultiple((1, 1))]
    kinds = [Load(), *resizes, ResizeRounded((1, 1), "stretch"), Pad((1, 1))]
    names = ["load", "resize", "resize_by", "resize_shortest_edge", "resize_to_multiple", "resize_rounded"]
    names += ["pad", "normalise"]
    assert [step.kind for step in (*kinds, GREY)] == names


def test_what_is_averaged_in_words() -> None:
    one, two = Resize((30, 20), True), Resize((60, 40), True)
    assert Augmentation((one,), flip=True).words == "flip (keep-ratio 30 x 20)"
    assert Augmentation((one, two), flip=False).words == "ms (2 scales, keep-ratio 30 x 20 to keep-ratio 60 x 40)"
    assert Augmentation((two, one), flip=True).words == "ms + flip (2 scales, keep-ratio 60 x 40 to keep-ratio 30 x 20)"
    with pytest.raises(ValueError, match="at least one scale"):
        Augmentation((), flip=True)


def test_no_step_makes_an_image_huge_that_was_not() -> None:
    """An image that is larger by itself is not refused: nothing made it so."""
    assert output_size((LARGEST_SIDE // 2, 1), ResizeBy((2.0, 2.0))) == (LARGEST_SIDE, 2)
    with pytest.raises(ImageError, match=rf"1 x {LARGEST_SIDE // 2 + 1} would become 2 x {LARGEST_SIDE + 2} \(by 2\)"):
        output_size((LARGEST_SIDE // 2 + 1, 1), ResizeBy((2.0, 2.0)))
    assert output_size((LARGEST_SIDE + 5, 1), Pad((9, 9))) == (LARGEST_SIDE + 5, 9)


def test_no_step_leaves_an_image_without_pixels() -> None:
    """As transformers' rule does; it then fails in Pillow."""
    step = ResizeRounded((518, 518), "minimal", 14)
    assert step.output((1, 1000)) == (0, 518)
    with pytest.raises(ImageError, match=r"1000 x 1 would become 518 x 0 \(minimal 518 x 518, multiples of 14\)"):
        output_size((1, 1000), step)


def test_sizes_are_those_of_transformers(shared: Path) -> None:
    """Its DPT's rule, stretching or not, for 84 sizes."""
    table = json.loads((shared / "oracle_families/preprocess.json").read_text())["sizes"]
    for height, width, side, multiple, keep, new_height, new_width in table["rows"]:
        step = ResizeRounded((side, side), "minimal" if keep else "stretch", multiple)
        assert step.output((height, width)) == (new_height, new_width), (height, width, step)
    assert len(table["rows"]) == 84


# Lists of steps


LOAD, RESIZE, PAD, NORMALISE = Load(grey=True), Resize((30, 20), True, "area"), Pad((9, 9)), USUAL_NORMALISE


def test_lists_are_taken_apart() -> None:
    every = (LOAD, PAD, RESIZE, NORMALISE, Pad(divisor=8))
    check_steps(every)
    assert (loading(every), loading((NORMALISE,))) == (LOAD, Load())
    assert size_steps(every) == (PAD, RESIZE) and paddings(every) == (Pad(divisor=8),)
    assert resizing(every) is RESIZE and resizing((PAD, ResizeToMultiple((8, 8)), NORMALISE)) is None
    assert without_resize((ResizeToMultiple((8, 8)), *every)) == (LOAD, PAD, NORMALISE, Pad(divisor=8))
    assert of_one_size(every, (5, 6)) == (LOAD, Resize((5, 6), False, "area"), NORMALISE)
    other = Resize((5, 6), False)
    assert with_resize(every, other) == (LOAD, PAD, other, NORMALISE, Pad(divisor=8))
    assert with_resize((LOAD, PAD, NORMALISE), other) == (LOAD, other, PAD, NORMALISE)
    assert with_resize((PAD, NORMALISE), other) == (other, PAD, NORMALISE)
    assert resized_to(every, (5, 6), keep_ratio=False)[2] == Resize((5, 6), False, "area")
    assert resized_to((NORMALISE,), (5, 6), keep_ratio=True)[0] == Resize((5, 6), True)
    assert described(every) == "grey, padded to 9 x 9, keep-ratio 30 x 20 (area), padded to multiples of 8"
    assert described((NORMALISE,)) == "own size"


@pytest.mark.parametrize(
    "bad",
    [
        (RESIZE,),
        (NORMALISE, NORMALISE),
        (RESIZE, LOAD, NORMALISE),
        (LOAD, LOAD, NORMALISE),
        (NORMALISE, RESIZE),
        (NORMALISE, Pad((9, 9), mode="edge")),
        (NORMALISE, PAD, RESIZE),
        (Load(float32=True), Resize((9, 9), True, library="pillow"), NORMALISE),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="preprocess"):
        check_steps(bad)


@pytest.mark.parametrize(
    ("steps", "usual"),
    [
        (steps(), True),
        ((NORMALISE,), True),
        ((ResizeToMultiple((8, 8)), NORMALISE), True),
        ((Load(orientation=False), USUAL_RESIZE, NORMALISE), True),
        ((RESIZE, NORMALISE), False),
        ((Resize((9, 9), True, library="pillow"), NORMALISE), False),
        ((USUAL_RESIZE, USUAL_RESIZE, NORMALISE), False),
        ((PAD, NORMALISE), False),
        ((USUAL_RESIZE, NORMALISE, PAD), False),
        ((ResizeRounded((9, 9), "minimal", 14), NORMALISE), True),
        ((ResizeRounded((9, 9), "minimal", 14, "bicubic"), NORMALISE), False),
        ((Load(grey=True), USUAL_RESIZE, NORMALISE), False),
        ((Load(float32=True), USUAL_RESIZE, NORMALISE), False),
        ((USUAL_RESIZE, GREY), False),
    ],
)
def test_what_the_gpu_can_do_too(steps: Any, usual: bool) -> None:
    assert is_usual(steps) is usual


def test_what_needs_pillow() -> None:
    assert not needs_pillow(steps())
    assert needs_pillow((Load(library="pillow"), NORMALISE))
    assert not needs_pillow((PAD, ResizeBy((1, 1), library="pillow"), NORMALISE))

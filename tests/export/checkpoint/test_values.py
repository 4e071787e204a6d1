"""Values of a configuration that are nearly right: what is taken for a number or a flag, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.pipeline_keys import Keys, factors, one_or_two, telling, type_name, whole_pair
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE
from denseport.runtime.bundle.steps import Augmentation, Normalise, Pad, Resize


@pytest.mark.parametrize(("value", "expected"), [(True, True), (1, True), (False, False), (0, False), (None, False)])
def test_flags(value: Any, expected: bool) -> None:
    assert Keys("Resize", {"keep_ratio": value}).flag("keep_ratio") is expected


@pytest.mark.parametrize("value", [2, -1, 1.0, 0.0, "True", "", [], (1,)])
def test_what_is_no_flag(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"the test path's Resize has keep_ratio=.*, which is not True or False"):
        Keys("Resize", {"keep_ratio": value}).flag("keep_ratio")


@pytest.mark.parametrize("value", [3, 3.0])
def test_whole_numbers(value: Any) -> None:
    found = Keys("Pad", {"size_divisor": value}).whole("size_divisor")
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [3.5, True, None, "3", math.inf, math.nan, [3]])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"Pad has size_divisor=.*, which is not a whole number"):
        Keys("Pad", {"size_divisor": value}).whole("size_divisor")


def test_numbers() -> None:
    for value in (3, 3.5, -1, 0):
        found = Keys("Pad", {"pad_val": value}).real("pad_val")
        assert found == value and type(found) is float
        assert Keys("Pad", {"pad_val": value}).reals("pad_val") == (value,)
    assert (
        Keys("Pad", {"pad_val": [1, 2.5]}).reals("pad_val")
        == Keys("Pad", {"pad_val": (1, 2.5)}).reals("pad_val")
        == (1.0, 2.5)
    )
    for bad in (True, None, "1", math.inf, math.nan):
        with pytest.raises(CheckpointError, match="which is not a number"):
            Keys("Pad", {"pad_val": bad}).real("pad_val")
        for each in (bad, [1, bad], (bad, 1)):
            with pytest.raises(CheckpointError, match="which is not a number or a list of them"):
                Keys("Pad", {"pad_val": each}).reals("pad_val")


def test_pairs() -> None:
    assert whole_pair((3, 4.0)) == whole_pair([3, 4]) == (3, 4)
    assert one_or_two(5) == (5, 5) and one_or_two([5, 6]) == (5, 6)
    assert factors(2) == (2.0, 2.0) and factors([2, 0.5]) == factors((2, 0.5)) == (2.0, 0.5)
    for bad in (3, "34", (3,), (3, 4, 5), None, {3, 4}):
        with pytest.raises(ValueError, match="is not two numbers"):
            whole_pair(bad)
    for bad in ((3.5, 4), (4, 3.5), (True, 4), (4, False)):
        with pytest.raises(ValueError, match="is not whole numbers"):
            whole_pair(bad)


@pytest.mark.parametrize("error", [TypeError, ValueError, OverflowError])
def test_an_error_of_a_value_names_its_step(error: type[Exception]) -> None:
    with pytest.raises(CheckpointError, match="the test path's Resize: too large"), telling("Resize"):
        raise error("too large")


def test_names_of_types() -> None:
    assert type_name({"type": "mmcv.transforms.Resize"}) == type_name({"type": "Resize", "scale": 1}) == "Resize"
    for bad in ({"scale": 1}, {}, 3, ["type"], "type"):
        with pytest.raises(CheckpointError, match="which is not a dict with a type"):
            type_name(bad)


def test_libraries_that_resize() -> None:
    for backend, library in (("cv2", "opencv"), (None, "opencv"), ("pillow", "pillow")):
        assert Keys("Resize", {"backend": backend, "interpolation": "nearest"}).sampling() == ("nearest", library)
    for bad in ("PIL", ["cv2"], 0):
        with pytest.raises(CheckpointError, match=r"Resize has backend=.*\n  Give cv2 or pillow instead"):
            Keys("Resize", {"backend": bad, "interpolation": "nearest"}).sampling()


def steps_of(text: str, **fields: Any) -> Any:
    return image_steps(Checkpoint(Path("c.pth"), "", "mmseg 1.x", {}, config=parse_config(text), **fields))


LOAD, PACK = "dict(type='LoadImageFromFile')", "dict(type='PackSegInputs')"


def test_normalising_that_is_assumed_comes_last() -> None:
    pads = f"test_pipeline = [{LOAD}, dict(type='Pad', size=(9, 9)), {PACK}]\n"
    assert steps_of(pads).preprocess == (Pad((9, 9)), USUAL_NORMALISE)
    # Upstream's preprocessor without a mean leaves the grey levels as they are.
    preprocessor = "model = dict(data_preprocessor=dict(test_cfg=dict(size_divisor=4)))"
    plain = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr_to_rgb=False)
    assert steps_of(pads + preprocessor).preprocess == (Pad((9, 9)), plain, Pad(divisor=4, crop=True))


def test_a_message_names_the_file_once() -> None:
    config = parse_config(f"test_pipeline = [{LOAD}, dict(type=made_by_code())]", "c.pth")
    for given in (config, parse_config("test_pipeline = [3]")):
        with pytest.raises(CheckpointError) as caught:
            image_steps(Checkpoint(Path("c.pth"), "", "mmseg 1.x", {}, config=given))
        assert caught.value.message.startswith("c.pth:") and caught.value.message.count("c.pth") == 1


def test_no_direction_matters_where_nothing_is_mirrored() -> None:
    normal = "dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])"
    inner = f"[dict(type='Resize'), dict(type='RandomFlip'), {normal}]"
    for options, mirrored in (
        ("flip=False, flip_direction='vertical'", None),
        ("flip=True, flip_direction='horizontal'", True),
        ("flip=True", True),
    ):
        flips = f"dict(type='MultiScaleFlipAug', img_scale=(64, 32), {options}, transforms={inner})"
        found = steps_of(f"data = dict(test=dict(pipeline=[{LOAD}, {flips}]))").augmentation
        assert found == (Augmentation((Resize((64, 32), True),), flip=True) if mirrored else None)

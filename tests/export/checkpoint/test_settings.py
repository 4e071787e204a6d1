"""Inference mode, names, colours and labels come from the checkpoint's configuration, of 0.x or 1.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.pipeline import Usual
from denseport.export.checkpoint.settings import inference_of, palette_of, reduces_zero_label
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.media.overlay import default_palette

LABELS = """
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(reduce_zero_label=True, type='mmseg.LoadAnnotations'),
]
"""


def checkpoint(text: str, layout: str = "mmseg 1.x", **changes: Any) -> Checkpoint:
    return Checkpoint(Path("c.pth"), "", layout, {}, config=parse_config(text), **changes)


def with_test_cfg(text: str) -> Checkpoint:
    return checkpoint(f"model = dict(test_cfg={text})")


def test_inference_mode() -> None:
    assert inference_of(with_test_cfg("dict(mode='whole')")) == (Inference(), [])
    slide = with_test_cfg("dict(mode='slide', crop_size=(512, 480), stride=[341, 320])")
    assert inference_of(slide) == (Inference("slide", crop=(512, 480), stride=(341, 320)), [])
    early = "model = dict(test_cfg=None)\ntest_cfg = dict(mode='slide', crop_size=(9, 9), stride=(6, 6))"  # 0.x
    assert inference_of(checkpoint(early)) == (Inference("slide", (9, 9), (6, 6)), [])


@pytest.mark.parametrize("text", ["", "model = None", "test_cfg = dict(type='TestLoop')\nmodel = dict()"])
def test_what_no_test_cfg_says_is_assumed_with_a_warning(text: str) -> None:
    found, (warning,) = inference_of(checkpoint(text))
    assert found == Inference() and "assumed whole images" in warning
    windows = Inference("slide", (512, 480), (341, 320))
    found, (warning,) = inference_of(checkpoint(text), Usual(inference=windows))
    assert found == windows and "assumed windows of 480 x 512 pixels with a stride of 320 x 341" in warning
    assert inference_of(checkpoint(text, layout="Hugging Face")) == (Inference(), [])


@pytest.mark.parametrize(
    "text",
    [
        "dict(mode='slide')",
        "dict(mode='slide', crop_size=512, stride=341)",
        "dict(mode='slide', crop_size=(512, 512), stride=(0, 341))",
        "dict(mode='slide', crop_size=(64, 64), stride=(42, 65))",
        "dict(mode='tiles', crop_size=(64, 64), stride=(42, 42))",
        "dict(mode='whole', margin=8)",
        "dict(mode=None)",
        "dict(mode='whole', crop=3)",
        "'slide'",
        "[]",
    ],
)
def test_a_test_cfg_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^c\.pth: (the test path's )?model\.test_cfg"):
        inference_of(with_test_cfg(text))


def test_a_test_cfg_beside_the_model_counts_as_in_0x() -> None:
    outer = "test_cfg = dict(mode='slide', crop_size=(64, 48), stride=(32, 24))"
    assert inference_of(checkpoint(f"{outer}\nmodel = dict()"))[0] == Inference("slide", (64, 48), (32, 24))
    with pytest.raises(CheckpointError, match="both say how to test"):
        inference_of(checkpoint(f"{outer}\nmodel = dict(test_cfg=dict(mode='whole'))"))


def test_whether_masks_count_from_one() -> None:
    assert reduces_zero_label(checkpoint("", reduce_zero_label=True))
    assert not reduces_zero_label(checkpoint(LABELS, reduce_zero_label=False))
    assert reduces_zero_label(checkpoint(LABELS))
    assert not reduces_zero_label(checkpoint(LABELS.replace("True", "False")))
    assert not reduces_zero_label(checkpoint("train_pipeline = 3"))
    load = "{} = [dict(type='LoadAnnotations'{}), dict(type='Other', reduce_zero_label=True)]"
    training = load.format("train_pipeline", ", reduce_zero_label=True")
    assert reduces_zero_label(checkpoint(f"{training}\n{load.format('test_pipeline', '')}"))
    assert not reduces_zero_label(checkpoint(load.format("train_pipeline", "")))


def test_a_palette_of_another_length_is_replaced_by_distinct_colours() -> None:
    own = ((1, 2, 3), (4, 5, 6))
    assert palette_of(checkpoint("", palette=own), 2) == own
    for found in (palette_of(checkpoint("", palette=own), 20), palette_of(checkpoint(""), 20)):
        assert len(set(found)) == 20 and all(0 <= level <= 255 for colour in found for level in colour)


def test_a_single_class_has_black_behind_it_and_no_other_number_has() -> None:
    own, black = ((1, 2, 3),), (0, 0, 0)
    assert palette_of(checkpoint("", palette=own, classes=("road",)), 2) == (black, *own)
    two = (*own, (4, 5, 6))
    assert palette_of(checkpoint("", palette=two, classes=("road",)), 2) == (black, *default_palette(1))
    for classes, number in ((("road",), 3), (("road", "wall"), 2), (None, 2)):
        assert palette_of(checkpoint("", classes=classes), number) == tuple(default_palette(number))

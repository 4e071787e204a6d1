"""Pre-processing and inference mode come from the checkpoint's configuration, of 0.x or 1.x."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.settings import inference_of, palette_of, preprocess_of, reduces_zero_label
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import Normalise, Resize

PIPELINE_1 = """
model = dict(
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True, pad_val=0, size=(512, 512)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(1024, 240), type='Resize'),
    dict(reduce_zero_label=True, type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
"""
PIPELINE_0 = """
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1024, 240), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        dict(type='Normalize', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img']),
    ]),
]
"""
EXPECTED = (Resize((1024, 240), True), Normalise((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), True))
PUBLISHED = (Resize((2048, 512), True), Normalise((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True))


def checkpoint(text: str, **changes: Any) -> Checkpoint:
    return Checkpoint(Path("c.pth"), "", "mmseg 1.x", {}, config=parse_config(text), **changes)


def with_test_cfg(text: str) -> Checkpoint:
    return checkpoint(f"model = dict(test_cfg={text})")


@pytest.mark.parametrize("text", [PIPELINE_1, PIPELINE_0], ids=["1.x", "0.x"])
def test_the_test_pipeline_becomes_the_preprocessing(text: str) -> None:
    assert preprocess_of(checkpoint(text)) == (EXPECTED, [])


@pytest.mark.parametrize(
    ("text", "old", "new", "changed"),
    [
        (PIPELINE_1, "keep_ratio=True, ", "", {"keep_ratio": False}),  # mmcv 2's default
        (PIPELINE_1, "keep_ratio=True, ", "keep_ratio=False, ", {"keep_ratio": False}),
        (PIPELINE_1, "bgr_to_rgb=True", "bgr_to_rgb=False", {"bgr_to_rgb": False}),
        (PIPELINE_1, "bgr_to_rgb=True, ", "", {"bgr_to_rgb": False}),
        (PIPELINE_1, "bgr_to_rgb=True", "rgb_to_bgr=True", {}),  # exchanges the channels all the same
        (PIPELINE_1, "scale=", "interpolation='bilinear', scale_factor=None, scale=", {}),
        (PIPELINE_0, "'Resize', keep_ratio=True", "'Resize'", {}),  # mmseg 0.x's default
        (PIPELINE_0, "'Resize', keep_ratio=True", "'Resize', keep_ratio=False", {"keep_ratio": False}),
        (PIPELINE_0, ", to_rgb=True", "", {}),  # mmcv 1's default
        (PIPELINE_0, ", to_rgb=True", ", to_rgb=False", {"bgr_to_rgb": False}),
    ],
)
def test_upstreams_defaults_hold(text: str, old: str, new: str, changed: dict[str, Any]) -> None:
    assert old in text
    assert preprocess_of(checkpoint(text.replace(old, new))) == (
        tuple(
            dataclasses.replace(step, **{name: value for name, value in changed.items() if hasattr(step, name)})
            for step in EXPECTED
        ),
        [],
    )


def test_what_the_file_does_not_say_is_assumed_with_a_warning() -> None:
    preprocess, warnings = preprocess_of(checkpoint(""))
    assert preprocess == PUBLISHED
    assert len(warnings) == 2 and "resized: assumed keep-ratio 2048 x 512" in warnings[0] and "mean" in warnings[1]
    preprocess, warnings = preprocess_of(checkpoint(PIPELINE_1[PIPELINE_1.index("test_pipeline") :]))
    assert preprocess == (EXPECTED[0], PUBLISHED[1])
    assert len(warnings) == 1 and "normalised" in warnings[0]
    preprocess, warnings = preprocess_of(checkpoint(PIPELINE_1[: PIPELINE_1.index("test_pipeline")]))
    assert preprocess == (PUBLISHED[0], EXPECTED[1])
    assert len(warnings) == 1 and "resized" in warnings[0]


@pytest.mark.parametrize(
    ("text", "old", "new", "words"),
    [
        (PIPELINE_1, "'PackSegInputs'", "'CLAHE'", "step 'CLAHE' is not supported"),
        (PIPELINE_0, "'RandomFlip'", "'Pad', size_divisor=32", "step 'Pad' is not supported"),
        (PIPELINE_1, "scale=(1024, 240)", "scale_factor=0.5", "scale_factor=0.5 is not supported"),
        (PIPELINE_1, "scale=", "interpolation='bicubic', scale=", "interpolation='bicubic' is not supported"),
        (PIPELINE_1, "dict(type='LoadImageFromFile')", "dict(type='Resize', scale=(9, 9))", "Resize comes twice"),
        (PIPELINE_1, "pad_val=0", "test_cfg=dict(size_divisor=32)", "padding at test time is not supported"),
        (PIPELINE_1, "(1024, 240)", "(1024, 0)", "a side that is not in 1..32768 pixels"),
        (PIPELINE_1, "(1024, 240)", "1024", "1024 is not two numbers"),
        (PIPELINE_1, "(1024, 240)", "None", "None is not two numbers"),
        (PIPELINE_1, "(1024, 240)", "[(1024, 240), (512, 120)]", "cannot be used"),
        (PIPELINE_0, "img_scale=(1024, 240), ", "", "img_scale"),
        (PIPELINE_1, "[1.0, 2.0, 3.0]", "[1.0]", "not three numbers"),
        (PIPELINE_1, "[1.0, 2.0, 3.0]", "None", "cannot be used"),
        (PIPELINE_1, "[1.0, 2.0, 3.0]", "['nan', 1, 1]", "not three numbers"),
        (PIPELINE_1, "[4.0, 5.0, 6.0]", "[4.0, 0.0, 6.0]", "not three positive numbers"),
        (PIPELINE_1, "mean=[1.0, 2.0, 3.0], ", "", "mean"),
        (PIPELINE_1, "dict(type='LoadImageFromFile')", "3", "cannot be used"),
    ],
)
def test_a_pipeline_that_cannot_be_reproduced_is_refused(text: str, old: str, new: str, words: str) -> None:
    assert old in text
    with pytest.raises(CheckpointError) as caught:
        preprocess_of(checkpoint(text.replace(old, new)))
    assert str(caught.value).startswith("c.pth: ") and words in str(caught.value)


def test_inference_mode() -> None:
    assert inference_of(checkpoint("")) == Inference()
    assert inference_of(checkpoint("model = None")) == Inference()
    assert inference_of(with_test_cfg("dict(mode='whole')")) == Inference()
    slide = with_test_cfg("dict(mode='slide', crop_size=(512, 480), stride=[341, 320])")
    assert inference_of(slide) == Inference("slide", crop=(512, 480), stride=(341, 320))


@pytest.mark.parametrize(
    "text",
    [
        "dict(mode='slide')",
        "dict(mode='slide', crop_size=512, stride=341)",
        "dict(mode='slide', crop_size=(512, 512), stride=(0, 341))",
        "dict(mode='slide', crop_size=(64, 64), stride=(42, 65))",
        "dict(mode='tiles', crop_size=(64, 64), stride=(42, 42))",
        "dict(mode=None)",
    ],
)
def test_a_test_cfg_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^c\.pth: model\.test_cfg"):
        inference_of(with_test_cfg(text))


def test_whether_masks_count_from_one() -> None:
    assert reduces_zero_label(checkpoint("", reduce_zero_label=True))
    assert not reduces_zero_label(checkpoint(PIPELINE_1, reduce_zero_label=False))
    assert reduces_zero_label(checkpoint(PIPELINE_1))
    assert not reduces_zero_label(checkpoint(PIPELINE_0))
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

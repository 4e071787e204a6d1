"""The test path of a configuration, of 0.x or 1.x, becomes the bundle's steps, or is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.bundle.steps import (
    LARGEST_SIDE,
    Augmentation,
    Load,
    Normalise,
    Pad,
    Resize,
    ResizeBy,
    ResizeShortestEdge,
    ResizeToMultiple,
)

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


def steps(text: str) -> Preprocessing:
    return image_steps(checkpoint(text)).preprocess


def pipeline(*inner: str, more: str = "") -> str:
    """A 1.x configuration whose test data set has these steps."""
    load = "dict(type='LoadImageFromFile')"
    first = [] if any("LoadImageFromFile" in step for step in inner) else [load]
    text = ", ".join([*first, *inner, "dict(type='PackSegInputs')"])
    model = f"model = dict(data_preprocessor=dict({NORMALISE}{more}))"
    return f"test_dataloader = dict(dataset=dict(pipeline=[{text}]))\n{model}"


def old_pipeline(arguments: str, *inner: str) -> str:
    """A 0.x configuration."""
    text = ", ".join(
        [*inner, "dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])", "dict(type='Collect', keys=['img'])"]
    )
    load = "dict(type='LoadImageFromFile')"
    return (
        f"data = dict(test=dict(pipeline=[{load}, dict(type='MultiScaleFlipAug', {arguments}, transforms=[{text}])]))"
    )


UNPADDED = "dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape')"
NORMALISE = "mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True"
NORMALIZE = "dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])"
LAST = EXPECTED[1]
USUAL = Resize((256, 128), True)
PADDED = "dict(type='Pad', size=(60, 70))"
SCALED = "dict(type='Resize', scale=(256, 128), keep_ratio=True)"


@pytest.mark.parametrize("text", [PIPELINE_1, PIPELINE_0], ids=["1.x", "0.x"])
def test_the_test_pipeline_becomes_the_preprocessing(text: str) -> None:
    found = image_steps(checkpoint(text))
    assert (found.preprocess, found.augmentation, found.warnings) == (EXPECTED, None, ())


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ((), ()),
        (("dict(type='Resize', scale=96)",), (Resize((96, 96), False),)),
        (("dict(type='Resize', scale=[300, 200])",), (Resize((300, 200), False),)),
        (("dict(type='Resize', scale_factor=0.5)",), (ResizeBy((0.5, 0.5)),)),
        (("dict(type='Resize', scale_factor=(2, 0.5), keep_ratio=True)",), (ResizeBy((2, 0.5), True),)),
        (("dict(type='mmcv.transforms.processing.Resize', scale=(9, 8))",), (Resize((9, 8), False),)),
        (
            ("dict(type='Resize', scale=(9, 8), interpolation='lanczos')",),
            (Resize((9, 8), False, "lanczos"),),
        ),
        (
            ("dict(type='Resize', scale=(9, 8), interpolation='hamming', backend='pillow')",),
            (Resize((9, 8), False, "hamming", "pillow"),),
        ),
        (("dict(type='ResizeShortestEdge', scale=96, max_size=200)",), (ResizeShortestEdge(96, 200),)),
        (("dict(type='ResizeShortestEdge', scale=(96, 80), max_size=200)",), (ResizeShortestEdge(80, 200),)),
        ((SCALED, "dict(type='ResizeToMultiple')"), (USUAL, ResizeToMultiple((32, 32)))),
        (
            (SCALED, "dict(type='ResizeToMultiple', size_divisor=(32, 16), interpolation='area')"),
            (USUAL, ResizeToMultiple((32, 16), "area")),
        ),
        ((SCALED, SCALED), (USUAL, USUAL)),
        ((SCALED, "dict(type='Pad', size_divisor=32, pad_val=7)"), (USUAL, Pad(None, 32, value=(7.0,) * 3))),
        ((SCALED, "dict(type='Pad', size=(64, 48))"), (USUAL, Pad((64, 48)))),
        (
            (SCALED, "dict(type='Pad', pad_to_square=True, pad_val=dict(img=(1, 2, 3), seg=255))"),
            (USUAL, Pad(square=True, value=(1.0, 2.0, 3.0))),
        ),
        ((SCALED, "dict(type='Pad', size_divisor=8, padding_mode='edge')"), (USUAL, Pad(None, 8, mode="edge"))),
        ((SCALED, "dict(type='RandomFlip', prob=0.0)"), (USUAL,)),
        (("dict(type='LoadImageFromFile', to_float32=True, backend_args=None)",), (Load(float32=True),)),
        (("dict(type='LoadImageFromFile', color_type='grayscale')",), (Load(grey=True),)),
        (
            ("dict(type='LoadImageFromFile', color_type='color_ignore_orientation', imdecode_backend='pillow')",),
            (Load(orientation=False, library="pillow"),),
        ),
    ],
)
def test_each_step_is_carried_out(inner: tuple[str, ...], expected: Preprocessing) -> None:
    assert steps(pipeline(*inner)) == (*expected, LAST)


def test_the_preprocessor_pads_behind_the_normalisation_and_cuts_off_again() -> None:
    found = steps(pipeline(SCALED, more=", pad_val=9, test_cfg=dict(size_divisor=32)"))
    assert found == (USUAL, LAST, Pad(None, 32, value=(9.0,) * 3, crop=True))
    found = steps(pipeline(SCALED, more=", test_cfg=dict(size=(48, 64))"))  # height, width
    assert found == (USUAL, LAST, Pad((64, 48), crop=True))


def test_normalising_in_the_pipeline() -> None:
    """Channels that are exchanged twice keep their order; the numbers go with their channels."""
    text = pipeline(SCALED, NORMALIZE, "dict(type='Pad', size=(9, 9), pad_val=2)")
    for swap, expected in (
        ("False", (USUAL, Normalise((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), True), Pad((9, 9), value=(2.0,) * 3))),
        ("True", (USUAL, Normalise((3.0, 2.0, 1.0), (6.0, 5.0, 4.0), False), Pad((9, 9), value=(2.0,) * 3))),
    ):
        assert steps(text.replace(NORMALISE, f"mean=None, bgr_to_rgb={swap}")) == expected


@pytest.mark.parametrize(
    ("arguments", "inner", "expected", "augmentation"),
    [
        (
            "img_scale=(256, 128), img_ratios=[0.5], flip=False",
            ("dict(type='Resize')",),
            (Resize((128, 64), True),),
            None,
        ),
        (
            "img_scale=(256, 128), img_ratios=[0.5, 1.75], flip=True",
            ("dict(type='Resize')", "dict(type='RandomFlip')"),
            (USUAL,),
            Augmentation((Resize((128, 64), True), Resize((448, 224), True)), True),
        ),
        (
            "img_scale=(256, 128), flip=True",
            ("dict(type='Resize', keep_ratio=False)", "dict(type='RandomFlip')"),
            (Resize((256, 128), False),),
            Augmentation((Resize((256, 128), False),), True),
        ),
        (
            "img_scale=(256, 128), img_ratios=[0.5, 1.0]",
            ("dict(type='Resize', min_size=90)",),
            (ResizeShortestEdge(128, LARGEST_SIDE),),
            Augmentation((ResizeShortestEdge(90, LARGEST_SIDE), ResizeShortestEdge(128, LARGEST_SIDE)), False),
        ),
        (
            "img_scale=None, img_ratios=[0.5]",
            ("dict(type='Resize')",),
            (ResizeBy((0.5, 0.5), True, True),),
            None,
        ),
        (
            "img_scale=[(256, 128), (512, 256)]",
            ("dict(type='Resize')",),
            (USUAL,),
            Augmentation((USUAL, Resize((512, 256), True)), False),
        ),
        (
            "img_scale=(256, 128)",
            ("dict(type='Resize')", "dict(type='Pad', size=(60, 70))"),
            (USUAL, Pad((70, 60), crop=True)),
            None,
        ),
    ],
)
def test_0x_scales_ratios_and_flips(
    arguments: str, inner: tuple[str, ...], expected: Preprocessing, augmentation: Augmentation | None
) -> None:
    found = image_steps(checkpoint(old_pipeline(arguments, *inner)))
    assert (found.preprocess, found.augmentation) == ((*expected, LAST), augmentation)


@pytest.mark.parametrize(
    ("arguments", "inner", "words"),
    [
        ("img_scale=(256, 128), flip=True", ("dict(type='Resize')",), "flip=True without a RandomFlip"),
        ("img_scale=(256, 128)", ("dict(type='Resize')",) * 2, "resizes an image that was resized"),
        (
            "img_scale=None, img_ratios=[1.0]",
            (PADDED, "dict(type='Resize')"),
            "resizes an image that was resized or pad",
        ),
        (
            "img_scale=None, img_ratios=[1.0]",
            ("dict(type='Resize', min_size=9)",),
            "min_size, and MultiScaleFlipAug no",
        ),
        ("img_scale=(9, 9), flip=True", (PADDED, "dict(type='RandomFlip')"), "mirrors an image that was padded"),
        (
            "img_scale=(9, 9)",
            ("dict(type='ResizeToMultiple')", "dict(type='Resize')"),
            "resizes after ResizeToMultiple",
        ),
    ],
)
def test_0x_in_an_order_that_has_no_steps_is_refused(arguments: str, inner: tuple[str, ...], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        image_steps(checkpoint(old_pipeline(arguments, *inner)))


def test_a_resize_before_0x_scales_stays_the_first() -> None:
    """A single view is resized twice; of several, the place of the second resize cannot be taken."""
    outer = "dict(type='Resize', img_scale=(90, 90)), dict(type='MultiScaleFlipAug'"
    text = old_pipeline("img_scale=(64, 64), img_ratios=0.5", "dict(type='Resize')").replace(
        "dict(type='MultiScaleFlipAug'", outer
    )
    assert steps(text) == (Resize((90, 90), True), Resize((32, 32), True), LAST)
    with pytest.raises(CheckpointError, match="resizes an image that was resized"):
        steps(text.replace("img_ratios=0.5", "img_ratios=[0.5, 1.0]"))


def test_what_value_is_padded() -> None:
    """A float is the first channel's alone, unless there is one; pads before Normalize keep the order of the image."""
    pad, grey = (
        "dict(type='Pad', size=(9, 9), pad_val=dict(img=1.5))",
        "dict(type='LoadImageFromFile', color_type='grayscale')",
    )
    assert steps(pipeline(pad)) == (Pad((9, 9), value=(1.5, 0.0, 0.0)), LAST)
    assert steps(pipeline(grey, pad)) == (Load(grey=True), Pad((9, 9), value=(1.5,) * 3), LAST)
    text = pipeline(pad, NORMALIZE, pad).replace(f"dict({NORMALISE})", "dict(mean=None, bgr_to_rgb=True)")
    first, _, last = steps(text)
    assert (first, last) == (Pad((9, 9), value=(1.5, 0.0, 0.0)), Pad((9, 9), value=(0.0, 0.0, 1.5)))


def test_the_evaluations_pipeline_counts_and_a_conflict_is_said() -> None:
    text = pipeline(SCALED) + "\n" + PIPELINE_1[PIPELINE_1.index("test_pipeline") :]
    found = image_steps(checkpoint(text))
    assert found.preprocess == (USUAL, LAST)
    (warning,) = found.warnings
    assert "test_pipeline differs from the pipeline of test_dataloader.dataset" in warning
    found = image_steps(checkpoint(pipeline(SCALED).replace("test_dataloader", "val_dataloader")))
    assert found.preprocess == (USUAL, LAST) and "took that of val_dataloader.dataset" in found.warnings[0]


def test_colours_before_a_network_of_one_channel_are_said() -> None:
    one = {"backbone.patch_embed.projection.weight": torch.zeros(8, 1, 16, 16)}
    grey = "dict(type='LoadImageFromFile', color_type='grayscale')"
    for inner, count in (((SCALED,), 1), ((grey, SCALED), 0)):
        config = parse_config(pipeline(*inner).replace(NORMALISE, "mean=[5], std=[2]"))
        found = image_steps(Checkpoint(Path("c.pth"), "", "mmseg 1.x", one, config=config))
        assert [step for step in found.preprocess if isinstance(step, Normalise)] == [Normalise((5.0,), (2.0,), False)]
        assert sum("images are made grey" in warning for warning in found.warnings) == count


def test_wrapped_data_sets() -> None:
    """Of several tested data sets the pipelines must agree."""
    one, other = f"dict(pipeline=[{SCALED}])", "dict(pipeline=[dict(type='Resize', scale=9)])"
    text = "test_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[{}, dict(dataset={})]))"
    assert steps(text.format(one, one))[0] == USUAL
    with pytest.raises(CheckpointError, match="several data sets whose pipelines differ"):
        steps(text.format(one, other))


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
    assert steps(text.replace(old, new)) == (
        tuple(
            dataclasses.replace(step, **{name: value for name, value in changed.items() if hasattr(step, name)})
            for step in EXPECTED
        )
    )


def test_what_the_file_does_not_say_is_assumed_with_a_warning() -> None:
    found = image_steps(checkpoint(""))
    preprocess, warnings = found.preprocess, found.warnings
    assert preprocess == PUBLISHED
    assert len(warnings) == 2 and "resized: assumed keep-ratio 2048 x 512" in warnings[0] and "mean" in warnings[1]
    found = image_steps(checkpoint(PIPELINE_1[PIPELINE_1.index("test_pipeline") :]))
    preprocess, warnings = found.preprocess, found.warnings
    assert preprocess == (EXPECTED[0], PUBLISHED[1])
    assert len(warnings) == 1 and "normalised" in warnings[0]
    found = image_steps(checkpoint(PIPELINE_1[: PIPELINE_1.index("test_pipeline")]))
    preprocess, warnings = found.preprocess, found.warnings
    assert preprocess == (PUBLISHED[0], EXPECTED[1])
    assert len(warnings) == 1 and "resized" in warnings[0]


@pytest.mark.parametrize(
    ("text", "old", "new", "words"),
    [
        (PIPELINE_1, "'PackSegInputs'", "'CLAHE'", "step 'CLAHE' is not supported"),
        (PIPELINE_1, "(1024, 240)", "(1024, 0)", "a side that is not in 1..32768 pixels"),
        (PIPELINE_1, "(1024, 240)", "None", "neither scale nor scale_factor"),
        (PIPELINE_1, "(1024, 240)", "[(1024, 240), (512, 120)]", "the test path's Resize: "),
        (PIPELINE_1, "keep_ratio=True", "keep_ratio='no'", "Resize has keep_ratio='no', which is not True or False"),
        (PIPELINE_1, "'PackSegInputs'", "'Pad', size_divisor=1.5", "Pad has size_divisor=1.5"),
        (
            PIPELINE_1,
            "'PackSegInputs'",
            "'ResizeShortestEdge', scale='a', max_size=9",
            "ResizeShortestEdge: 'a' is not",
        ),
        (PIPELINE_1, "pad_val=0", "test_cfg=dict(size_divisor='32')", "test_cfg has size_divisor='32'"),
        (PIPELINE_1, "pad_val=0", "test_cfg='pad'", "data_preprocessor has test_cfg='pad'"),
        (PIPELINE_0, "img_scale=(1024, 240), ", "", "img_scale"),
        (PIPELINE_1, "[1.0, 2.0, 3.0]", "['nan', 1, 1]", "['nan', 1, 1], which is not a number or a list"),
        (PIPELINE_1, "[4.0, 5.0, 6.0]", "[4.0, 0.0, 6.0]", "not as many positive numbers"),
        (PIPELINE_1, "dict(type='LoadImageFromFile')", "3", "the step 3, which is not a dict"),
        (PIPELINE_1, "'LoadImageFromFile'", "'LoadImageFromFile', color_type='unchanged'", "color_type='unchanged'"),
        (PIPELINE_1, "'LoadImageFromFile'", "'LoadImageFromFile', imdecode_backend='turbojpeg'", "'turbojpeg'"),
        (PIPELINE_1, "'LoadImageFromFile'", "'LoadImageFromFile', gamma=2", "LoadImageFromFile: the key 'gamma'"),
        (PIPELINE_1, "keep_ratio=True, ", "keep_ratio=True, antialias=True, ", "Resize: the key 'antialias'"),
        (PIPELINE_1, "keep_ratio=True, ", "ratio_range=(0.5, 2.0), ", "ratio_range=(0.5, 2.0)"),
        (PIPELINE_1, "keep_ratio=True, ", "interpolation='box', ", "interpolation 'box' is not one of"),
        (PIPELINE_1, "keep_ratio=True, ", "backend='turbojpeg', ", "backend='turbojpeg'"),
        (PIPELINE_1, "'PackSegInputs'", "'RandomFlip', prob=0.5", "RandomFlip mirrors images at random"),
        (PIPELINE_1, "'PackSegInputs'", "'TestTimeAug'", "is a TestTimeAug"),
        (PIPELINE_1, "'PackSegInputs'", "'Pad', size=(9, 9), size_divisor=3", "has a size, or a divisor"),
        (PIPELINE_1, "'PackSegInputs'", "'Normalize', mean=[1], std=[1]", "normalised twice"),
        (PIPELINE_1, "pad_val=0", "channel_order='rgb'", "data_preprocessor: the key 'channel_order'"),
        (PIPELINE_1, "pad_val=0", "test_cfg=dict(pad='left')", "test_cfg: the key 'pad'"),
        (PIPELINE_1, "pad_val=0", "type='ImgDataPreprocessor'", "is a 'ImgDataPreprocessor'"),
        (PIPELINE_0, "flip=False", "flip=True, flip_direction='vertical'", "flip_direction='vertical'"),
        (PIPELINE_0, "flip=False", "zoom=2", "MultiScaleFlipAug: the key 'zoom'"),
        (PIPELINE_0, "img_scale=(1024, 240)", "img_scale=None", "neither img_scale nor img_ratios"),
        (PIPELINE_0, "keep_ratio=True", "min_size=640, ratio_range=(1, 2)", "ratio_range"),
        (
            PIPELINE_1,
            "'PackSegInputs'",
            f"'Pad', size=(9, 9)), {SCALED}, {UNPADDED}",
            "PackSegInputs leaves pad_shape out",
        ),
    ],
)
def test_a_pipeline_that_cannot_be_reproduced_is_refused(text: str, old: str, new: str, words: str) -> None:
    assert old in text
    with pytest.raises(CheckpointError) as caught:
        image_steps(checkpoint(text.replace(old, new)))
    assert str(caught.value).startswith("c.pth: ") and words in str(caught.value)

"""Keys that no prediction uses, two sets of weights, heads of one output; every other misfit is in test_recognise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ASSETS
from torch import Tensor

from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.settings import class_names, palette_of
from denseport.export.checkpoint.weights import choose_weights, load_model
from denseport.export.errors import CheckpointError


@pytest.fixture(scope="module")
def read_once() -> Checkpoint:
    return read_checkpoint(ASSETS / "dpt_tiny_street.pth")


@pytest.fixture
def source(read_once: Checkpoint) -> Checkpoint:
    """The sample, its weights in a dict that the test may change."""
    return dataclasses.replace(read_once, state_dict=dict(read_once.state_dict))


def loaded(checkpoint: Checkpoint, **choice: Any) -> dict[str, Tensor]:
    return load_model(checkpoint, recognise(checkpoint).spec, **choice).state_dict()


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["decode_head.loss_decode.class_weight"], "buffers of losses"),
        (
            ["decode_head.loss_decode.0.class_weight", "decode_head.loss_decode.1.w"],
            "losses, which no prediction uses: ",
        ),
        (["head.weight", "head.bias"], "a classifier"),
        (["backbone.fc.weight"], "a classifier"),
        (["cls_head.fc.weight"], "a classifier"),
        (["identity_head.conv.weight", "identity_head.0.bn.bias", "edge_head.conv.bias"], "and 2 more."),
        (["auxiliary_head.conv_seg.weight", "auxiliary_head.1.convs.0.bn.num_batches_tracked"], None),
        (["auxiliary_head.0.loss_decode.class_weight"], None),
    ],
)
def test_what_no_prediction_uses_is_left_out_and_named(source: Checkpoint, keys: list[str], words: str | None) -> None:
    expected = loaded(source)
    source.state_dict.update({key: torch.ones(3) for key in keys})
    warnings = choose_weights(source)[1]
    assert len(warnings) == (words is not None)
    assert words is None or (words in warnings[0] and keys[0] in warnings[0])
    found = loaded(source)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_rewrites_of_dpt_are_made_unless_told_otherwise(source: Checkpoint) -> None:
    spec = recognise(source).spec
    for options, expected in (({}, True), ({"rewrite": False}, False)):
        head: Any = load_model(source, spec, **options).decode_head
        assert head.reassemble_blocks.rewrite is expected


@pytest.mark.parametrize("key", ["ema_something", "teacher.backbone.cls_token", "decode_head_2.conv.weight", "neck.x"])
def test_other_keys_are_refused(source: Checkpoint, key: str) -> None:
    source.state_dict[key] = torch.ones(3)
    assert f"unexpected {key} (3,)" in refusal(lambda: loaded(source))


def test_counters_may_be_missing_or_of_any_type(source: Checkpoint) -> None:
    expected = loaded(source)
    counters = [key for key in source.state_dict if key.endswith("num_batches_tracked")]
    assert len(counters) > 2
    for key in counters[1:]:
        del source.state_dict[key]
    source.state_dict[counters[0]] = torch.tensor(7.0)
    found = loaded(source)
    assert found.keys() == expected.keys() and found[counters[0]] == 7 and found[counters[1]] == 0
    assert choose_weights(source)[1] == []


def test_attention_without_any_bias_has_zeros_and_with_some_is_damaged(source: Checkpoint) -> None:
    biases = [key for key in source.state_dict if key.endswith(("in_proj_bias", "attn.out_proj.bias"))]
    for key in biases[1:]:
        del source.state_dict[key]
    assert f"missing {biases[1]}" in refusal(lambda: loaded(source))
    del source.state_dict[biases[0]]
    found = loaded(source)
    assert len(biases) == 8 and not any(found[key].any() for key in biases)


KEY = "decode_head.project.conv.weight"


def mmcv(source: Checkpoint, run: dict[str, Any]) -> Checkpoint:
    """With what the EMAHook of 0.x keeps: parameters under other names. They are made one larger."""
    parameters = {key: value for key, value in source.state_dict.items() if "running" not in key and "num_b" not in key}
    averages = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in parameters.items()}
    return dataclasses.replace(source, state_dict=source.state_dict | averages, config={**source.config, **run})


def mmengine(source: Checkpoint, **more: Tensor) -> Checkpoint:
    others = {key: value + 1 for key, value in source.state_dict.items()}
    return dataclasses.replace(source, ema_state_dict=others | more)


ITERATIONS, EPOCHS = (
    {"runner": {"type": "IterBasedRunner"}, "train_cfg": None},
    {"train_cfg": {"type": "EpochBasedTrainLoop"}},
)


@pytest.mark.parametrize(
    ("make", "averaged", "words"),
    [
        (
            lambda source: mmcv(source, ITERATIONS),
            1,
            "ema_* keys. As by mmsegmentation, the first are taken; they are not",
        ),
        (
            lambda source: mmengine(source, steps=torch.tensor(9)),
            0,
            "they are averaged over the training (EMA); --no-ema",
        ),
    ],
    ids=["0.x", "1.x"],
)
def test_of_two_sets_the_plain_one_is_taken_unless_a_choice_is_made(
    source: Checkpoint, make: Callable[[Checkpoint], Checkpoint], averaged: int, words: str
) -> None:
    plain, both = loaded(source)[KEY], make(source)
    (warning,) = choose_weights(both)[1]
    assert words in warning
    assert torch.equal(loaded(both)[KEY], plain)
    assert torch.equal(loaded(both, ema=True)[KEY], plain + averaged)
    assert torch.equal(loaded(both, ema=False)[KEY], plain + (1 - averaged))
    assert choose_weights(both, True)[1] == choose_weights(both, False)[1] == []


@pytest.mark.parametrize("ema", [True, False])
def test_a_choice_that_the_file_does_not_offer_is_refused(source: Checkpoint, ema: bool) -> None:
    assert "has one set of weights" in refusal(lambda: choose_weights(source, ema))
    for unsaid in (mmcv(source, {"train_cfg": None} | EPOCHS), mmengine(source)):
        assert "does not say which of its two sets" in refusal(lambda unsaid=unsaid: choose_weights(unsaid, ema))
        assert "which the file does not say" in choose_weights(unsaid)[1][0]
        assert torch.equal(loaded(unsaid)[KEY], source.state_dict[KEY])


def binary(source: Checkpoint, **head: Any) -> Checkpoint:
    weights = {key: value[:1] if "conv_seg" in key else value for key, value in source.state_dict.items()}
    model = source.config["model"]
    config = {"model": {**model, "decode_head": {**model["decode_head"], "out_channels": 1, **head}}}
    return dataclasses.replace(source, state_dict=weights, config=config)


@pytest.mark.parametrize(
    ("head", "threshold"),
    [
        ({"num_classes": 2, "threshold": 0.75}, 0.75),
        ({"num_classes": 1, "threshold": 0.01}, 0.01),
        ({"num_classes": 1, "out_channels": None}, 0.3),
        ({"num_classes": 2, "threshold": None}, 0.3),
    ],
)
def test_one_output_becomes_two_classes(source: Checkpoint, head: dict[str, Any], threshold: float) -> None:
    checkpoint = binary(source, **head)
    recognised = recognise(checkpoint)
    assert (recognised.spec.num_classes, recognised.spec.head.threshold) == (2, threshold)
    assert [w for w in recognised.warnings if "assumed mmsegmentation's, 0.3" in w] or "threshold" in head
    model = load_model(checkpoint, recognised.spec)
    assert model.decode_head.conv_seg.bias[0] == pytest.approx(math.log(threshold / (1 - threshold)), rel=1e-6)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 3
    first, z = model(image)[0]
    assert (first == first[0, 0]).all() and z.std() > 0
    assert torch.equal(z > first, torch.sigmoid(z.double()) > threshold)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"num_classes": 7}, "one output cannot tell 7 classes apart"),
        ({"num_classes": 2, "threshold": 0}, "threshold 0.0 is not between 0 and 1"),
        ({"num_classes": 2, "threshold": "0.5"}, "model.decode_head.threshold '0.5' is not a number"),
        ({"num_classes": 2, "out_channels": 2}, "has 1 outputs, and the configuration asks for 2"),
    ],
)
def test_a_head_of_one_output_that_cannot_be(source: Checkpoint, head: dict[str, Any], words: str) -> None:
    message = refusal(lambda: recognise(binary(source, **head)))
    assert words in message and "model settings cannot be used" in message


def test_names_and_colours_of_a_binary_head(source: Checkpoint) -> None:
    one = dataclasses.replace(source, classes=("crack",), palette=((255, 0, 0),))
    names, (warning,) = class_names(one, 2, is_binary=True)
    assert names == ("background", "crack") and "'crack'" in warning and "background" in warning
    assert palette_of(one, 2) == ((0, 0, 0), (255, 0, 0))
    assert palette_of(dataclasses.replace(one, palette=None), 2)[0] == (0, 0, 0)
    assert "names 1 classes" in refusal(lambda: class_names(one, 2))
    two = dataclasses.replace(one, classes=("road", "crack"), palette=((1, 1, 1), (2, 2, 2)))
    assert class_names(two, 2, is_binary=True) == (("road", "crack"), []) and palette_of(two, 2) == two.palette


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("decode_head.0.conv_seg.weight", "a cascade of decode heads"),
        ("decode_head.bottleneck.gn.weight", "another normalisation than BatchNorm"),
        ("decode_head.project.conv.bias", "its head has no BatchNorm"),
        ("neck.convs.0.bn.weight", "its neck is normalised"),
        ("backbone.ln_pre.weight", "(pre_norm)"),
        ("backbone.patch_embed.norm.weight", "(patch_norm)"),
        ("backbone.layers.0.ffn.layers.2.weight", "more than two layers"),
    ],
)
def test_other_networks_are_refused_for_what_they_are(source: Checkpoint, key: str, words: str) -> None:
    source.state_dict[key] = torch.ones(3)
    message = refusal(lambda: recognise(source))
    assert words in message and key in message


@pytest.mark.parametrize("name", ["beit", "mae"])
def test_other_backbones_are_refused_by_name(shared: Path, name: str) -> None:
    checkpoint = read_checkpoint(shared / f"oracle_families/mmseg_{name}_upernet/checkpoint.pth")
    message = refusal(lambda: recognise(checkpoint))
    assert "relative position bias" in message and f"{'BEiT' if name == 'beit' else 'MAE'} + UPerHead" in message
    bare = dataclasses.replace(checkpoint, config={})
    assert "BEiT's or MAE's" in refusal(lambda: recognise(bare))


def test_four_channels_are_refused(source: Checkpoint) -> None:
    source.state_dict["backbone.patch_embed.projection.weight"] = torch.zeros(96, 4, 16, 16)
    assert "images of 4 channels; 3 (colour) and 1 (grey)" in refusal(lambda: recognise(source))
    source.state_dict["backbone.patch_embed.projection.weight"] = torch.zeros(96, 3, 16, 8)
    assert "patches of 8 x 16 pixels are not square" in refusal(lambda: recognise(source))

"""A checkpoint's network is read off its keys and configuration; what is not supported is refused in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ASSETS
from torch import Tensor

from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.recognise import READERS, recognise
from denseport.export.checkpoint.settings import class_names, inference_of
from denseport.export.checkpoint.weights import load_model
from denseport.export.errors import CheckpointError
from denseport.export.models import presets
from denseport.export.models.head_spec import DPTHeadSpec, UPerHeadSpec
from denseport.export.models.presets import PRESETS, Preset
from denseport.export.models.segmentor import build
from denseport.export.models.spec import ModelSpec, NeckSpec, ViTSpec


def vit(dims: int, layers: int, heads: int, **changes: Any) -> ViTSpec:
    spec = ViTSpec(dims, layers, heads, 4 * dims, (0, 1, 2, 3), (4, 4), norm_eps=1e-5)
    return dataclasses.replace(spec, **changes)


DPT_12 = DPTHeadSpec(12, (6, 8, 12, 16))

# From the table in oracle/README.md.
VARIANTS = {
    "tiny_dpt_project": ModelSpec(vit(32, 4, 4), None, DPTHeadSpec(16, (8, 12, 20, 24), "project"), 7),
    "tiny_dpt_add": ModelSpec(vit(24, 4, 3), None, dataclasses.replace(DPT_12, readout="add"), 7),
    "tiny_dpt_ignore": ModelSpec(vit(24, 4, 3), None, dataclasses.replace(DPT_12, readout="ignore"), 7),
    "tiny_dpt_l_project": ModelSpec(
        vit(24, 8, 3, mlp_dims=48, out_indices=(1, 3, 5, 7), pos_grid=(6, 6)), None, DPTHeadSpec(12, (6, 12, 24, 24)), 7
    ),
    "tiny_upernet_noneck": ModelSpec(vit(24, 4, 3, norm_eps=1e-6), None, UPerHeadSpec(12), 7),
    "tiny_upernet_mln": ModelSpec(vit(24, 4, 3, norm_eps=1e-6), NeckSpec(24), UPerHeadSpec(12), 7),
    "tiny_upernet_ln_mln": ModelSpec(vit(32, 4, 4, norm_eps=1e-6, final_norm=True), NeckSpec(32), UPerHeadSpec(16), 7),
    "runner_real_dpt": ModelSpec(vit(16, 4, 2, patch_bias=False), None, DPTHeadSpec(8, (4, 4, 8, 8)), 7),
}


def bare(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights as a file without any metadata."""
    return Checkpoint(Path("mine.pth"), checkpoint.sha256, "weights only", checkpoint.state_dict)


@cache
def weights_of(preset: Preset) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build(preset.spec).state_dict()


def of_preset(preset: Preset, **changes: Any) -> Checkpoint:
    """A checkpoint with a published model's keys and shapes, and weights that need no memory."""
    weights = dict(weights_of(preset))
    weights["auxiliary_head.conv_seg.weight"] = torch.empty(150, 256, 1, 1, device="meta")
    return dataclasses.replace(Checkpoint(Path("mine.pth"), "0" * 64, "weights only", weights), **changes)


def with_model(checkpoint: Checkpoint, part: str, **settings: Any) -> Checkpoint:
    model = checkpoint.config["model"]
    return dataclasses.replace(
        checkpoint, config={**checkpoint.config, "model": {**model, part: {**(model.get(part) or {}), **settings}}}
    )


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    return str(caught.value)


@pytest.fixture(scope="module")
def read_once() -> Checkpoint:
    return read_checkpoint(ASSETS / "dpt_tiny_street.pth")


@pytest.fixture
def sample_checkpoint(read_once: Checkpoint) -> Checkpoint:
    """The sample, its weights in a dict that the test may change."""
    return dataclasses.replace(read_once, state_dict=dict(read_once.state_dict))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_spec_is_what_the_oracle_built(oracle: Path, name: str) -> None:
    recognised = recognise(read_checkpoint(oracle / f"{name}.pth"))
    assert recognised.spec == VARIANTS[name]
    assert recognised.warnings == ()
    # Among them runner_real_dpt, whose experiment has the name of a published configuration.
    assert (recognised.preset, recognised.recognised_by) == (None, "")


@pytest.mark.parametrize("name", VARIANTS)
def test_without_a_configuration_each_assumption_is_a_warning(oracle: Path, name: str) -> None:
    recognised, truth = recognise(bare(read_checkpoint(oracle / f"{name}.pth"))), VARIANTS[name]
    found, wanted = recognised.spec.backbone, truth.backbone
    assumed = {"num_heads": 1, "out_indices": wanted.out_indices, "norm_eps": wanted.norm_eps}
    assert found == dataclasses.replace(wanted, **assumed)
    warnings = "\n".join(recognised.warnings)
    assert ("neck.scales" in warnings) == (truth.neck is not None)
    for words in (
        "no configuration of",
        "decode_head.align_corners",
        "attention heads cannot be seen",
        "Which layers feed the head",
        "LayerNorm's eps",
        "--preset",
    ):
        assert words in warnings
    hidden_readout = isinstance(truth.head, DPTHeadSpec) and truth.head.readout != "project"
    assert ("class token" in warnings) == hidden_readout
    assert len(recognised.warnings) == (5 if hidden_readout else 4)


def test_what_a_configuration_leaves_out_has_upstreams_default() -> None:
    """12 heads and torch's eps, although the published model of these sizes has 6 and 1e-6."""
    preset = PRESETS["upernet_deit-s16_160k"]
    backbone = {"out_indices": (-10, -7, -4, -1), "img_size": (256, 1024)}  # height, width
    recognised = recognise(of_preset(preset, config={"model": {"backbone": backbone, "decode_head": {}}}))
    expected = dataclasses.replace(preset.spec.backbone, num_heads=12, norm_eps=1e-5, pos_grid=(16, 64))
    assert recognised.spec.backbone == expected and recognised.warnings == ()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_a_published_model_is_recognised_by_hash_and_by_name(preset: Preset) -> None:
    released = f"{preset.released}_20210101_000000-x.pth"
    cases = [
        (of_preset(preset, path=Path(released)), "name"),
        (of_preset(preset, experiment=f"{preset.config}_20230101"), "name"),
    ]
    cases.append((of_preset(preset, sha256=preset.sha256_start + "0" * 56), "hash"))
    for checkpoint, how in cases:
        recognised = recognise(checkpoint)
        assert (recognised.preset, recognised.spec, recognised.warnings) == (preset, preset.spec, ())
        assert how in recognised.recognised_by
    assert recognise(of_preset(preset), preset).recognised_by == "the command line"
    assert recognise(of_preset(preset)).preset is None


def test_another_network_under_a_published_name_is_not_recognised(oracle: Path) -> None:
    preset = PRESETS["dpt_vit-b16_160k"]
    checkpoint = bare(read_checkpoint(oracle / "tiny_dpt_add.pth"))
    recognised = recognise(dataclasses.replace(checkpoint, experiment=preset.config))
    assert recognised.preset is None and recognised.recognised_by == ""
    assert recognised.warnings == recognise(checkpoint).warnings


def test_a_wrong_preset_is_refused_with_the_differences(oracle: Path) -> None:
    checkpoint = read_checkpoint(oracle / "tiny_dpt_project.pth")
    for known in (checkpoint, bare(checkpoint)):
        message = refusal(lambda known=known: recognise(known, PRESETS["dpt_vit-b16_160k"]))
        for words in (
            "not dpt_vit-b16_160k",
            "backbone.embed_dims is 32, published 768",
            "num_classes is 7",
            "--preset",
        ):
            assert words in message
    message = refusal(lambda: recognise(checkpoint, PRESETS["upernet_deit-s16_mln_160k"]))
    assert "head" in message and "neck" in message


def test_the_patch_bias_that_tools_lose_does_not_count_as_a_difference() -> None:
    preset = PRESETS["dpt_vit-b16_160k"]
    checkpoint = of_preset(preset)
    del checkpoint.state_dict["backbone.patch_embed.projection.bias"]
    recognised = recognise(checkpoint, preset)
    assert recognised.preset is preset and not recognised.spec.backbone.patch_bias


def test_the_table_of_presets_decides(monkeypatch: pytest.MonkeyPatch, oracle: Path) -> None:
    """The oracle's models stand for released ones."""
    checkpoint = read_checkpoint(oracle / "tiny_dpt_add.pth")
    preset = dataclasses.replace(
        PRESETS["dpt_vit-b16_160k"],
        name="tiny_160k",
        spec=VARIANTS["tiny_dpt_add"],
        file=f"tiny-{checkpoint.sha256[:8]}.pth",
    )
    monkeypatch.setattr(presets, "PRESETS", {"tiny_160k": preset})
    for known in (checkpoint, bare(checkpoint)):  # with its configuration, and without, from the preset's
        recognised = recognise(known)
        assert (recognised.preset, recognised.spec, recognised.warnings) == (preset, preset.spec, ())


def test_another_architecture_is_refused_with_what_it_has(sample_checkpoint: Checkpoint) -> None:
    psanet = {
        "backbone.conv1.weight": torch.zeros(64, 3, 7, 7),
        "decode_head.attention.0.conv.weight": torch.zeros(256, 2048, 1, 1),
        "decode_head.conv_seg.weight": torch.zeros(150, 256, 1, 1),
    }
    config = {"model": {"backbone": {"type": "ResNet"}, "decode_head": {"type": "PSAHead"}}}
    checkpoint = dataclasses.replace(sample_checkpoint, state_dict=psanet, config=config)
    message = refusal(lambda: recognise(checkpoint))
    for words in ("not a network that Denseport knows", "ResNet + PSAHead", "denseport models"):
        assert words in message
    assert all(f"{reader.kinds['decode_head']}: " in message for reader in READERS)  # each with its reason
    headless = {k: v for k, v in sample_checkpoint.state_dict.items() if not k.startswith("decode_head.")}
    message = refusal(lambda: recognise(dataclasses.replace(sample_checkpoint, state_dict=headless)))
    assert "its head is not one that Denseport knows" in message


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("decode_head", {"expand_channels": True}),
        ("decode_head", {"act_cfg": {"type": "GELU"}}),
        ("decode_head", {"norm_cfg": {"type": "GN", "num_groups": 4}}),
        ("decode_head", {"norm_cfg": {"type": "BN", "track_running_stats": False}}),
        ("decode_head", {"norm_cfg": None}),
        ("decode_head", {"conv_cfg": {"type": "DCN"}}),
        ("decode_head", {"input_transform": "resize_concat"}),
        ("backbone", {"patch_pad": "same"}),
        ("backbone", {"patch_norm": True}),
        ("backbone", {"num_fcs": 3}),
        ("backbone", {"act_cfg": {"type": "GELU", "approximate": "tanh"}}),
        ("backbone", {"pre_norm": True}),
        ("backbone", {"out_origin": True}),
        ("backbone", {"act_cfg": {"type": "ReLU"}}),
    ],
    ids=str,
)
def test_an_option_that_changes_the_arithmetic_is_refused(
    sample_checkpoint: Checkpoint, part: str, settings: dict[str, Any]
) -> None:
    message = refusal(lambda: recognise(with_model(sample_checkpoint, part, **settings)))
    assert f"model.{part}.{next(iter(settings))}" in message and "is supported" in message


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("backbone", {"num_heads": 5}, "num_heads 5 does not divide embed_dims 96"),
        ("backbone", {"num_heads": "many"}, "cannot be used"),
        ("backbone", {"num_heads": None}, "cannot be used"),
        ("backbone", {"num_heads": 0}, "num_heads 0 does not divide"),
        ("backbone", {"num_heads": 2.0}, "model.backbone.num_heads 2.0 is not a whole number"),
        ("backbone", {"out_indices": (0, 1)}, "does not go with 2 levels"),
        ("backbone", {"out_indices": (0, 1, 2, 99)}, "(0, 1, 2, 99) are not layers"),
        ("backbone", {"out_indices": 3.5}, "model.backbone.out_indices 3.5 is not a list of numbers"),
        ("backbone", {"out_indices": None}, "cannot be used"),
        ("backbone", {"norm_cfg": {"eps": "small"}}, "cannot be used"),
        ("backbone", {"img_size": "large"}, "model.backbone.img_size 'large' is not a list of numbers"),
        ("backbone", {"interpolate_mode": "nearest"}, "interpolate_mode 'nearest' is not one of bicubic, bilinear"),
        ("backbone", {"with_cls_token": False}, "does not go with DPT"),
        ("backbone", {"with_cls_token": 1}, "model.backbone.with_cls_token 1 is neither True nor False"),
        ("decode_head", {"align_corners": None}, "model.decode_head.align_corners None is neither True nor False"),
        ("decode_head", {"in_index": [0, 1, 2, 4]}, "does not go with 4 levels"),
        ("decode_head", {"in_index": 3}, "are not the four levels that DPT fuses"),
        ("decode_head", {"norm_cfg": {"type": "BN", "eps": "small"}}, "norm_cfg.eps 'small' is not a number"),
        ("decode_head", {"num_classes": 2}, "and the configuration asks for 2 (num_classes 2)"),
        ("decode_head", {"out_channels": 1}, "and the configuration asks for 1"),
        ("backbone", {"norm_cfg": {"type": "LN", "eps": -1}}, "norm_eps -1.0 is below 0"),
        # Of another network: upstream would predict with random weights, or leave layers out.
        ("backbone", {"embed_dims": 384}, "model.backbone.embed_dims is 384, and the weights show 96"),
        ("backbone", {"num_layers": 2}, "model.backbone.num_layers is 2, and the weights show"),
        ("backbone", {"mlp_ratio": 7}, "model.backbone.mlp_ratio is 7, and the weights show"),
        ("backbone", {"in_channels": 1}, "model.backbone.in_channels is 1, and the weights show 3"),
        ("backbone", {"patch_size": (8, 8)}, "model.backbone.patch_size is [8, 8], and the weights show [16, 16]"),
        ("backbone", {"final_norm": True}, "model.backbone.final_norm is True, and the weights show False"),
        ("backbone", {"qkv_bias": False}, "model.backbone.qkv_bias is False, and the weights show True"),
        ("decode_head", {"channels": 7}, "model.decode_head.channels is 7, and the weights show"),
        ("decode_head", {"post_process_channels": [1, 2, 3, 4]}, "model.decode_head.post_process_channels is [1, 2"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused(
    sample_checkpoint: Checkpoint, part: str, settings: dict[str, Any], words: str
) -> None:
    assert words in refusal(lambda: recognise(with_model(sample_checkpoint, part, **settings)))


def test_an_unknown_readout_is_refused(oracle: Path) -> None:
    checkpoint = with_model(read_checkpoint(oracle / "tiny_dpt_add.pth"), "decode_head", readout_type="sum")
    assert "readout 'sum' is not one of" in refusal(lambda: recognise(checkpoint))


@pytest.mark.parametrize("scales", [[4, 2, 1], [4, 2, 1, 0], [4, 2, 1, -1], 3, ["a"] * 4, None, []], ids=str)
def test_a_neck_with_other_scales_is_refused(oracle: Path, scales: Any) -> None:
    checkpoint = with_model(read_checkpoint(oracle / "tiny_upernet_mln.pth"), "neck", scales=scales)
    message = refusal(lambda: recognise(checkpoint))
    assert "cannot be used" in message and "neck.scales" in message


def test_a_pyramid_with_other_scales_is_refused(oracle: Path) -> None:
    checkpoint = with_model(read_checkpoint(oracle / "tiny_upernet_mln.pth"), "decode_head", pool_scales=(1, 2))
    assert "4 pooling branches" in refusal(lambda: recognise(checkpoint))


def test_a_position_embedding_of_no_known_shape_is_refused(sample_checkpoint: Checkpoint) -> None:
    weights = {**sample_checkpoint.state_dict, "backbone.pos_embed": torch.zeros(1, 18, 96)}
    checkpoint = dataclasses.replace(sample_checkpoint, state_dict=weights)
    assert "17 places is not square, and backbone.img_size, which is (" in refusal(lambda: recognise(checkpoint))
    message = refusal(lambda: recognise(bare(checkpoint)))
    assert "17 places is not square, and backbone.img_size, which tells" in message and "by --config" in message


def test_an_error_names_the_configuration_that_was_given(sample_checkpoint: Checkpoint) -> None:
    """What is wrong in the file of --config is not said of the checkpoint alone."""
    given = dataclasses.replace(sample_checkpoint, config_file="mine.py")
    begins = f"{given.path} with --config mine.py: "
    assert refusal(lambda: recognise(with_model(given, "backbone", num_heads="x"))).startswith(begins)
    assert refusal(lambda: recognise(with_model(given, "backbone", foo=3))).startswith(begins)
    assert refusal(lambda: inference_of(with_model(given, "test_cfg", mode="other"))).startswith(begins)
    pipeline = {"test_pipeline": [{"type": "Other"}], "test_dataloader": {}, "val_dataloader": {}}
    other = dataclasses.replace(given, config={**given.config, **pipeline})
    assert refusal(lambda: image_steps(other)).startswith(begins)


KEY = "decode_head.project.conv.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("backbone.layers.0.ln1.bias"), "missing backbone.layers.0.ln1.bias (96,)"),
        (lambda weights: weights.update({"backbone.extra": torch.zeros(2)}), "unexpected backbone.extra (2,)"),
        (lambda weights: weights.update({"backbone.layers.9.ln1.bias": torch.zeros(96)}), "backbone.layers.9.ln1.bias"),
        (lambda weights: weights.update({"decode_head.conv_seg.bias": torch.zeros(7)}), "is (7,) torch.float32, expe"),
        (lambda weights: weights.update({KEY: weights[KEY].int()}), "torch.int32, expected"),
    ],
    ids=["missing", "unexpected", "gap", "shape", "integers"],
)
def test_weights_that_do_not_fit_are_listed(
    sample_checkpoint: Checkpoint, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    change(sample_checkpoint.state_dict)
    message = refusal(lambda: load_model(sample_checkpoint, recognise(sample_checkpoint).spec))
    assert "do not fit a DPT network" in message and words in message


@pytest.mark.parametrize(
    "key",
    [
        "backbone.pos_embed",
        "backbone.patch_embed.projection.weight",
        "backbone.layers.0.ffn.layers.0.0.weight",
        "decode_head.reassemble_blocks.projects.0.conv.weight",
        "decode_head.project.conv.weight",
        "decode_head.conv_seg.weight",
    ],
)
@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.zeros(0, 1), torch.zeros(1, 1, 1, 1, 1)], ids=str)
def test_weights_of_another_rank_are_refused(sample_checkpoint: Checkpoint, key: str, value: Tensor) -> None:
    sample_checkpoint.state_dict[key] = value
    message = refusal(lambda: recognise(sample_checkpoint))
    assert key in message and "dimensions" in message


def test_a_layer_of_a_huge_number_does_not_make_a_huge_network(sample_checkpoint: Checkpoint) -> None:
    depth = recognise(sample_checkpoint).spec.backbone.num_layers
    sample_checkpoint.state_dict["backbone.layers.999999999.ln1.bias"] = torch.zeros(96)
    assert recognise(sample_checkpoint).spec.backbone.num_layers == depth + 1


def test_a_wrong_number_of_classes_is_refused(sample_checkpoint: Checkpoint) -> None:
    checkpoint = dataclasses.replace(sample_checkpoint, classes=("wall", "sky"))
    message = refusal(lambda: class_names(checkpoint, 150))
    assert "names 2 classes, but decode_head.conv_seg has 150 outputs" in message
    names, warnings = class_names(dataclasses.replace(checkpoint, classes=None), 3)
    assert names == ("class 0", "class 1", "class 2") and "no classes" in warnings[0]


@pytest.mark.parametrize(("number", "more"), [(6, None), (7, "… and 1 more like it"), (9, "… and 3 more like it")])
def test_of_many_weights_that_do_not_fit_the_first_six_are_listed(
    sample_checkpoint: Checkpoint, number: int, more: str | None
) -> None:
    for i in range(number):
        sample_checkpoint.state_dict[f"backbone.extra{i}"] = torch.zeros(2)
    message = refusal(lambda: load_model(sample_checkpoint, recognise(sample_checkpoint).spec))
    assert [f"unexpected backbone.extra{i} " in message for i in range(number)] == [i < 6 for i in range(number)]
    assert "missing" not in message and ("more like it" in message) == (more is not None) and (more or "") in message


def test_an_image_size_that_does_not_fit_the_position_embedding_is_not_believed(sample_checkpoint: Checkpoint) -> None:
    """mmsegmentation resizes the embedding of another size: the weights say what it is now."""
    side, patch, places = 12, 16, 144
    sample_checkpoint.state_dict["backbone.pos_embed"] = torch.zeros(1, 1 + places, 96)
    for size, grid in (
        (patch * side, (side, side)),
        (patch * side + patch - 1, (side, side)),  # a rest of less than a patch is left out
        ((patch * side, 2 * patch * side), (side, side)),
        ((patch, patch * places), (1, places)),
        ((patch * places, patch), (places, 1)),
    ):
        read = recognise(with_model(sample_checkpoint, "backbone", img_size=size))
        assert read.spec.backbone.pos_grid == grid, size

"""Every key of upstream's classes is known, and every other is refused by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from support import REPO

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.model_settings import CARRIED, MODEL, SHOWN, TRAINING, Config, Only, unsupported
from denseport.export.checkpoint.pipeline_keys import CARRIED_OUT, HARMLESS
from denseport.export.checkpoint.recognise import recognise
from denseport.export.errors import CheckpointError

# Arguments and defaults of the constructors of mmsegmentation 1.2.2; 0.30 has fewer (no patch_pad, patch_bias,
# pre_norm, out_origin, frozen_exclude, data_preprocessor).
HEAD: dict[str, Any] = {
    "in_channels": [8] * 4, "channels": 8, "num_classes": 7, "out_channels": None, "threshold": None,
    "dropout_ratio": 0.1, "conv_cfg": None, "act_cfg": {"type": "ReLU"}, "in_index": -1,
    "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}, "ignore_index": 255,
    "sampler": None, "align_corners": False, "init_cfg": {"type": "Normal"},
}  # fmt: skip
DROPS = {"drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0}
UPSTREAM: dict[tuple[str, str], dict[str, Any]] = {
    ("", "EncoderDecoder"): {
        "backbone": {}, "decode_head": {}, "neck": None, "auxiliary_head": None, "train_cfg": None, "test_cfg": None,
        "data_preprocessor": None, "pretrained": None, "init_cfg": None,
    },
    ("backbone", "VisionTransformer"): {
        "img_size": 224, "patch_size": 16, "patch_pad": "corner", "in_channels": 3, "embed_dims": 768,
        "num_layers": 12, "num_heads": 12, "mlp_ratio": 4, "out_origin": False, "out_indices": -1, "qkv_bias": True,
        "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0, "with_cls_token": True,
        "output_cls_token": False, "norm_cfg": {"type": "LN"}, "act_cfg": {"type": "GELU"}, "patch_norm": False,
        "patch_bias": False, "pre_norm": False, "final_norm": False, "interpolate_mode": "bicubic", "num_fcs": 2,
        "norm_eval": False, "with_cp": False, "frozen_exclude": ["all"], "pretrained": None, "init_cfg": None,
    },
    ("neck", "MultiLevelNeck"): {
        "in_channels": [8] * 4, "out_channels": 8, "scales": [0.5, 1, 2, 4], "norm_cfg": None, "act_cfg": None,
    },
    ("backbone", "MixVisionTransformer"): {
        "in_channels": 3, "embed_dims": 64, "num_stages": 4, "num_layers": [3, 4, 6, 3], "num_heads": [1, 2, 4, 8],
        "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2], "sr_ratios": [8, 4, 2, 1], "out_indices": (0, 1, 2, 3),
        "mlp_ratio": 4, "qkv_bias": True, **DROPS, "act_cfg": {"type": "GELU"},
        "norm_cfg": {"type": "LN", "eps": 1e-6}, "pretrained": None, "init_cfg": None, "with_cp": False,
    },
    ("neck", "MLANeck"): {
        "in_channels": [8] * 4, "out_channels": 8, "norm_layer": {"type": "LN", "eps": 1e-6, "requires_grad": True},
        "norm_cfg": {"type": "BN"}, "act_cfg": None,
    },
    ("decode_head", "SETRUPHead"): {
        **HEAD, "in_channels": 8, "norm_cfg": {"type": "BN"}, "num_convs": 1, "up_scale": 4, "kernel_size": 3,
        "norm_layer": {"type": "LN", "eps": 1e-6, "requires_grad": True},
    },
    ("decode_head", "SETRMLAHead"): {**HEAD, "norm_cfg": {"type": "BN"}, "mla_channels": 128, "up_scale": 4},
    ("decode_head", "SegmenterMaskTransformerHead"): {
        **HEAD, **DROPS, "in_channels": 8, "num_layers": 2, "num_heads": 12, "embed_dims": 768, "mlp_ratio": 4,
        "num_fcs": 2, "qkv_bias": True, "act_cfg": {"type": "GELU"}, "norm_cfg": {"type": "LN"}, "init_std": 0.02,
    },
    # By default two convolutions, which Denseport has not.
    ("decode_head", "FCNHead"): {
        **HEAD, "in_channels": 8, "num_convs": 0, "kernel_size": 3, "concat_input": False, "dilation": 1,
        "norm_cfg": None,
    },
    ("decode_head", "SegformerHead"): {**HEAD, "norm_cfg": {"type": "BN"}, "interpolate_mode": "bilinear"},
    ("decode_head", "UPerHead"): {**HEAD, "pool_scales": (1, 2, 3, 6), "norm_cfg": {"type": "SyncBN"}},
    ("decode_head", "DPTHead"): {
        **HEAD, "input_transform": "multiple_select", "embed_dims": 768, "post_process_channels": [96, 192, 384, 768],
        "readout_type": "ignore", "patch_size": 16, "expand_channels": False, "norm_cfg": {"type": "BN"},
    },
}  # fmt: skip


@pytest.mark.parametrize(("part", "kind"), UPSTREAM)
def test_upstreams_arguments_are_known_and_their_defaults_supported(part: str, kind: str) -> None:
    assert list(unsupported(part, {**UPSTREAM[part, kind], "type": f"mmseg.{kind}"}, kind)) == []


@pytest.mark.parametrize(("part", "kind"), UPSTREAM)
def test_the_table_has_no_other_argument(part: str, kind: str) -> None:
    extra = {"VisionTransformer": {"frozen_stages"}}.get(kind, {"input_transform"} if part == "decode_head" else set())
    assert MODEL[part][kind].keys() == UPSTREAM[part, kind].keys() | extra


def test_every_type_is_compared() -> None:
    ours = {
        ("decode_head", "DPTDepthHead"),
        ("decode_head", "DepthAnythingHead"),
    }  # of other code: no depth is upstream's
    assert {(part, kind) for part, kinds in MODEL.items() for kind in kinds} == {*UPSTREAM} | ours


@pytest.mark.parametrize(("part", "kind"), UPSTREAM)
def test_an_unknown_key_is_refused_by_name(part: str, kind: str) -> None:
    ((problem, remedy),) = unsupported(part, {"window_size": 7}, kind)
    name = "model.window_size" if part == "" else f"model.{part}.window_size"
    assert problem.startswith(f"{name} is 7: mmsegmentation's {kind} has no such setting") and "Remove it" in remedy
    if part != "neck" and part and kind != "FCNHead":
        ((problem, _),) = unsupported(part, {"norm_cfg": {"bias": 0}}, kind)
        assert problem.startswith(f"model.{part}.norm_cfg.bias is 0: ")


@pytest.mark.parametrize(
    ("part", "kind", "settings", "words"),
    [
        (
            "backbone",
            "VisionTransformer",
            {"norm_cfg": {"type": "BN"}},
            "model.backbone.norm_cfg.type is 'BN'; only 'LN'",
        ),
        (
            "backbone",
            "VisionTransformer",
            {"patch_pad": 0},
            "model.backbone.patch_pad is 0; only 'corner' is supported",
        ),
        ("backbone", "VisionTransformer", {"pre_norm": 1}, "model.backbone.pre_norm is 1; only False is supported"),
        ("decode_head", "UPerHead", {"norm_cfg": None}, "model.decode_head.norm_cfg is None; only type='BN'"),
        ("neck", "MultiLevelNeck", {"norm_cfg": {"type": "BN"}}, "only None is supported"),
        ("neck", "MLANeck", {"norm_cfg": None}, "model.neck.norm_cfg is None; only type='BN'"),
        ("neck", "MLANeck", {"act_cfg": {"type": "GELU"}}, "model.neck.act_cfg.type is 'GELU'; only 'ReLU'"),
        ("decode_head", "FCNHead", {"num_convs": 2}, "model.decode_head.num_convs is 2; only 0 is supported"),
        ("decode_head", "FCNHead", {"concat_input": True}, "concat_input is True; only False is supported"),
        ("decode_head", "SETRUPHead", {"norm_layer": {"type": "BN"}}, "norm_layer.type is 'BN'; only 'LN'"),
        ("decode_head", "SETRUPHead", {"input_transform": "multiple_select"}, "only None is supported"),
        ("decode_head", "SegformerHead", {"interpolate_mode": "nearest"}, "is 'nearest'; only 'bilinear' is supported"),
        ("decode_head", "SegmenterMaskTransformerHead", {"threshold": 0.3}, "is 0.3; only None is supported"),
        ("decode_head", "SegmenterMaskTransformerHead", {"num_fcs": 3}, "num_fcs is 3; only 2 is supported"),
        ("backbone", "MixVisionTransformer", {"norm_cfg": {"type": "BN"}}, "norm_cfg.type is 'BN'; only 'LN'"),
    ],
)
def test_a_value_is_refused_by_name(part: str, kind: str, settings: dict[str, Any], words: str) -> None:
    ((problem, remedy),) = unsupported(part, settings, kind)
    assert words in problem and "run it with mmsegmentation" in remedy


VIT, DPT = ("backbone", "VisionTransformer"), ("decode_head", "DPTHead")


@pytest.mark.parametrize(
    ("where", "key", "good", "bad"),
    [
        (VIT, "patch_norm", [False], [True, 0, None]),
        (VIT, "pre_norm", [False], [True]),
        (VIT, "out_origin", [False], [True]),
        (VIT, "num_fcs", [2], [1, 3, 2.0, True]),
        (VIT, "patch_pad", ["corner"], ["same", None]),
        (VIT, "act_cfg", [{"type": "GELU", "approximate": "none"}], [{"type": "GELU", "approximate": "tanh"}, None]),
        (VIT, "norm_cfg", [{"elementwise_affine": True, "eps": 1e-6}], [{"elementwise_affine": False}, "LN"]),
        (DPT, "norm_cfg", [{"affine": True}], [{"affine": False}, {"type": 3}]),
        (DPT, "norm_cfg", [{"track_running_stats": True}], [{"track_running_stats": False}]),
        (DPT, "conv_cfg", [None, {"type": "Conv2d"}, {"type": "Conv"}], [{"type": "Conv3d"}, "Conv2d", 0, False]),
        (DPT, "act_cfg", [{"type": "ReLU", "inplace": True}, {"type": "mmcv.ReLU"}], [None, {"type": "GELU"}, ""]),
        (DPT, "expand_channels", [False], [True]),
        (DPT, "input_transform", ["multiple_select"], ["resize_concat", None]),
        (("neck", "MultiLevelNeck"), "act_cfg", [None], [{"type": "ReLU"}]),
    ],
)
def test_each_value_is_taken_or_refused(where: tuple[str, str], key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert list(unsupported(where[0], {key: value}, where[1])) == []
    for value in bad:
        ((problem, remedy),) = unsupported(where[0], {key: value}, where[1])
        assert problem.startswith(f"model.{where[0]}.{key}") and remedy.startswith("No other value gives")


def test_types_that_compute_the_same_are_supported() -> None:
    for kind in ("BN", "SyncBN", "torch.nn.modules.batchnorm.SyncBatchNorm", "mmcv.MMSyncBN"):
        norm = {"type": kind, "requires_grad": False, "momentum": 0.01, "eps": 1e-3}
        assert list(unsupported("decode_head", {"norm_cfg": norm, "_scope_": "mmseg"}, "DPTHead")) == []


@pytest.mark.parametrize(
    ("part", "kind"),
    [("", "CascadeEncoderDecoder"), ("backbone", "MAE"), ("decode_head", "UPerHead"), ("neck", "Feature2Pyramid")],
)
def test_another_type_is_refused_by_name(shared: Path, part: str, kind: str) -> None:
    checkpoint = read_checkpoint(shared / "cases/mmseg/scoped_type_names.pth")
    assert recognise(checkpoint).warnings == ()
    model = dict(checkpoint.config["model"])
    changed = {**model, "type": kind} if part == "" else {**model, part: {**(model.get(part) or {}), "type": kind}}
    with pytest.raises(CheckpointError) as caught:
        recognise(dataclasses.replace(checkpoint, config={"model": changed}))
    name = "model.type" if part == "" else f"model.{part}.type"
    assert f"{name} is {kind!r}" in str(caught.value)


def test_each_rule_says_what_becomes_of_a_setting() -> None:
    rules = [rule for kinds in MODEL.values() for keys in kinds.values() for rule in keys.values()]
    assert all(rule in (SHOWN, CARRIED, TRAINING) or isinstance(rule, (Only, Config)) for rule in rules)


def test_the_document_has_every_key() -> None:
    section = (REPO / "docs/settings.md").read_text(encoding="utf-8").split("## Model settings")[1].split("\n## ")[0]
    keys = {key for kinds in MODEL.values() for settings in kinds.values() for key in settings}
    assert [key for key in sorted(keys) if f"`{key}`" not in section] == []


def test_the_document_has_every_step_and_key() -> None:
    section = (REPO / "docs/settings.md").read_text(encoding="utf-8").partition("## The test path")[2].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")]
    for kind in CARRIED_OUT | HARMLESS:
        name, _, inner = kind.partition(".")
        (row,) = (row for row in rows if re.search(rf"\b{name}\b", row.split("|")[1]))
        for key in {
            *CARRIED_OUT.get(kind, ()),
            *HARMLESS.get(kind, ()),
            *([inner] if name == "data_preprocessor" and inner else []),
        }:
            assert f"`{key}`" in row, f"{kind}: {key}"

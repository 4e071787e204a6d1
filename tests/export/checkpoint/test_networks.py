"""SegFormer, Segmenter and SETR: what their configurations say, leave out, or say wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.networks.setr import NECK, SETRMLAReader, SETRUPReader
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.settings import class_names, inference_of
from denseport.export.errors import CheckpointError
from denseport.export.models.spec import MLANeckSpec
from denseport.runtime.bundle.preprocessing import normalisation


def read(shared: Path, name: str) -> Checkpoint:
    return read_checkpoint(shared / f"oracle_families/mmseg_{name}/checkpoint.pth")


def changed(checkpoint: Checkpoint, part: str, **settings: Any) -> Checkpoint:
    """With settings replaced; those that are `...` are left out."""
    model = checkpoint.config["model"]
    kept = {key: value for key, value in {**model[part], **settings}.items() if value is not ...}
    return dataclasses.replace(checkpoint, config={"model": {**model, part: kept}})


def bare(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(Path("mine.pth"), checkpoint.sha256, "weights only", checkpoint.state_dict)


def test_bare_weights_are_tested_as_the_published_models_are(shared: Path) -> None:
    """The oracle's own windows and its own normalisation, which its configuration says, but for the stride."""
    whole = read(shared, "segmenter_mask")
    recognised = recognise(bare(whole))
    found = image_steps(bare(whole), recognised.usual)
    inference, warnings = inference_of(bare(whole), recognised.usual)
    assert normalisation(found.preprocess) == normalisation(image_steps(whole).preprocess)
    assert normalisation(found.preprocess).mean == (127.5,) * 3
    assert inference == dataclasses.replace(inference_of(whole)[0], stride=(32, 32))
    resized, normalised, *_ = found.warnings
    assert "keep-ratio 256 x 64" in resized and "mean (127.5, 127.5, 127.5)" in normalised
    assert len(warnings) == 1 and "windows of 64 x 64 pixels with a stride of 32 x 32" in warnings[0]


LN = {"type": "LN"}


@pytest.mark.parametrize(
    ("name", "part", "settings", "found"),
    [
        # Upstream's class has an eps of its own only where the whole dict is missing.
        ("segformer", "backbone", {"norm_cfg": ...}, lambda spec: spec.backbone.norm_eps == 1e-6),
        ("segformer", "backbone", {"norm_cfg": LN}, lambda spec: spec.backbone.norm_eps == 1e-5),
        ("segformer", "backbone", {"norm_cfg": {**LN, "eps": 1e-3}}, lambda spec: spec.backbone.norm_eps == 1e-3),
        ("segformer", "backbone", {"strides": [2, 2, 2, 2]}, lambda spec: (spec.stride, spec.backbone.unit) == (2, 16)),
        ("segformer", "decode_head", {"align_corners": True}, lambda spec: spec.head.align_corners),
        ("segmenter_mask", "decode_head", {"norm_cfg": LN}, lambda spec: spec.head.layer_eps == 1e-5),
        ("segmenter_mask", "decode_head", {"num_heads": 4}, lambda spec: spec.head.num_heads == 4),
        ("segmenter_mask", "backbone", {"interpolate_mode": "bilinear"}, lambda spec: "linear" in str(spec.backbone)),
        ("setr_naive", "decode_head", {"norm_layer": ...}, lambda spec: spec.head.layer_eps == 1e-6),
        ("setr_naive", "decode_head", {"norm_layer": LN}, lambda spec: spec.head.layer_eps == 1e-5),
        ("setr_naive", "decode_head", {"up_scale": ...}, lambda spec: spec.head.up_scale == 4),
        ("setr_naive", "decode_head", {"in_index": ...}, lambda spec: spec.head.in_index == (3,)),
        ("setr_naive", "decode_head", {"in_index": 0}, lambda spec: spec.head.in_index == (0,)),
        ("setr_mla", "neck", {"act_cfg": ...}, lambda spec: not spec.neck.relu),
        ("setr_mla", "neck", {"norm_layer": LN}, lambda spec: spec.neck.layer_eps == 1e-5),
        ("setr_mla", "backbone", {"with_cls_token": ...}, lambda spec: spec.backbone.with_cls_token),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_settings_are_carried_out(shared: Path, name: str, part: str, settings: dict[str, Any], found: Any) -> None:
    recognised = recognise(changed(read(shared, name), part, **settings))
    assert found(recognised.spec) and recognised.warnings == ()


@pytest.mark.parametrize(
    ("name", "part", "settings", "words"),
    [
        ("segformer", "backbone", {"type": "MixTransformer"}, "model.backbone.type is 'MixTransformer'"),
        ("segformer", "backbone", {"sr_ratios": [8, 4, 2, 2]}, "sr_ratios is [8, 4, 2, 2], and the weights show"),
        ("segformer", "backbone", {"num_layers": [2, 2, 2, 2]}, "num_layers is [2, 2, 2, 2], and the weights show"),
        ("segformer", "backbone", {"patch_sizes": [3, 3, 3, 3]}, "patch_sizes is [3, 3, 3, 3], and the weights show"),
        ("segformer", "backbone", {"embed_dims": 3}, "model.backbone.embed_dims is 3, and the weights show 8"),
        ("segformer", "backbone", {"num_heads": [1, 1, 1, 1]}, "num_heads is [1, 1, 1, 1], and the weights show"),
        ("segformer", "backbone", {"num_heads": [3, 2, 3, 4]}, "num_heads (3, 2, 3, 4) do not divide embed_dims"),
        ("segformer", "backbone", {"num_heads": 8}, "model.backbone.num_heads 8 is not a list of numbers"),
        ("segformer", "backbone", {"strides": [4, 2]}, "are not positive numbers, one for each of 4 stages"),
        ("segformer", "backbone", {"strides": [4096, 2, 2, 2]}, "strides (4096, 2, 2, 2) are above 64"),
        ("segformer", "backbone", {"out_indices": [0, 1]}, "in_index (0, 1, 2, 3) does not go with 2 levels"),
        ("segformer", "backbone", {"out_indices": [0, 4]}, "(0, 4) are not stages, in ascending order, of 4"),
        ("segformer", "backbone", {"mlp_ratio": 2}, "model.backbone.mlp_ratio is 2, and the weights show 4"),
        ("segformer", "decode_head", {"type": "UPerHead"}, "model.decode_head.type is 'UPerHead'"),
        ("segmenter_mask", "decode_head", {"num_heads": ...}, "model.decode_head.num_heads None is not a whole number"),
        ("segmenter_mask", "decode_head", {"num_heads": 3}, "num_heads 3 does not divide embed_dims 16"),
        ("segmenter_mask", "decode_head", {"num_layers": 3}, "decode_head.num_layers is 3, and the weights show 2"),
        ("segmenter_mask", "decode_head", {"num_classes": 8}, "the configuration asks for 8"),
        ("segmenter_mask", "decode_head", {"qkv_bias": False}, "qkv_bias is False, and the weights show True"),
        ("segmenter_mask", "decode_head", {"in_index": [0, 1]}, "(0, 1) is not the one level that"),
        ("setr_pup", "decode_head", {"num_convs": 3}, "decode_head.num_convs is 3, and the weights show 4"),
        ("setr_pup", "decode_head", {"kernel_size": 1}, "decode_head.kernel_size is 1, and the weights show 3"),
        ("setr_pup", "decode_head", {"up_scale": 1.5}, "model.decode_head.up_scale 1.5 is not a whole number"),
        ("setr_pup", "decode_head", {"up_scale": 8}, "up_scale ** num_convs 4096 is not in 1 to 64"),
        ("setr_pup", "decode_head", {"up_scale": 0}, "up_scale 0 is not in 1 to 64"),
        ("setr_pup", "decode_head", {"norm_layer": {**LN, "eps": "x"}}, "norm_layer.eps 'x' is not a number"),
        ("setr_mla", "neck", {"type": "MultiLevelNeck"}, "model.neck.type is 'MultiLevelNeck'"),
        ("setr_mla", "neck", {"out_channels": 9}, "model.neck.out_channels is 9, and the weights show 8"),
        ("setr_mla", "decode_head", {"mla_channels": 9}, "decode_head.mla_channels is 9, and the weights show 6"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(
    shared: Path, name: str, part: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        recognise(changed(read(shared, name), part, **settings))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "warned"),
    [
        ("segformer", {"num_heads": (1, 2, 3, 4)}, ["The number of attention heads cannot", "backbone.strides"]),
        ("segmenter_mask", {"num_heads": 1}, ["attention heads of the decoder", "Which layers", "LayerNorm's eps"]),
        ("segmenter_linear", {"num_heads": 1}, ["Which layers feed the head", "LayerNorm's eps"]),
        ("setr_naive", {"num_heads": 1, "out_indices": (3,)}, ["up_scale", "backbone.interpolate_mode"]),
        ("setr_pup", {"num_heads": 1, "out_indices": (3,)}, ["up_scale", "backbone.interpolate_mode"]),
        ("setr_mla", {"num_heads": 1}, ["backbone.with_cls_token", "neck.act_cfg", "neck.norm_layer.eps"]),
    ],
)
def test_without_a_configuration_the_published_models_settings_are_assumed(
    shared: Path, name: str, changes: dict[str, Any], warned: list[str]
) -> None:
    """Each of them with a warning. The oracle's have their widths' heads, so that number alone is wrong."""
    checkpoint = read(shared, name)
    truth, recognised = recognise(checkpoint).spec, recognise(bare(checkpoint))
    assert recognised.spec.backbone == dataclasses.replace(truth.backbone, **changes)
    head = dataclasses.replace(truth.head, in_index=(0,)) if "out_indices" in changes else truth.head
    head = dataclasses.replace(head, num_heads=1) if name == "segmenter_mask" else head
    assert (recognised.spec.neck, recognised.spec.head) == (truth.neck, head)
    for words in warned:
        assert words in "\n".join(recognised.warnings)


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("setr_naive", "decode_head.up_convs.0.0.conv.bias", "its head has no BatchNorm (norm_cfg=None)"),
        ("segformer", "decode_head.fusion_conv.conv.bias", "its head has no BatchNorm (norm_cfg=None)"),
        ("setr_mla", "neck.mla.channel_proj.0.conv.bias", "its neck has no BatchNorm (norm_cfg=None)"),
        ("setr_mla", "neck.mla.channel_proj.0.gn.weight", "its neck has another normalisation than BatchNorm"),
        ("segmenter_linear", "decode_head.convs.0.conv.weight", "its head has more than conv_seg"),
    ],
)
def test_keys_of_other_networks_are_refused(shared: Path, name: str, key: str, reason: str) -> None:
    checkpoint = read(shared, name)
    checkpoint.state_dict[key] = torch.zeros(8)
    with pytest.raises(CheckpointError) as caught:
        recognise(checkpoint)
    assert reason in str(caught.value)


@pytest.mark.parametrize("neck", [{"type": "MultiLevelNeck"}, "MultiLevelNeck"])
def test_a_neck_without_weights_is_refused(shared: Path, neck: Any) -> None:
    checkpoint = read(shared, "setr_naive")
    model = {**checkpoint.config["model"], "neck": neck}
    with pytest.raises(CheckpointError, match=r"model.neck.type is 'MultiLevelNeck', and its weights have no neck"):
        recognise(dataclasses.replace(checkpoint, config={"model": model}))


def test_a_mask_transformer_of_one_class_is_refused(shared: Path) -> None:
    checkpoint = read(shared, "segmenter_mask")
    checkpoint.state_dict["decode_head.cls_emb"] = torch.zeros(1, 1, 16)
    with pytest.raises(CheckpointError, match="a mask transformer cannot tell one class"):
        recognise(bare(checkpoint))


def test_one_output_and_a_threshold(shared: Path) -> None:
    """A binary head of SegFormer's: two classes, as of DPT's."""
    checkpoint = read(shared, "segformer")
    for key in ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"):
        checkpoint.state_dict[key] = checkpoint.state_dict[key][:1]
    spec = recognise(changed(checkpoint, "decode_head", num_classes=2, out_channels=1, threshold=0.4)).spec
    assert (spec.num_classes, spec.head.threshold) == (2, 0.4)
    assert class_names(dataclasses.replace(checkpoint, classes=("crack",)), 2, is_binary=True)[0][0] == "background"


def test_strides_and_smallest_inputs(shared: Path) -> None:
    found = {
        name: recognise(read(shared, name)).spec
        for name in ("segformer", "segmenter_mask", "segmenter_linear", "setr_naive", "setr_pup", "setr_mla")
    }
    assert {name: (spec.stride, spec.backbone.smallest, spec.unit) for name, spec in found.items()} == {
        "segformer": (4, 29, 32),  # 29 pixels make 8 places, of which the first reduction leaves one
        "segmenter_mask": (16, 16, 16),
        "segmenter_linear": (16, 16, 16),
        "setr_naive": (4, 16, 16),
        "setr_pup": (1, 16, 16),
        "setr_mla": (4, 16, 16),
    }


def test_the_deepest_level_comes_first() -> None:
    assert MLANeckSpec(8).strides((16, 8)) == (8, 16)


def test_a_reader_of_setr_wants_its_head_and_what_is_its_own() -> None:
    head, norm = "decode_head.up_convs.0.0.conv.weight", "decode_head.norm.weight"
    for reader, own in ((SETRMLAReader, NECK), (SETRUPReader, norm)):
        assert reader.why_not({own: (8,)}) == "no key begins with 'decode_head.up_convs.'"
        assert reader.why_not({head: (8, 8, 3, 3)}) == f"it has no {own!r}"
        assert reader.why_not({head: (8, 8, 3, 3), own: (8,)}) is None

"""What a configuration says against what the weights show: each setting by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.networks.dpt import DPTReader
from denseport.export.checkpoint.networks.upernet import UPerNetReader
from denseport.export.checkpoint.networks.vit import ViTReader

VIT = {
    "backbone.patch_embed.projection.weight": (12, 3, 16, 16),
    "backbone.layers.0.ffn.layers.0.0.weight": (48, 12),
    "backbone.layers.1.ffn.layers.0.0.weight": (48, 12),
}
DPT = {
    **VIT,
    "decode_head.project.conv.weight": (20, 8, 3, 3),
    "decode_head.fusion_blocks.0.project.conv.weight": (20, 20, 1, 1),
    **{f"decode_head.reassemble_blocks.projects.{i}.conv.weight": (6 + i, 12, 1, 1) for i in range(4)},
    "decode_head.conv_seg.weight": (5, 21, 1, 1),
}
UPERNET = {**VIT, "neck.convs.0.conv.weight": (12, 30, 1, 1), "decode_head.conv_seg.weight": (5, 21, 1, 1)}
READOUT = {"decode_head.reassemble_blocks.readout_projects.0.0.weight": (12, 24)}
LONG = {"backbone.layers.12.ln1.weight": (12,)}


class BackboneReader(ViTReader):
    """Of weights without a head."""

    def head(self, levels: int) -> Any:
        raise AssertionError("nobody asks for it")


def contradictions(model: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """As the reader of the network finds them whose head the shapes are of; of the backbone's without one."""
    is_dpt = "decode_head.project.conv.weight" in shapes
    kind = DPTReader if is_dpt else UPerNetReader if "decode_head.conv_seg.weight" in shapes else BackboneReader
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return kind(Checkpoint(Path("c.pth"), "", "mmseg 1.x", weights, config={"model": model}), None).contradictions()


@pytest.mark.parametrize(
    ("part", "name", "right", "wrong", "shapes"),
    [
        ("backbone", "embed_dims", 12, 16, VIT),
        ("backbone", "in_channels", 3, 1, VIT),
        ("backbone", "num_layers", 2, 12, VIT),
        ("backbone", "patch_size", 16, 8, VIT),
        ("backbone", "patch_size", [16, 16], [16, 8], VIT),
        ("backbone", "patch_size", (16, 16), (8, 16), VIT),
        ("backbone", "mlp_ratio", 4, 3, VIT),
        ("backbone", "mlp_ratio", 4.05, 4.1, VIT),  # upstream cuts the fraction off: 48.6 and 49.2
        ("backbone", "final_norm", False, True, VIT),
        ("backbone", "final_norm", True, False, {**VIT, "backbone.ln1.weight": (12,)}),
        ("backbone", "qkv_bias", False, True, VIT),
        ("backbone", "qkv_bias", True, False, {**VIT, "backbone.layers.0.attn.attn.in_proj_bias": (36,)}),
        ("neck", "out_channels", 12, 8, UPERNET),
        ("decode_head", "channels", 21, 20, UPERNET),
        ("decode_head", "channels", 20, 21, DPT),
        ("decode_head", "post_process_channels", [6, 7, 8, 9], [6, 7, 8, 8], DPT),
        ("decode_head", "post_process_channels", (6, 7, 8, 9), (7, 7, 8, 9), DPT),
        ("decode_head", "readout_type", "project", "ignore", {**DPT, **READOUT}),
    ],
)
def test_a_setting_that_the_weights_deny_is_told(
    part: str, name: str, right: Any, wrong: Any, shapes: dict[str, tuple[int, ...]]
) -> None:
    assert list(contradictions({part: {name: right}}, shapes)) == []
    (told,) = contradictions({part: {name: wrong}}, shapes)
    said, shown = (list(each) if isinstance(each, tuple) else each for each in (wrong, right))
    ratio = name == "mlp_ratio"  # what it would have to be, and not what else would do
    assert told == f"model.{part}.{name} is {said!r}, and the weights show {4.0 if ratio else shown!r}"


@pytest.mark.parametrize(
    ("part", "settings", "shapes"),
    [
        ("backbone", {}, DPT),
        ("backbone", {"num_layers": 5}, {**VIT, **LONG}),  # a gap: told key by key when they are loaded
        ("backbone", {"mlp_ratio": float("inf")}, VIT),
        ("backbone", {"mlp_ratio": "4"}, VIT),
        ("backbone", {"mlp_ratio": 9}, {"backbone.patch_embed.projection.weight": (12, 3, 16, 16)}),
        ("neck", {"out_channels": 9}, DPT),
        ("decode_head", {"readout_type": "add"}, DPT),
        ("decode_head", {"post_process_channels": [1]}, UPERNET),
    ],
)
def test_what_the_weights_do_not_show_is_believed(
    part: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    assert list(contradictions({part: settings}, shapes)) == []


def test_none_is_said_too_and_everything_is_told() -> None:
    told = list(
        contradictions({"backbone": {"embed_dims": None, "in_channels": 1}, "neck": {"out_channels": 8}}, UPERNET)
    )
    assert [each.split(" is ")[0] for each in told] == [
        "model.backbone.embed_dims",
        "model.backbone.in_channels",
        "model.neck.out_channels",
    ]

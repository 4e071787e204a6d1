"""Depth Anything's and isl-org/DPT's own files under mmsegmentation's keys: bare weights, without a configuration.

Sources: ``depth_anything_v2/{dpt,dinov2}.py`` (DepthAnything/Depth-Anything-V2; V1 has the same keys);
``dpt/{models,vit}.py`` and ``run_{monodepth,segmentation}.py`` (isl-org/DPT). The readers ask for what these files
cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from denseport.export.checkpoint.huggingface.family import all_renamed, renamed
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.bundle.steps import Load, Normalise, ResizeRounded

__all__ = ["DEPTH_ANYTHING", "ISL", "LAYOUTS", "Layout", "layout_of"]

DEPTH_ANYTHING, ISL = "Depth Anything", "isl-org/DPT"
HEAD = "decode_head."
BLOCKS = f"{HEAD}reassemble_blocks."


@dataclass(frozen=True)
class Layout:
    """How one kind of file calls its weights, and what its code does that no weight shows."""

    name: str
    sign: str  # a key that no other kind has
    names: Mapping[str, str]  # regular expressions for the beginning of a key, and mmsegmentation's name
    unused: tuple[str, ...]  # how keys begin that no prediction uses
    head: Mapping[str, Any]  # settings of the head, in words like mmsegmentation's
    interpolation: str  # of the position embedding
    preprocess: Preprocessing
    about: Mapping[str, Any]  # of the data set
    warnings: tuple[str, ...] = ()

    def weights(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Under mmsegmentation's keys.

        Raises:
            ValueError: two keys mean the same.
        """
        used = {key: value for key, value in found.items() if not key.startswith(self.unused)}
        return all_renamed(used, lambda key: renamed(key, self.names))

    @property
    def model(self) -> dict[str, Any]:
        """What the code says of the network, as ``model`` of a configuration."""
        eps = {"type": "LN", "eps": 1e-6}
        backbone = {"norm_cfg": eps, "interpolate_mode": self.interpolation, "with_cls_token": True}
        head = {"in_index": [0, 1, 2, 3], "norm_cfg": {"type": "BN", "eps": 1e-5}, **self.head}
        whole = {"type": "EncoderDecoder", "test_cfg": {"mode": "whole"}}
        return {**whole, "backbone": {"type": "VisionTransformer", **backbone}, "decode_head": head}


def _encoder(prefix: str) -> dict[str, str]:
    """Of a Vision Transformer as timm and DINOv2 call its parts."""
    block, ours = rf"{prefix}blocks\.(\d+)\.", r"backbone.layers.\1."
    return {
        rf"{prefix}cls_token$": "backbone.cls_token",
        rf"{prefix}pos_embed$": "backbone.pos_embed",
        rf"{prefix}patch_embed\.proj\.": "backbone.patch_embed.projection.",
        rf"{block}norm(\d)\.": rf"{ours}ln\2.",
        rf"{block}ls(\d)\.gamma": rf"{ours}ls\2.gamma",
        rf"{block}attn\.qkv\.(weight|bias)": rf"{ours}attn.attn.in_proj_\2",
        rf"{block}attn\.proj\.": rf"{ours}attn.attn.out_proj.",
        rf"{block}mlp\.fc1\.": rf"{ours}ffn.layers.0.0.",
        rf"{block}mlp\.fc2\.": rf"{ours}ffn.layers.1.",
        rf"{prefix}norm\.": "backbone.ln1.",
    }


def _fusion(prefix: str) -> dict[str, str]:
    """Of the decoder: levels from fine to coarse, refinenets from the last to the first."""
    names: dict[str, str] = {}
    for i in range(1, 5):
        block, ours = rf"{prefix}refinenet{i}\.", rf"{HEAD}fusion_blocks.{4 - i}."
        names |= {
            rf"{prefix}layer{i}_rn\.": rf"{HEAD}convs.{i - 1}.conv.",
            rf"{block}out_conv\.": rf"{ours}project.conv.",
            rf"{block}resConfUnit(\d)\.conv(\d)\.": rf"{ours}res_conv_unit\1.conv\2.conv.",
            rf"{block}resConfUnit(\d)\.bn(\d)\.": rf"{ours}res_conv_unit\1.conv\2.bn.",
        }
    return names


def _isl_reassembly() -> dict[str, str]:
    names: dict[str, str] = {}
    for i in range(4):
        level = rf"pretrained\.act_postprocess{i + 1}\."
        names |= {
            rf"{level}0\.project\.0\.": f"{BLOCKS}readout_projects.{i}.0.",
            rf"{level}3\.": f"{BLOCKS}projects.{i}.conv.",
            rf"{level}4\.": f"{BLOCKS}resize_layers.{i}.",
        }
    return names


def _isl_steps(side: int) -> Preprocessing:
    normalise = Normalise((127.5,) * 3, (127.5,) * 3, bgr_to_rgb=True)
    return Load(float32=True), ResizeRounded((side, side), "minimal", 32, "bicubic"), normalise


_ISL_NAMES = _encoder(r"pretrained\.model\.") | _isl_reassembly() | _fusion(r"scratch\.")
_ISL_UNUSED = ("pretrained.model.norm.", "pretrained.model.head.", "auxlayer.", "scratch.refinenet4.resConfUnit1.")
LAYOUTS = (
    Layout(
        name=DEPTH_ANYTHING,
        sign="depth_head.scratch.output_conv1.weight",
        names={
            **_encoder(r"pretrained\."),
            **_fusion(r"depth_head\.scratch\."),
            r"depth_head\.scratch\.output_conv": f"{HEAD}output_conv",
            r"depth_head\.projects\.(\d)\.": rf"{BLOCKS}projects.\1.conv.",
            r"depth_head\.": BLOCKS,  # resize_layers, readout_projects
        },
        unused=("pretrained.mask_token", "depth_head.scratch.refinenet4.resConfUnit1."),
        head={"type": "DepthAnythingHead", "align_corners": True},
        interpolation="bicubic",
        preprocess=(
            Load(float32=True),
            ResizeRounded((518, 518), "lower_bound", 14, "bicubic"),
            Normalise((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True),
        ),
        about={},
    ),
    Layout(
        name=ISL,
        sign="scratch.output_conv.1.running_mean",
        names={
            **_ISL_NAMES,
            r"scratch\.output_conv\.0\.": f"{HEAD}project.conv.",
            r"scratch\.output_conv\.1\.": f"{HEAD}project.bn.",
            r"scratch\.output_conv\.4\.": f"{HEAD}conv_seg.",
        },
        unused=_ISL_UNUSED,
        head={"type": "DPTHead", "align_corners": False},
        interpolation="bilinear",
        preprocess=_isl_steps(480),
        about={"reduce_zero_label": True},  # it counts the classes of ADE20K from 1
        warnings=(
            "isl-org/DPT resizes logits to the image by bicubic interpolation, Denseport by bilinear, as transformers: "
            "masks may differ along the borders of classes.",
        ),
    ),
    Layout(
        name=ISL,
        sign="scratch.output_conv.2.weight",
        names={**_ISL_NAMES, r"scratch\.output_conv\.": f"{HEAD}head."},
        unused=_ISL_UNUSED,
        head={"type": "DPTDepthHead", "align_corners": False},
        interpolation="bilinear",
        preprocess=_isl_steps(384),
        about={},
    ),
)


def layout_of(weights: Mapping[str, Tensor]) -> Layout | None:
    """The layout whose sign is among the keys."""
    return next((layout for layout in LAYOUTS if layout.sign in weights), None)

"""SegformerForSemanticSegmentation as mmsegmentation's SegFormer.

Sources: transformers 4.57 and 5.24, ``models/segformer/modeling_segformer.py``, and ``conversion_mapping.py`` for the
names of both generations. The arithmetic differs in three ways: LayerNorms have torch's eps whatever ``layer_norm_eps``
says; the levels of the head have a bias in the place of BatchNorm and ReLU; the coarsest of them comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from denseport.export.checkpoint.huggingface.family import Family, all_renamed, packed, renamed

__all__ = ["SEGFORMER"]

# Names of transformers 5 in memory to those of 4, which both write.
FIVE_TO_FOUR = {
    r"segformer\.stages\.(\d+)\.patch_embeddings\.": r"segformer.encoder.patch_embeddings.\1.",
    r"segformer\.stages\.(\d+)\.blocks\.": r"segformer.encoder.block.\1.",
    r"segformer\.stages\.(\d+)\.layer_norm\.": r"segformer.encoder.layer_norm.\1.",
    r"attention\.q_proj\.": "attention.self.query.",
    r"attention\.k_proj\.": "attention.self.key.",
    r"attention\.v_proj\.": "attention.self.value.",
    r"attention\.o_proj\.": "attention.output.dense.",
    r"attention\.sequence_reduction\.sequence_reduction\.": "attention.self.sr.",
    r"attention\.sequence_reduction\.layer_norm\.": "attention.self.layer_norm.",
    r"mlp\.fc([12])\.": r"mlp.dense\1.",
    r"layernorm_before\.": "layer_norm_1.",
    r"layernorm_after\.": "layer_norm_2.",
    r"decode_head\.linear_projections\.": "decode_head.linear_c.",
}
# Names of transformers 4 to mmsegmentation's.
BLOCK, OURS = r"segformer\.encoder\.block\.(\d+)\.(\d+)\.", r"backbone.layers.\1.1.\2."
NAMES = {
    r"segformer\.encoder\.patch_embeddings\.(\d+)\.proj\.": r"backbone.layers.\1.0.projection.",
    r"segformer\.encoder\.patch_embeddings\.(\d+)\.layer_norm\.": r"backbone.layers.\1.0.norm.",
    r"segformer\.encoder\.layer_norm\.(\d+)\.": r"backbone.layers.\1.2.",
    rf"{BLOCK}layer_norm_1\.": rf"{OURS}norm1.",
    rf"{BLOCK}layer_norm_2\.": rf"{OURS}norm2.",
    rf"{BLOCK}attention\.self\.sr\.": rf"{OURS}attn.sr.",
    rf"{BLOCK}attention\.self\.layer_norm\.": rf"{OURS}attn.norm.",
    rf"{BLOCK}attention\.output\.dense\.": rf"{OURS}attn.attn.out_proj.",
    rf"{BLOCK}mlp\.dense1\.": rf"{OURS}ffn.layers.0.",
    rf"{BLOCK}mlp\.dwconv\.dwconv\.": rf"{OURS}ffn.layers.1.",
    rf"{BLOCK}mlp\.dense2\.": rf"{OURS}ffn.layers.4.",
    r"decode_head\.linear_c\.(\d+)\.proj\.": r"decode_head.convs.\1.conv.",
    r"decode_head\.linear_fuse\.": "decode_head.fusion_conv.conv.",
    r"decode_head\.batch_norm\.": "decode_head.fusion_conv.bn.",
    r"decode_head\.classifier\.": "decode_head.conv_seg.",
}
# Linear layers here that are 1x1 convolutions in mmsegmentation.
FUSION = "decode_head.fusion_conv.conv.weight"
POINTWISE = re.compile(r"(backbone\.layers\.\d+\.1\.\d+\.ffn\.layers\.[04]|decode_head\.convs\.\d+\.conv)\.weight")


def _model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The network in mmsegmentation's words; defaults are those of transformers' SegformerConfig."""
    sizes, heads = config.get("hidden_sizes", [32, 64, 160, 256]), config.get("num_attention_heads", [1, 2, 5, 8])
    stages = config.get("num_encoder_blocks", 4)
    ratios = config.get("mlp_ratios", [4, 4, 4, 4])
    widths = [int(size) // int(head) for size, head in zip(sizes, heads, strict=True)]
    backbone = {
        "type": "MixVisionTransformer",
        "in_channels": config.get("num_channels", 3),
        "num_stages": stages,
        "num_layers": config.get("depths", [2, 2, 2, 2]),
        "num_heads": heads,
        "patch_sizes": config.get("patch_sizes", [7, 3, 3, 3]),
        "strides": config.get("strides", [4, 2, 2, 2]),
        "sr_ratios": config.get("sr_ratios", [8, 4, 2, 1]),
        "out_indices": list(range(len(widths))),
        "norm_cfg": {"type": "LN", "eps": 1e-5},
    }
    # mmsegmentation has one width of a head and one ratio for all stages; elsewhere the weights show them.
    if len(set(widths)) == 1:
        backbone["embed_dims"] = widths[0]
    if len(set(ratios)) == 1:
        backbone["mlp_ratio"] = ratios[0]
    head = {
        "type": "SegformerHead",
        "in_index": list(range(len(widths))),
        "channels": config.get("decoder_hidden_size", 256),
        "num_classes": len(config["id2label"]),
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
    }
    return {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head, "test_cfg": {"mode": "whole"}}


def _named_as_by_four(key: str) -> str:
    for pattern, name in FIVE_TO_FOUR.items():
        key = re.sub(pattern, name, key)
    return key


def _weights(weights: Mapping[str, Tensor], _: Mapping[str, Any]) -> dict[str, Tensor]:
    """Under mmsegmentation's keys: projections packed, pointwise convolutions as such, the finest level first."""
    four = all_renamed(weights, _named_as_by_four)
    projection = rf"{BLOCK}attention\.self\.(query|key|value)\.(weight|bias)"
    four = packed(four, projection, rf"{OURS}attn.attn.in_proj_\4")
    found = all_renamed(four, lambda key: renamed(key, NAMES))
    for key, value in found.items():
        found[key] = value[..., None, None] if POINTWISE.fullmatch(key) and value.dim() == 2 else value
    fusion = found.get(FUSION)
    levels = sum(bool(re.fullmatch(r"decode_head\.convs\.\d+\.conv\.weight", key)) for key in found)
    if fusion is not None and levels and fusion.dim() == 4 and fusion.shape[1] % levels == 0:
        found[FUSION] = torch.cat(fusion.chunk(levels, dim=1)[::-1], dim=1)
    return found


SEGFORMER = Family(
    architecture="SegformerForSemanticSegmentation",
    carried=frozenset({
        "num_channels", "num_encoder_blocks", "depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides",
        "num_attention_heads", "mlp_ratios", "decoder_hidden_size",
    }),
    only={"model_type": ("segformer",), "hidden_act": ("gelu",), "reshape_last_stage": (True,)},
    harmless=frozenset({
        "layer_norm_eps", "classifier_dropout_prob", "drop_path_rate", "image_size", "downsampling_rates",
    }),
    model=_model,
    weights=_weights,
    processors=frozenset({"SegformerImageProcessor", "SegformerImageProcessorFast", "SegformerFeatureExtractor"}),
    processor={
        "size": {"height": 512, "width": 512},
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
)  # fmt: skip

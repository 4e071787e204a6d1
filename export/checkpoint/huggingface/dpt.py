"""DPTForSemanticSegmentation as mmsegmentation's DPT.

Source: transformers 4.57 and 5.24, ``models/dpt/modeling_dpt.py``. The arithmetic differs in three ways, which the
spec says: the position embedding is resized at every size, an image is cut to whole patches, and the logits are
upsampled by two. transformers takes square inputs only; this network any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from denseport.export.checkpoint.huggingface.family import Family, all_renamed, packed, renamed

__all__ = [
    "CARRIED",
    "DPT",
    "ENCODER",
    "HARMLESS",
    "LAYER",
    "NECK",
    "ONLY",
    "PROCESSOR",
    "PROCESSORS",
    "network",
    "packed_renamed",
    "vit_backbone",
]

LAYER, OURS = r"dpt\.encoder\.layer\.(\d+)\.", r"backbone.layers.\1."
STAGE, BLOCKS = r"neck\.reassemble_stage\.", "decode_head.reassemble_blocks."
FUSION, BLOCK = r"neck\.fusion_stage\.layers\.(\d+)\.", r"decode_head.fusion_blocks.\1."
ENCODER = {
    r"dpt\.embeddings\.cls_token$": "backbone.cls_token",
    r"dpt\.embeddings\.position_embeddings$": "backbone.pos_embed",
    r"dpt\.embeddings\.patch_embeddings\.": "backbone.patch_embed.",
    rf"{LAYER}layernorm_before\.": rf"{OURS}ln1.",
    rf"{LAYER}layernorm_after\.": rf"{OURS}ln2.",
    rf"{LAYER}attention\.output\.dense\.": rf"{OURS}attn.attn.out_proj.",
    rf"{LAYER}intermediate\.dense\.": rf"{OURS}ffn.layers.0.0.",
    rf"{LAYER}output\.dense\.": rf"{OURS}ffn.layers.1.",
}
NECK = {
    rf"{STAGE}readout_projects\.": f"{BLOCKS}readout_projects.",
    rf"{STAGE}layers\.(\d+)\.projection\.": rf"{BLOCKS}projects.\1.conv.",
    rf"{STAGE}layers\.(\d+)\.resize\.": rf"{BLOCKS}resize_layers.\1.",
    r"neck\.convs\.(\d+)\.": r"decode_head.convs.\1.conv.",
    rf"{FUSION}projection\.": rf"{BLOCK}project.conv.",
    rf"{FUSION}residual_layer(\d)\.convolution(\d)\.": rf"{BLOCK}res_conv_unit\2.conv\3.conv.",
    rf"{FUSION}residual_layer(\d)\.batch_norm(\d)\.": rf"{BLOCK}res_conv_unit\2.conv\3.bn.",
}
HEAD = {
    r"head\.head\.0\.": "decode_head.project.conv.",
    r"head\.head\.1\.": "decode_head.project.bn.",
    r"head\.head\.4\.": "decode_head.conv_seg.",
}
# What no prediction uses: the encoder's last norm, a pooler, the first block's sum with a level that there is not.
UNUSED = ("dpt.layernorm.", "dpt.pooler.", "neck.fusion_stage.layers.0.residual_layer1.")


# Keys of config.json that every class of DPT carries out, supports with some values, or that change no prediction.
CARRIED = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps", "image_size",
    "patch_size", "num_channels", "qkv_bias", "backbone_out_indices", "readout_type", "neck_hidden_sizes",
    "fusion_hidden_size",
})  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("dpt",),
    "hidden_act": ("gelu",),
    "is_hybrid": (False,),
    "reassemble_factors": ([4, 2, 1, 0.5],),
    "head_in_index": (-1,),
    "backbone": (None,),
}
HARMLESS = frozenset({
    "auxiliary_loss_weight", "use_auxiliary_head", "semantic_classifier_dropout", "pooler_act", "pooler_output_size",
    # Of a backbone that there is not, or of the hybrid one.
    "backbone_featmap_shape", "backbone_kwargs", "neck_ignore_stages", "use_autobackbone", "use_pretrained_backbone",
    "use_timm_backbone",
})  # fmt: skip
PROCESSORS = frozenset({"DPTImageProcessor", "DPTImageProcessorFast", "DPTFeatureExtractor"})
PROCESSOR = {
    "size": {"height": 384, "width": 384},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "keep_aspect_ratio": False,
    "ensure_multiple_of": 1,
    "do_pad": False,
    "size_divisor": None,
}


def vit_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder in mmsegmentation's words; defaults are those of transformers' DPTConfig."""
    dims, hidden = config.get("hidden_size", 768), config.get("intermediate_size", 3072)
    return {
        "type": "VisionTransformer",
        "img_size": config.get("image_size", 384),
        "patch_size": config.get("patch_size", 16),
        "in_channels": config.get("num_channels", 3),
        "embed_dims": dims,
        "num_layers": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_ratio": hidden / dims,
        "qkv_bias": config.get("qkv_bias", True),
        "out_indices": config.get("backbone_out_indices", [2, 5, 8, 11]),
        "norm_cfg": {"type": "LN", "eps": config.get("layer_norm_eps", 1e-12)},
        "interpolate_mode": "bilinear",
        "with_cls_token": True,
        "patch_bias": True,
    }


def network(backbone: Mapping[str, Any], kind: str, config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """``model`` of a configuration: an encoder, and a head on DPT's fusion with further settings."""
    head = {
        "type": kind,
        "channels": config.get("fusion_hidden_size", 256),
        "post_process_channels": config.get("neck_hidden_sizes", [96, 192, 384, 768]),
        "readout_type": config.get("readout_type", "project"),
        "in_index": [0, 1, 2, 3],
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
    }
    whole = {"type": "EncoderDecoder", "test_cfg": {"mode": "whole"}}
    return {**whole, "backbone": backbone, "decode_head": {**head, **settings}}


def _model(config: Mapping[str, Any]) -> dict[str, Any]:
    return network(vit_backbone(config), "DPTHead", config, num_classes=len(config["id2label"]))


def packed_renamed(weights: Mapping[str, Tensor], layer: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights that are used, under mmsegmentation's keys.

    Args:
        layer: how the keys of a layer of the encoder begin; its only group is the layer's number.
    """
    used = {key: value for key, value in weights.items() if not key.startswith(UNUSED)}
    used = packed(
        used, rf"{layer}attention\.attention\.(query|key|value)\.(weight|bias)", rf"{OURS}attn.attn.in_proj_\3"
    )
    return all_renamed(used, lambda key: renamed(key, names))


def _weights(weights: Mapping[str, Tensor], _: Mapping[str, Any]) -> dict[str, Tensor]:
    return packed_renamed(weights, LAYER, {**ENCODER, **NECK, **HEAD})


DPT = Family(
    architecture="DPTForSemanticSegmentation",
    carried=CARRIED,
    only={
        **ONLY,
        "use_batch_norm_in_fusion_residual": (True,),
        "use_bias_in_fusion_residual": (None, False),
        "backbone_config": (None,),
    },
    harmless=HARMLESS | {"add_projection"},  # of the depth head
    model=_model,
    weights=_weights,
    processors=PROCESSORS,
    processor=PROCESSOR,
)

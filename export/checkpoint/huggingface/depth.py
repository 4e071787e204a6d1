"""DPTForDepthEstimation and DepthAnythingForDepthEstimation as heads for depth on mmsegmentation's ViT, or on DINOv2.

Sources: transformers 4.57 and 5.24, ``models/{dpt,depth_anything,dinov2}``; ``conversion_mapping.py`` for the names of
both generations. transformers' own DPT takes square inputs only; this network any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from denseport.export.checkpoint.huggingface import dpt
from denseport.export.checkpoint.huggingface.family import GENERIC, OF_TEXT, Family, all_renamed, renamed

__all__ = ["DEPTH_ANYTHING", "DPT_DEPTH"]

LAYER, OURS = r"backbone\.encoder\.layer\.(\d+)\.", r"backbone.layers.\1."
FIVE_TO_FOUR = {
    rf"({LAYER})attention\.q_proj\.": r"\1attention.attention.query.",
    rf"({LAYER})attention\.k_proj\.": r"\1attention.attention.key.",
    rf"({LAYER})attention\.v_proj\.": r"\1attention.attention.value.",
    rf"({LAYER})attention\.o_proj\.": r"\1attention.output.dense.",
}
DINOV2 = {
    r"backbone\.embeddings\.cls_token$": "backbone.cls_token",
    r"backbone\.embeddings\.position_embeddings$": "backbone.pos_embed",
    r"backbone\.embeddings\.patch_embeddings\.": "backbone.patch_embed.",
    rf"{LAYER}norm(\d)\.": rf"{OURS}ln\2.",
    rf"{LAYER}attention\.output\.dense\.": rf"{OURS}attn.attn.out_proj.",
    rf"{LAYER}layer_scale(\d)\.lambda1$": rf"{OURS}ls\2.gamma",
    rf"{LAYER}mlp\.fc1\.": rf"{OURS}ffn.layers.0.0.",
    rf"{LAYER}mlp\.fc2\.": rf"{OURS}ffn.layers.1.",
    r"backbone\.layernorm\.": "backbone.ln1.",
}
HEAD = {
    r"head\.head\.": "decode_head.head.",
    r"head\.projection\.": "decode_head.projection.conv.",
    r"head\.conv1\.": "decode_head.output_conv1.",
    r"head\.conv2\.": "decode_head.output_conv2.0.",
    r"head\.conv3\.": "decode_head.output_conv2.2.",
}
# Keys of ``backbone_config``, as `Family` has those of config.json.
DINOV2_KNOWN = frozenset(
    f"backbone_config.{key}"
    for key in GENERIC | OF_TEXT | {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "layer_norm_eps", "image_size",
        "patch_size", "num_channels", "qkv_bias", "out_indices", "out_features", "stage_names", "apply_layernorm",
        "layerscale_value", "drop_path_rate", "use_mask_token",  # of training
        "reshape_hidden_states",  # what its code does to the same numbers
        "architectures",
    }
)  # fmt: skip
DINOV2_ONLY: dict[str, tuple[Any, ...]] = {
    "backbone_config.model_type": ("dinov2",),
    "backbone_config.hidden_act": ("gelu",),
    "backbone_config.use_swiglu_ffn": (False,),
    "backbone_config.pruned_heads": ({},),
}


def _dinov2(own: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder in mmsegmentation's words; defaults are those of transformers' Dinov2Config."""
    layers = own.get("num_hidden_layers", 12)
    return {
        "type": "VisionTransformer",
        "img_size": own.get("image_size", 224),
        "patch_size": own.get("patch_size", 14),
        "in_channels": own.get("num_channels", 3),
        "embed_dims": own.get("hidden_size", 768),
        "num_layers": layers,
        "num_heads": own.get("num_attention_heads", 12),
        "mlp_ratio": own.get("mlp_ratio", 4),
        "qkv_bias": own.get("qkv_bias", True),
        "out_indices": _taps(own, layers),
        "norm_cfg": {"type": "LN", "eps": own.get("layer_norm_eps", 1e-6)},
        "interpolate_mode": "bicubic",
        "with_cls_token": True,
        "patch_bias": True,
    }


def _taps(own: Mapping[str, Any], layers: int) -> list[int]:
    """The layers that feed the head, from 0.

    ``out_indices`` count from 1, below 0 from the last; 0 is the embedding. ``out_features`` say the same by name.
    """
    indices, features = own.get("out_indices"), own.get("out_features")
    named = (
        None if features is None else [0 if name == "stem" else int(name.removeprefix("stage")) for name in features]
    )
    if indices is None and named is None:
        indices = [layers]
    counted = None if indices is None else [i + layers + 1 if i < 0 else i for i in indices]
    if counted is not None and named is not None and counted != named:
        raise ValueError(f"out_indices {indices} and out_features {features} differ")
    taps = counted or named or []
    if not all(1 <= i <= layers for i in taps):
        raise ValueError(f"out_indices {indices}, out_features {features} name more than the {layers} layers")
    return [i - 1 for i in taps]


def _dpt(config: Mapping[str, Any]) -> dict[str, Any]:
    own = config.get("backbone_config")
    norm, bias = config.get("use_batch_norm_in_fusion_residual", False), config.get("use_bias_in_fusion_residual")
    settings = {
        "unit_norm": norm,
        "unit_bias": not norm if bias is None else bias,
        "projects": config.get("add_projection", False),
    }
    backbone = dpt.vit_backbone(config) if own is None else _dinov2(own)
    return dpt.network(backbone, "DPTDepthHead", config, **settings)


def _depth_anything(config: Mapping[str, Any]) -> dict[str, Any]:
    own, kind = config["backbone_config"], config.get("depth_estimation_type", "relative")
    largest = config.get("max_depth") or 1  # transformers multiplies by it, whatever the kind
    if config.get("patch_size", 14) != own.get("patch_size", 14):
        raise ValueError(f"patch_size {config.get('patch_size')} is not that of backbone_config")
    if kind != "metric" and largest != 1:
        raise ValueError(f"max_depth {largest} of a relative depth")
    settings = {
        "channels": config.get("fusion_hidden_size", 64),
        "post_process_channels": config.get("neck_hidden_sizes", [48, 96, 192, 384]),
        "readout_type": "ignore",
        "depth": {"metric": "metres"}.get(kind, kind),
        **({"max_depth": largest} if kind == "metric" else {}),
    }
    return dpt.network(_dinov2(own), "DepthAnythingHead", config, **settings)


def _weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    own, unused = config.get("backbone_config"), ["backbone.embeddings.mask_token"]
    if own is not None and not own.get("apply_layernorm", True):
        unused.append("backbone.layernorm.")
    used = {key: value for key, value in weights.items() if not key.startswith(tuple(unused))}
    four = all_renamed(used, lambda key: renamed(key, FIVE_TO_FOUR))
    layer, encoder = (dpt.LAYER, dpt.ENCODER) if own is None else (LAYER, DINOV2)
    return dpt.packed_renamed(four, layer, {**encoder, **dpt.NECK, **HEAD})


DPT_DEPTH = Family(
    architecture="DPTForDepthEstimation",
    carried=dpt.CARRIED
    | DINOV2_KNOWN
    | {
        "backbone_config", "add_projection", "use_batch_norm_in_fusion_residual", "use_bias_in_fusion_residual",
    },
    only={**dpt.ONLY, **DINOV2_ONLY},
    harmless=dpt.HARMLESS,
    model=_dpt,
    weights=_weights,
    processors=dpt.PROCESSORS,
    processor=dpt.PROCESSOR,
)  # fmt: skip
DEPTH_ANYTHING = Family(
    architecture="DepthAnythingForDepthEstimation",
    carried=DINOV2_KNOWN
    | {
        "backbone_config", "patch_size", "reassemble_hidden_size", "neck_hidden_sizes", "fusion_hidden_size",
        "head_hidden_size", "depth_estimation_type", "max_depth",
    },
    only={
        "model_type": ("depth_anything",),
        "backbone": (None,),
        "reassemble_factors": ([4, 2, 1, 0.5],),
        "head_in_index": (-1,),
        **DINOV2_ONLY,
    },
    harmless=frozenset({"backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone"}),
    model=_depth_anything,
    weights=_weights,
    processors=dpt.PROCESSORS,
    processor=dpt.PROCESSOR,
)  # fmt: skip

"""Every key that ``model`` of a configuration may hold, of mmsegmentation 0.30 and 1.2, and what becomes of it.

A key or a value that is not here is refused by name: it may change the mask. docs/settings.md quotes this table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CARRIED", "MODEL", "SHOWN", "TRAINING", "Config", "Only", "last_part", "unsupported"]

# Remedies.
OTHER = "No other value gives this network's masks: run it with mmsegmentation, or train with the supported value."
UNKNOWN = "Remove it from the configuration if only your own code knows it and it changes no prediction."

SHOWN = "the weights show it"
CARRIED = "carried out"
TRAINING = "changes no prediction"


@dataclass(frozen=True)
class Only:
    """A setting that has one meaning here: the values that mean it. Other values are refused."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Config:
    """A nested dict such as ``norm_cfg``: its keys, and whether it may be None."""

    keys: Mapping[str, Any]
    optional: bool = False


Rule = str | Only | Config

CONV = Config({"type": Only(("Conv2d", "Conv"))}, optional=True)
RELU = Config({"type": Only(("ReLU",)), "inplace": TRAINING})
GELU = Config({"type": Only(("GELU",)), "approximate": Only(("none",))})
_NORM: dict[str, Rule] = {"requires_grad": TRAINING, "eps": CARRIED}
LAYER_NORM = Config({"type": Only(("LN", "LayerNorm")), **_NORM, "elementwise_affine": Only((True,))})
BATCH_NORM = Config(
    {
        "type": Only(("BN", "BN2d", "SyncBN", "MMSyncBN", "BatchNorm2d", "SyncBatchNorm")),
        **_NORM,
        "momentum": TRAINING,
        "affine": Only((True,)),
        "track_running_stats": Only((True,)),
    }
)
_HEAD: dict[str, Rule] = {
    "in_channels": SHOWN,
    "channels": SHOWN,
    "num_classes": SHOWN,
    "out_channels": SHOWN,
    "threshold": CARRIED,
    "dropout_ratio": TRAINING,
    "conv_cfg": CONV,
    "norm_cfg": BATCH_NORM,
    "act_cfg": RELU,
    "in_index": CARRIED,
    "input_transform": Only(("multiple_select",)),
    "loss_decode": TRAINING,
    "ignore_index": TRAINING,
    "sampler": TRAINING,
    "align_corners": CARRIED,
    "init_cfg": TRAINING,
}
# Not mmsegmentation's: readers of other files say so what these networks are.
_DEPTH: dict[str, Rule] = {
    **{key: _HEAD[key] for key in ("channels", "in_index", "align_corners", "norm_cfg")},
    "post_process_channels": SHOWN,
    "readout_type": CARRIED,
    "unit_norm": SHOWN,
    "unit_bias": SHOWN,
    "depth": CARRIED,
}
_ONE_LEVEL: dict[str, Rule] = {**_HEAD, "input_transform": Only((None,))}
_DROPS: dict[str, Rule] = dict.fromkeys(("drop_rate", "attn_drop_rate", "drop_path_rate"), TRAINING)
_HEADS: dict[str, dict[str, Rule]] = {
    "DPTHead": {
        **_HEAD,
        "embed_dims": SHOWN,
        "post_process_channels": SHOWN,
        "readout_type": CARRIED,
        "patch_size": TRAINING,  # upstream does not read it
        "expand_channels": Only((False,)),
    },
    "DPTDepthHead": {**_DEPTH, "projects": SHOWN, "inversion": CARRIED},
    "DepthAnythingHead": {**_DEPTH, "max_depth": CARRIED},
    "UPerHead": {**_HEAD, "pool_scales": CARRIED},
    "SETRUPHead": {
        **_ONE_LEVEL,
        "norm_layer": LAYER_NORM,
        "num_convs": SHOWN,
        "kernel_size": SHOWN,
        "up_scale": CARRIED,
    },
    "SETRMLAHead": {**_HEAD, "mla_channels": SHOWN, "up_scale": CARRIED},
    "SegmenterMaskTransformerHead": {
        **_ONE_LEVEL,
        **_DROPS,
        "channels": TRAINING,  # of a convolution that upstream deletes
        "threshold": Only((None,)),
        "norm_cfg": LAYER_NORM,
        "act_cfg": GELU,
        "num_layers": SHOWN,
        "num_heads": CARRIED,
        "embed_dims": SHOWN,
        "mlp_ratio": SHOWN,
        "num_fcs": Only((2,)),
        "qkv_bias": SHOWN,
        "init_std": TRAINING,
    },
    "FCNHead": {
        **_ONE_LEVEL,
        "num_convs": Only((0,)),
        "concat_input": Only((False,)),
        # Of convolutions, of which there are none.
        **dict.fromkeys(("kernel_size", "dilation", "conv_cfg", "norm_cfg", "act_cfg"), TRAINING),
    },
    "SegformerHead": {**_HEAD, "interpolate_mode": Only(("bilinear",))},
}
_BACKBONE: dict[str, Rule] = {
    "img_size": CARRIED,
    "patch_size": SHOWN,
    "patch_pad": Only(("corner",)),
    "patch_bias": SHOWN,
    "patch_norm": Only((False,)),
    "in_channels": SHOWN,
    "embed_dims": SHOWN,
    "num_layers": SHOWN,
    "num_heads": CARRIED,
    "mlp_ratio": SHOWN,
    "num_fcs": Only((2,)),
    "qkv_bias": SHOWN,
    "out_origin": Only((False,)),
    "out_indices": CARRIED,
    "with_cls_token": CARRIED,
    "output_cls_token": SHOWN,  # DPT has it, UPerNet cannot
    "norm_cfg": LAYER_NORM,
    "act_cfg": GELU,
    "pre_norm": Only((False,)),
    "final_norm": SHOWN,
    "interpolate_mode": CARRIED,
    **_DROPS,
    **dict.fromkeys(("norm_eval", "with_cp", "frozen_exclude", "pretrained", "init_cfg"), TRAINING),
    "frozen_stages": TRAINING,  # of forks, after upstream's other backbones
}
_MIT: dict[str, Rule] = {
    **dict.fromkeys(("in_channels", "embed_dims", "num_stages", "num_layers", "patch_sizes", "sr_ratios"), SHOWN),
    **dict.fromkeys(("num_heads", "strides", "out_indices"), CARRIED),
    "mlp_ratio": SHOWN,
    "qkv_bias": SHOWN,
    "norm_cfg": LAYER_NORM,
    "act_cfg": GELU,
    **_DROPS,
    **dict.fromkeys(("with_cp", "pretrained", "init_cfg"), TRAINING),
}
_MLA: dict[str, Rule] = {
    "in_channels": SHOWN,
    "out_channels": SHOWN,
    "norm_layer": LAYER_NORM,
    "norm_cfg": BATCH_NORM,
    "act_cfg": Config(RELU.keys, optional=True),
}
_NECK: dict[str, Rule] = {
    "in_channels": SHOWN,
    "out_channels": SHOWN,
    "scales": CARRIED,
    "norm_cfg": Only((None,)),
    "act_cfg": Only((None,)),
}
_SEGMENTOR: dict[str, Rule] = {
    "backbone": CARRIED,
    "neck": CARRIED,
    "decode_head": CARRIED,
    "auxiliary_head": TRAINING,
    "data_preprocessor": CARRIED,
    "test_cfg": CARRIED,
    **dict.fromkeys(("train_cfg", "pretrained", "init_cfg"), TRAINING),
}
# Part of the network, "" for the whole: the types that there are, and the keys of each.
MODEL: dict[str, dict[str, dict[str, Rule]]] = {
    "": {"EncoderDecoder": _SEGMENTOR},
    "backbone": {"VisionTransformer": _BACKBONE, "MixVisionTransformer": _MIT},
    "neck": {"MultiLevelNeck": _NECK, "MLANeck": _MLA},
    "decode_head": _HEADS,
}


def last_part(kind: Any) -> Any:
    """The name of a type without its scope or path: ``mmseg.models.backbones.vit.VisionTransformer``."""
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind


def unsupported(part: str, settings: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """What is not supported among the settings of a part of the network of a known type, and the remedy, in words."""
    keys: dict[str, Rule] = {"type": SHOWN, "_scope_": TRAINING, **MODEL[part][kind]}
    yield from _unsupported(f"model.{part}".rstrip("."), settings, keys, kind)


def _unsupported(
    name: str, settings: Mapping[str, Any], keys: Mapping[str, Rule], kind: str
) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        rule, at = keys.get(key), f"{name}.{key}"
        if rule is None:
            whose = kind if "Depth" in kind else f"mmsegmentation's {kind}"
            yield f"{at} is {value!r}: {whose} has no such setting, and it may change the result", UNKNOWN
        elif isinstance(rule, Config):
            if isinstance(value, Mapping):
                yield from _unsupported(at, value, rule.keys, key)
            elif value is not None or not rule.optional:
                yield f"{at} is {value!r}; only type={rule.keys['type'].values[0]!r} is supported", OTHER
        elif isinstance(rule, Only):
            value = last_part(value) if key == "type" else value
            if not any(type(value) is type(allowed) and value == allowed for allowed in rule.values):
                yield f"{at} is {value!r}; only {rule.values[0]!r} is supported", OTHER

"""The published models: what they are and what they scored on ADE20K.

Names are those of the released weights (``upernet_deit-s16_ln_mln_512x512_160k_ade20k_….pth``) without crop and data
set. Figures: mmsegmentation's model zoo, V100, one image at a time; the mIoU was measured on whole images at keep-ratio
2048 x 512, ms + flip over ratios 0.5 to 1.75 of that scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from denseport.export.models.head_spec import DPTHeadSpec, UPerHeadSpec
from denseport.export.models.spec import ModelSpec, NeckSpec, ViTSpec, quarters

__all__ = ["PRESETS", "Preset", "find"]


@dataclass(frozen=True)
class Preset:
    """One row of the published tables."""

    name: str
    config: str  # upstream's configuration file, without .py
    backbone: str  # as the tables write it
    schedule: int  # training iterations
    mIoU: float  # percent, single scale
    mIoU_ms_flip: float  # percent, multi-scale and flip
    fps: float  # images per second, V100
    memory_gb: float  # while training, per GPU
    sha256_start: str  # first 8 hex digits of the released file
    spec: ModelSpec


def _vit(size: str, *, grid: int, eps: float, final_norm: bool = False) -> ViTSpec:
    dims, layers = {"S": (384, 12), "B": (768, 12), "L": (1024, 24)}[size]
    return ViTSpec(
        embed_dims=dims,
        num_layers=layers,
        num_heads=dims // 64,
        mlp_dims=4 * dims,
        out_indices=quarters(layers),
        pos_grid=(grid, grid),
        norm_eps=eps,
        final_norm=final_norm,
    )


def _dpt(size: str, *, grid: int, widths: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(_vit(size, grid=grid, eps=1e-5), None, DPTHeadSpec(256, widths), num_classes=150)


def _upernet(size: str, *, neck: bool = False, norm: bool = False) -> ModelSpec:
    backbone = _vit(size, grid=32, eps=1e-6, final_norm=norm)
    return ModelSpec(backbone, NeckSpec(backbone.embed_dims) if neck else None, UPerHeadSpec(512), num_classes=150)


_DPT_B = _dpt("B", grid=14, widths=(96, 192, 384, 768))
_DPT_L = _dpt("L", grid=24, widths=(256, 512, 1024, 1024))
_S, _S_MLN, _S_LN_MLN = _upernet("S"), _upernet("S", neck=True), _upernet("S", neck=True, norm=True)
_B, _B_MLN, _B_LN_MLN = _upernet("B"), _upernet("B", neck=True), _upernet("B", neck=True, norm=True)

# fmt: off
_TABLE = [
    Preset("dpt_vit-b16_160k",             "dpt_vit-b16_8xb2-160k_ade20k-512x512",                 "ViT-B",             160_000,    46.97, 48.34,   10.41, 8.09,  "db31cf52", _DPT_B),
    Preset("dpt_vit-l16_160k",             "dpt_vit-l16_8xb2-160k_ade20k-512x512",                 "ViT-L",             160_000,    46.19, 46.97,   4.36,  18.37, "7b753ca6", _DPT_L),
    Preset("upernet_vit-b16_mln_80k",      "vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512",      "ViT-B + MLN",       80_000,     47.71, 49.51,   6.94,  9.20,  "0403cee1", _B_MLN),
    Preset("upernet_vit-b16_mln_160k",     "vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512",     "ViT-B + MLN",       160_000,    46.75, 48.46,   7.58,  9.20,  "852fa768", _B_MLN),
    Preset("upernet_vit-b16_ln_mln_160k",  "vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512",  "ViT-B + LN + MLN",  160_000,    47.73, 49.95,   6.82,  9.21,  "f444c077", _B_LN_MLN),
    Preset("upernet_deit-s16_80k",         "vit_deit-s16_upernet_8xb2-80k_ade20k-512x512",         "DeiT-S",            80_000,     42.96, 43.79,   29.85, 4.68,  "afc93ec2", _S),
    Preset("upernet_deit-s16_160k",        "vit_deit-s16_upernet_8xb2-160k_ade20k-512x512",        "DeiT-S",            160_000,    42.87, 43.79,   29.19, 4.68,  "5110d916", _S),
    Preset("upernet_deit-s16_mln_160k",    "vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512",    "DeiT-S + MLN",      160_000,    43.82, 45.07,   11.18, 5.69,  "fb9a5dfb", _S_MLN),
    Preset("upernet_deit-s16_ln_mln_160k", "vit_deit-s16-ln_mln_upernet_8xb2-160k_ade20k-512x512", "DeiT-S + LN + MLN", 160_000,    43.52, 45.01,   12.39, 5.69,  "c0cd652f", _S_LN_MLN),
    Preset("upernet_deit-b16_80k",         "vit_deit-b16_upernet_8xb2-80k_ade20k-512x512",         "DeiT-B",            80_000,     45.24, 46.73,   9.69,  7.75,  "1e090789", _B),
    Preset("upernet_deit-b16_160k",        "vit_deit-b16_upernet_8xb2-160k_ade20k-512x512",        "DeiT-B",            160_000,    45.36, 47.16,   10.39, 7.75,  "828705d7", _B),
    Preset("upernet_deit-b16_mln_160k",    "vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512",    "DeiT-B + MLN",      160_000,    45.46, 47.16,   7.78,  9.21,  "4e1450f3", _B_MLN),
    Preset("upernet_deit-b16_ln_mln_160k", "vit_deit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512", "DeiT-B + LN + MLN", 160_000,    45.37, 47.23,   7.75,  9.21,  "8a959c14", _B_LN_MLN),
]
# fmt: on
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}


def find(*, sha256: str, names: tuple[str, ...]) -> tuple[Preset | None, str]:
    """The preset that a checkpoint is, and how it was recognised; (None, "") when it is none of them.

    Args:
        sha256: hash of the file; the released files carry its start in their names.
        names: file name and experiment name, to be matched with the names of released weights.
    """
    for preset in PRESETS.values():
        if sha256.startswith(preset.sha256_start):
            return preset, "hash of the released file"
    for preset in PRESETS.values():
        stem, schedule = preset.name.rsplit("_", 1)
        released = f"{stem}_512x512_{schedule}_ade20k"
        for name in names:
            if name.startswith((released, preset.config)):
                return preset, f"the name {name!r}"
    return None, ""

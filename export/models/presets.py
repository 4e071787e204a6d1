"""The published models: what they are and what they scored on ADE20K.

Names are those of the released weights (``upernet_deit-s16_ln_mln_512x512_160k_ade20k_….pth``) without crop
and data set. Figures: mmsegmentation's model zoo, V100, one image at a time; the mIoU was measured on
whole images at keep-ratio (2048, 512), ms + flip over ratios 0.5 to 1.75 of that scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from denseport.export.models.spec import DPTHeadSpec, ModelSpec, NeckSpec, UPerHeadSpec, ViTSpec

__all__ = ["PRESETS", "Preset", "find"]


@dataclass(frozen=True)
class Preset:
    """One row of the published tables."""

    name: str
    config: str  # upstream's configuration file, without .py
    method: str  # "DPT" or "UPerNet"
    backbone: str  # as the tables write it
    schedule: int  # training iterations
    spec: ModelSpec
    miou: float | None  # percent, single scale
    miou_ms_flip: float | None  # percent, multi-scale and flip
    fps: float | None  # images per second, V100
    memory_gb: float | None  # while training, per GPU
    sha256_start: str | None  # first 8 hex digits of the released file; None where none was released


def _vit(size: str, *, grid: int, eps: float, final_norm: bool = False) -> ViTSpec:
    dims, layers, out_indices = {
        "S": (384, 12, (2, 5, 8, 11)),
        "B": (768, 12, (2, 5, 8, 11)),
        "L": (1024, 24, (5, 11, 17, 23)),
    }[size]
    return ViTSpec(
        embed_dims=dims,
        num_layers=layers,
        num_heads=dims // 64,
        mlp_dims=4 * dims,
        out_indices=out_indices,
        pos_grid=(grid, grid),
        norm_eps=eps,
        final_norm=final_norm,
    )


def _dpt(size: str, *, grid: int, widths: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(_vit(size, grid=grid, eps=1e-5), None, DPTHeadSpec(256, widths), num_classes=150)


def _upernet(size: str, *, neck: bool, norm: bool) -> ModelSpec:
    backbone = _vit(size, grid=32, eps=1e-6, final_norm=norm)
    return ModelSpec(backbone, NeckSpec(backbone.embed_dims) if neck else None, UPerHeadSpec(512), num_classes=150)


_DPT_B = _dpt("B", grid=14, widths=(96, 192, 384, 768))
_DPT_L = _dpt("L", grid=24, widths=(256, 512, 1024, 1024))
_S = _upernet("S", neck=False, norm=False)
_S_MLN = _upernet("S", neck=True, norm=False)
_S_LN_MLN = _upernet("S", neck=True, norm=True)
_B = _upernet("B", neck=False, norm=False)
_B_MLN = _upernet("B", neck=True, norm=False)
_B_LN_MLN = _upernet("B", neck=True, norm=True)

# fmt: off
_ROWS = [
    #  stem (released weights)    config (upstream)                method     backbone              spec      k    mIoU   ms+flip  fps    GB     sha256
    ("dpt_vit-b16",             "dpt_vit-b16",                   "DPT",     "ViT-B",              _DPT_B,    160, 46.97, 48.34,  10.41, 8.09,  "db31cf52"),
    ("dpt_vit-l16",             "dpt_vit-l16",                   "DPT",     "ViT-L",              _DPT_L,    160, 46.19, 46.97,  4.36,  18.37, "7b753ca6"),
    ("upernet_vit-b16_mln",     "vit_vit-b16_mln_upernet",       "UPerNet", "ViT-B + MLN",        _B_MLN,    80,  47.71, 49.51,  6.94,  9.20,  "0403cee1"),
    ("upernet_vit-b16_mln",     "vit_vit-b16_mln_upernet",       "UPerNet", "ViT-B + MLN",        _B_MLN,    160, 46.75, 48.46,  7.58,  9.20,  "852fa768"),
    ("upernet_vit-b16_ln_mln",  "vit_vit-b16-ln_mln_upernet",    "UPerNet", "ViT-B + LN + MLN",   _B_LN_MLN, 160, 47.73, 49.95,  6.82,  9.21,  "f444c077"),
    ("upernet_deit-s16",        "vit_deit-s16_upernet",          "UPerNet", "DeiT-S",             _S,        80,  42.96, 43.79,  29.85, 4.68,  "afc93ec2"),
    ("upernet_deit-s16",        "vit_deit-s16_upernet",          "UPerNet", "DeiT-S",             _S,        160, 42.87, 43.79,  29.19, 4.68,  "5110d916"),
    ("upernet_deit-s16_mln",    "vit_deit-s16_mln_upernet",      "UPerNet", "DeiT-S + MLN",       _S_MLN,    160, 43.82, 45.07,  11.18, 5.69,  "fb9a5dfb"),
    ("upernet_deit-s16_ln_mln", "vit_deit-s16-ln_mln_upernet",   "UPerNet", "DeiT-S + LN + MLN",  _S_LN_MLN, 160, 43.52, 45.01,  12.39, 5.69,  "c0cd652f"),
    ("upernet_deit-b16",        "vit_deit-b16_upernet",          "UPerNet", "DeiT-B",             _B,        80,  45.24, 46.73,  9.69,  7.75,  "1e090789"),
    ("upernet_deit-b16",        "vit_deit-b16_upernet",          "UPerNet", "DeiT-B",             _B,        160, 45.36, 47.16,  10.39, 7.75,  "828705d7"),
    ("upernet_deit-b16_mln",    "vit_deit-b16_mln_upernet",      "UPerNet", "DeiT-B + MLN",       _B_MLN,    160, 45.46, 47.16,  7.78,  9.21,  "4e1450f3"),
    ("upernet_deit-b16_ln_mln", "vit_deit-b16-ln_mln_upernet",   "UPerNet", "DeiT-B + LN + MLN",  _B_LN_MLN, 160, 45.37, 47.23,  7.75,  9.21,  "8a959c14"),
]
# fmt: on

PRESETS: dict[str, Preset] = {
    f"{stem}_{k}k": Preset(
        name=f"{stem}_{k}k",
        config=f"{config}_8xb2-{k}k_ade20k-512x512",
        method=method,
        backbone=backbone,
        schedule=k * 1000,
        spec=spec,
        miou=miou,
        miou_ms_flip=ms_flip,
        fps=fps,
        memory_gb=memory,
        sha256_start=sha256,
    )
    for stem, config, method, backbone, spec, k, miou, ms_flip, fps, memory, sha256 in _ROWS
}


def find(*, sha256: str, names: tuple[str, ...]) -> tuple[Preset, str] | None:
    """The preset that a checkpoint is, and how it was recognised; None when it is none of them.

    Args:
        sha256: hash of the file; the released files carry its start in their names.
        names: file name and experiment name, to be matched with the names of released weights.
    """
    for preset in PRESETS.values():
        if preset.sha256_start and sha256.startswith(preset.sha256_start):
            return preset, "hash of the released file"
    for preset in PRESETS.values():
        stem, schedule = preset.name.rsplit("_", 1)
        released = f"{stem}_512x512_{schedule}_ade20k"
        for name in names:
            if name.startswith((released, preset.config)):
                return preset, f"the name {name!r}"
    return None

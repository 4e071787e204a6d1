"""The published models: what they are, what they scored, where their weights are and under which licence.

Names are those of the released weights (``upernet_deit-s16_ln_mln_512x512_160k_ade20k_….pth``) without crop and, for
ADE20K, data set. Figures: mmsegmentation's model zoo (the metafiles of 1.2.2; images per second of 0.30), one image at a
time; the mIoU was measured as ``protocol`` says, ms + flip over ratios 0.5 to 1.75 of that scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from denseport.export.models.head_spec import (
    DepthAnythingHeadSpec,
    DPTDepthHeadSpec,
    DPTHeadSpec,
    LinearHeadSpec,
    MaskHeadSpec,
    SegformerHeadSpec,
    SETRMLAHeadSpec,
    SETRUPHeadSpec,
    UPerHeadSpec,
)
from denseport.export.models.spec import MiTSpec, MLANeckSpec, ModelSpec, NeckSpec, ViTSpec, quarters

__all__ = ["DEPTH_PRESETS", "PERMISSIVE", "PRESETS", "V2_LAYERS", "DepthPreset", "Preset", "find", "published"]

SERVER = "https://download.openmmlab.com/mmsegmentation/v0.5"
PERMISSIVE = "Apache-2.0"  # mmsegmentation's, of its weights
# https://github.com/NVlabs/SegFormer, README: "non-commercially, meaning for research or evaluation purposes only".
MIT_ENCODER = (
    "Apache-2.0 (mmsegmentation), but the encoder was trained from NVIDIA's MiT weights: research or evaluation only"
)
DIRECTORIES = {"DPT": "dpt", "UPerNet": "vit", "SETR": "setr", "Segmenter": "segmenter", "SegFormer": "segformer"}


@dataclass(frozen=True)
class Preset:
    """One row of the published tables."""

    name: str
    config: str  # upstream's configuration file, without .py
    backbone: str  # as the tables write it
    schedule: int  # training iterations
    mIoU: float  # percent, single scale
    mIoU_ms_flip: float  # percent, multi-scale and flip
    fps: float | None  # images per second, V100; None: not published
    memory_gb: float  # while training, per GPU
    file: str  # of the released weights; its last eight letters are the start of its SHA-256
    spec: ModelSpec
    dataset: str = "ADE20K"  # on whose validation images it was measured
    scale: tuple[int, int] = (2048, 512)  # limits of the longer and the shorter side of an image, pixels
    slide: tuple[int, int] | None = None  # side and stride of the windows, pixels; None: whole images
    licence: str = PERMISSIVE  # of the weights

    figures: ClassVar[dict[str, tuple[float, float]]] = {}  # of depth alone

    @property
    def released(self) -> str:
        """The file's name without date and hash: the name of its folder."""
        return re.sub(r"(_\d{8}_\d{6})?-[0-9a-f]{8}\.pth$", "", self.file)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called."""
        return self.name, self.released, self.config

    @property
    def sha256_start(self) -> str:
        """First 8 hex digits of the released file."""
        return self.file[-12:-4]

    @property
    def weights(self) -> str:
        """Where the released file is."""
        return f"{SERVER}/{DIRECTORIES[self.spec.architecture]}/{self.released}/{self.file}"

    @property
    def protocol(self) -> str:
        """How its mIoU was measured, in words."""
        how = "whole" if self.slide is None else f"slide {self.slide[0]}/{self.slide[1]}"
        ratios = "ms + flip: ratios 0.5 to 1.75 of that scale (0.x)"
        return f"{how}, keep-ratio {self.scale[0]} x {self.scale[1]}, single scale; {ratios}"


def _vit(size: str, *, grid: int, eps: float, final_norm: bool = False) -> ViTSpec:
    dims, layers = {"T": (192, 12), "S": (384, 12), "B": (768, 12), "L": (1024, 24)}[size]
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


def _setr_vit(grid: int) -> ViTSpec:
    return replace(_vit("L", grid=grid, eps=1e-6), interpolate_mode="bilinear", out_indices=(9, 14, 19, 23))


def _setr_naive(grid: int, classes: int) -> ModelSpec:
    return ModelSpec(_setr_vit(grid), None, SETRUPHeadSpec(256, kernel_size=1, in_index=(3,)), classes)


def _setr_pup(grid: int, classes: int) -> ModelSpec:
    return ModelSpec(_setr_vit(grid), None, SETRUPHeadSpec(256, num_convs=4, up_scale=2, in_index=(3,)), classes)


def _setr_mla(grid: int, classes: int) -> ModelSpec:
    backbone = replace(_setr_vit(grid), out_indices=quarters(24), with_cls_token=False)
    return ModelSpec(backbone, MLANeckSpec(256), SETRMLAHeadSpec(512, 128), classes)


def _segmenter(size: str, grid: int, *, linear: bool = False) -> ModelSpec:
    backbone = _vit(size, grid=grid, eps=1e-6, final_norm=True)
    dims = backbone.embed_dims
    mask = MaskHeadSpec(dims, num_layers=2, num_heads=dims // 64, mlp_dims=4 * dims, in_index=(0,))
    head = LinearHeadSpec(dims, in_index=(0,)) if linear else mask
    return ModelSpec(replace(backbone, out_indices=(backbone.num_layers - 1,)), None, head, num_classes=150)


def _segformer(size: int, classes: int) -> ModelSpec:
    layers = ((2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 18, 3), (3, 8, 27, 3), (3, 6, 40, 3))[size]
    dims = (64, 128, 320, 512) if size else (32, 64, 160, 256)
    backbone = MiTSpec(dims, layers, num_heads=(1, 2, 5, 8), mlp_dims=tuple(4 * width for width in dims))
    return ModelSpec(backbone, None, SegformerHeadSpec(256), classes)


_DPT_B = _dpt("B", grid=14, widths=(96, 192, 384, 768))
_DPT_L = _dpt("L", grid=24, widths=(256, 512, 1024, 1024))
_S, _S_MLN, _S_LN_MLN = _upernet("S"), _upernet("S", neck=True), _upernet("S", neck=True, norm=True)
_B, _B_MLN, _B_LN_MLN = _upernet("B"), _upernet("B", neck=True), _upernet("B", neck=True, norm=True)

# fmt: off
_TABLE = [
    Preset("dpt_vit-b16_160k",             "dpt_vit-b16_8xb2-160k_ade20k-512x512",                 "ViT-B",             160_000, 46.97, 48.34, 10.41, 8.09,  "dpt_vit-b16_512x512_160k_ade20k-db31cf52.pth",                             _DPT_B),
    Preset("dpt_vit-l16_160k",             "dpt_vit-l16_8xb2-160k_ade20k-512x512",                 "ViT-L",             160_000, 46.19, 46.97, 4.36,  18.37, "dpt_vit-l16_512x512_160k_ade20k-7b753ca6.pth",                             _DPT_L),
    Preset("upernet_vit-b16_mln_80k",      "vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512",      "ViT-B + MLN",       80_000,  47.71, 49.51, 6.94,  9.20,  "upernet_vit-b16_mln_512x512_80k_ade20k_20210624_130547-0403cee1.pth",      _B_MLN),
    Preset("upernet_vit-b16_mln_160k",     "vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512",     "ViT-B + MLN",       160_000, 46.75, 48.46, 7.58,  9.20,  "upernet_vit-b16_mln_512x512_160k_ade20k_20210624_130547-852fa768.pth",     _B_MLN),
    Preset("upernet_vit-b16_ln_mln_160k",  "vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512",  "ViT-B + LN + MLN",  160_000, 47.73, 49.95, 6.82,  9.21,  "upernet_vit-b16_ln_mln_512x512_160k_ade20k_20210621_172828-f444c077.pth",  _B_LN_MLN),
    Preset("upernet_deit-s16_80k",         "vit_deit-s16_upernet_8xb2-80k_ade20k-512x512",         "DeiT-S",            80_000,  42.96, 43.79, 29.85, 4.68,  "upernet_deit-s16_512x512_80k_ade20k_20210624_095228-afc93ec2.pth",         _S),
    Preset("upernet_deit-s16_160k",        "vit_deit-s16_upernet_8xb2-160k_ade20k-512x512",        "DeiT-S",            160_000, 42.87, 43.79, 29.19, 4.68,  "upernet_deit-s16_512x512_160k_ade20k_20210621_160903-5110d916.pth",        _S),
    Preset("upernet_deit-s16_mln_160k",    "vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512",    "DeiT-S + MLN",      160_000, 43.82, 45.07, 11.18, 5.69,  "upernet_deit-s16_mln_512x512_160k_ade20k_20210621_161021-fb9a5dfb.pth",    _S_MLN),
    Preset("upernet_deit-s16_ln_mln_160k", "vit_deit-s16-ln_mln_upernet_8xb2-160k_ade20k-512x512", "DeiT-S + LN + MLN", 160_000, 43.52, 45.01, 12.39, 5.69,  "upernet_deit-s16_ln_mln_512x512_160k_ade20k_20210621_161021-c0cd652f.pth", _S_LN_MLN),
    Preset("upernet_deit-b16_80k",         "vit_deit-b16_upernet_8xb2-80k_ade20k-512x512",         "DeiT-B",            80_000,  45.24, 46.73, 9.69,  7.75,  "upernet_deit-b16_512x512_80k_ade20k_20210624_130529-1e090789.pth",         _B),
    Preset("upernet_deit-b16_160k",        "vit_deit-b16_upernet_8xb2-160k_ade20k-512x512",        "DeiT-B",            160_000, 45.36, 47.16, 10.39, 7.75,  "upernet_deit-b16_512x512_160k_ade20k_20210621_180100-828705d7.pth",        _B),
    Preset("upernet_deit-b16_mln_160k",    "vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512",    "DeiT-B + MLN",      160_000, 45.46, 47.16, 7.78,  9.21,  "upernet_deit-b16_mln_512x512_160k_ade20k_20210621_191949-4e1450f3.pth",    _B_MLN),
    Preset("upernet_deit-b16_ln_mln_160k", "vit_deit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512", "DeiT-B + LN + MLN", 160_000, 45.37, 47.23, 7.75,  9.21,  "upernet_deit-b16_ln_mln_512x512_160k_ade20k_20210623_153535-8a959c14.pth", _B_LN_MLN),
    # SETR
    Preset("setr_vit-l_naive_160k",           "setr_vit-l_naive_8xb2-160k_ade20k-512x512",    "ViT-L", 160_000, 48.28, 49.56, 4.72, 18.40, "setr_naive_512x512_160k_b16_ade20k_20210619_191258-061f24f5.pth",              _setr_naive(32, 150), slide=(512, 341)),
    Preset("setr_vit-l_pup_160k",             "setr_vit-l_pup_8xb2-160k_ade20k-512x512",      "ViT-L", 160_000, 48.24, 49.99, 4.50, 19.54, "setr_pup_512x512_160k_b16_ade20k_20210619_191343-7e0ce826.pth",                _setr_pup(32, 150), slide=(512, 341)),
    Preset("setr_vit-l_mla_b8_160k",          "setr_vit-l-mla_8xb1-160k_ade20k-512x512",      "ViT-L", 160_000, 47.34, 49.05, None, 10.96, "setr_mla_512x512_160k_b8_ade20k_20210619_191118-c6d21df0.pth",                 _setr_mla(32, 150), slide=(512, 341)),
    Preset("setr_vit-l_mla_b16_160k",         "setr_vit-l_mla_8xb2-160k_ade20k-512x512",      "ViT-L", 160_000, 47.39, 49.37, 5.25, 17.30, "setr_mla_512x512_160k_b16_ade20k_20210619_191057-f9741de7.pth",                _setr_mla(32, 150), slide=(512, 341)),
    Preset("setr_vit-l_naive_cityscapes_80k", "setr_vit-l_naive_8xb1-80k_cityscapes-768x768", "ViT-L", 80_000,  78.10, 80.22, 0.39, 24.06, "setr_naive_vit-large_8x1_768x768_80k_cityscapes_20211123_000505-20728e80.pth", _setr_naive(48, 19), dataset="Cityscapes", scale=(2049, 1025), slide=(768, 512)),
    Preset("setr_vit-l_pup_cityscapes_80k",   "setr_vit-l_pup_8xb1-80k_cityscapes-768x768",   "ViT-L", 80_000,  79.21, 81.02, 0.37, 27.96, "setr_pup_vit-large_8x1_768x768_80k_cityscapes_20211122_155115-f6f37b8f.pth",   _setr_pup(48, 19), dataset="Cityscapes", scale=(2049, 1025), slide=(768, 512)),
    Preset("setr_vit-l_mla_cityscapes_80k",   "setr_vit-l_mla_8xb1-80k_cityscapes-768x768",   "ViT-L", 80_000,  77.00, 79.59, 0.41, 24.10, "setr_mla_vit-large_8x1_768x768_80k_cityscapes_20211119_101003-7f8dccbe.pth",   _setr_mla(48, 19), dataset="Cityscapes", scale=(2049, 1025), slide=(768, 512)),
    # Segmenter
    Preset("segmenter_vit-t_mask_160k",   "segmenter_vit-t_mask_8xb1-160k_ade20k-512x512", "ViT-T", 160_000, 39.99, 40.83, 27.98, 1.21,  "segmenter_vit-t_mask_8x1_512x512_160k_ade20k_20220105_151706-ffcf7509.pth",   _segmenter("T", 32), slide=(512, 480)),
    Preset("segmenter_vit-s_linear_160k", "segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512",  "ViT-S", 160_000, 45.75, 46.82, 28.07, 1.78,  "segmenter_vit-s_linear_8x1_512x512_160k_ade20k_20220105_151713-39658c46.pth", _segmenter("S", 32, linear=True), slide=(512, 480)),
    Preset("segmenter_vit-s_mask_160k",   "segmenter_vit-s_mask_8xb1-160k_ade20k-512x512", "ViT-S", 160_000, 46.19, 47.85, 24.80, 2.03,  "segmenter_vit-s_mask_8x1_512x512_160k_ade20k_20220105_151706-511bb103.pth",   _segmenter("S", 32), slide=(512, 480)),
    Preset("segmenter_vit-b_mask_160k",   "segmenter_vit-b_mask_8xb1-160k_ade20k-512x512", "ViT-B", 160_000, 49.60, 51.07, 13.20, 4.20,  "segmenter_vit-b_mask_8x1_512x512_160k_ade20k_20220105_151706-bc533b08.pth",   _segmenter("B", 32), slide=(512, 480)),
    Preset("segmenter_vit-l_mask_160k",   "segmenter_vit-l_mask_8xb1-160k_ade20k-512x512", "ViT-L", 160_000, 52.16, 53.65, None,  16.56, "segmenter_vit-l_mask_8x1_512x512_160k_ade20k_20220105_162750-7ef345be.pth",   _segmenter("L", 40), scale=(2560, 640), slide=(640, 608)),
    # SegFormer
    Preset("segformer_mit-b0_160k",            "segformer_mit-b0_8xb2-160k_ade20k-512x512",       "MiT-B0", 160_000, 37.41, 38.34, None,  2.10,  "segformer_mit-b0_512x512_160k_ade20k_20210726_101530-8ffa8fda.pth",           _segformer(0, 150), licence=MIT_ENCODER),
    Preset("segformer_mit-b1_160k",            "segformer_mit-b1_8xb2-160k_ade20k-512x512",       "MiT-B1", 160_000, 40.97, 42.54, None,  2.60,  "segformer_mit-b1_512x512_160k_ade20k_20210726_112106-d70e859d.pth",           _segformer(1, 150), licence=MIT_ENCODER),
    Preset("segformer_mit-b2_160k",            "segformer_mit-b2_8xb2-160k_ade20k-512x512",       "MiT-B2", 160_000, 45.58, 47.03, None,  3.60,  "segformer_mit-b2_512x512_160k_ade20k_20210726_112103-cbd414ac.pth",           _segformer(2, 150), licence=MIT_ENCODER),
    Preset("segformer_mit-b3_160k",            "segformer_mit-b3_8xb2-160k_ade20k-512x512",       "MiT-B3", 160_000, 47.82, 48.81, None,  4.80,  "segformer_mit-b3_512x512_160k_ade20k_20210726_081410-962b98d2.pth",           _segformer(3, 150), licence=MIT_ENCODER),
    Preset("segformer_mit-b4_160k",            "segformer_mit-b4_8xb2-160k_ade20k-512x512",       "MiT-B4", 160_000, 48.46, 49.76, None,  6.10,  "segformer_mit-b4_512x512_160k_ade20k_20210728_183055-7f509d7d.pth",           _segformer(4, 150), licence=MIT_ENCODER),
    Preset("segformer_mit-b5_160k",            "segformer_mit-b5_8xb2-160k_ade20k-512x512",       "MiT-B5", 160_000, 49.13, 50.22, 11.89, 7.20,  "segformer_mit-b5_512x512_160k_ade20k_20210726_145235-94cedf59.pth",           _segformer(5, 150), licence=MIT_ENCODER),
    Preset("segformer_mit-b5_640_160k",        "segformer_mit-b5_8xb2-160k_ade20k-640x640",       "MiT-B5", 160_000, 49.62, 50.36, None,  11.50, "segformer_mit-b5_640x640_160k_ade20k_20210801_121243-41d2845b.pth",           _segformer(5, 150), scale=(2048, 640), licence=MIT_ENCODER),
    Preset("segformer_mit-b0_cityscapes_160k", "segformer_mit-b0_8xb1-160k_cityscapes-1024x1024", "MiT-B0", 160_000, 76.54, 78.22, 4.74,  3.64,  "segformer_mit-b0_8x1_1024x1024_160k_cityscapes_20211208_101857-e7f88502.pth", _segformer(0, 19), dataset="Cityscapes", scale=(2048, 1024), slide=(1024, 768), licence=MIT_ENCODER),
    Preset("segformer_mit-b1_cityscapes_160k", "segformer_mit-b1_8xb1-160k_cityscapes-1024x1024", "MiT-B1", 160_000, 78.56, 79.73, 4.30,  4.49,  "segformer_mit-b1_8x1_1024x1024_160k_cityscapes_20211208_064213-655c7b3f.pth", _segformer(1, 19), dataset="Cityscapes", scale=(2048, 1024), slide=(1024, 768), licence=MIT_ENCODER),
    Preset("segformer_mit-b2_cityscapes_160k", "segformer_mit-b2_8xb1-160k_cityscapes-1024x1024", "MiT-B2", 160_000, 81.08, 82.18, 3.36,  7.42,  "segformer_mit-b2_8x1_1024x1024_160k_cityscapes_20211207_134205-6096669a.pth", _segformer(2, 19), dataset="Cityscapes", scale=(2048, 1024), slide=(1024, 768), licence=MIT_ENCODER),
    Preset("segformer_mit-b3_cityscapes_160k", "segformer_mit-b3_8xb1-160k_cityscapes-1024x1024", "MiT-B3", 160_000, 81.94, 83.14, 2.53,  10.86, "segformer_mit-b3_8x1_1024x1024_160k_cityscapes_20211206_224823-a8f8a177.pth", _segformer(3, 19), dataset="Cityscapes", scale=(2048, 1024), slide=(1024, 768), licence=MIT_ENCODER),
    Preset("segformer_mit-b4_cityscapes_160k", "segformer_mit-b4_8xb1-160k_cityscapes-1024x1024", "MiT-B4", 160_000, 81.89, 83.38, 1.88,  15.07, "segformer_mit-b4_8x1_1024x1024_160k_cityscapes_20211207_080709-07f6c333.pth", _segformer(4, 19), dataset="Cityscapes", scale=(2048, 1024), slide=(1024, 768), licence=MIT_ENCODER),
    Preset("segformer_mit-b5_cityscapes_160k", "segformer_mit-b5_8xb1-160k_cityscapes-1024x1024", "MiT-B5", 160_000, 82.25, 83.48, 1.39,  18.00, "segformer_mit-b5_8x1_1024x1024_160k_cityscapes_20211206_072934-87a052ec.pth", _segformer(5, 19), dataset="Cityscapes", scale=(2048, 1024), slide=(1024, 768), licence=MIT_ENCODER),
]
# fmt: on
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}

V2_LAYERS: Mapping[int, tuple[int, ...]] = {
    12: (2, 5, 8, 11),
    24: (4, 11, 17, 23),
    40: (9, 19, 29, 39),
}  # that feed Depth Anything V2's head; of all
NON_COMMERCIAL = "CC-BY-NC-4.0: no commercial use"
FINE_TUNED = "fine-tuned from weights under CC-BY-NC-4.0 (no commercial use); see its own model card"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class DepthPreset:
    """A published network for depth.

    Its figures are zero-shot, after the least-squares fit of scale and shift (Yang et al., "Depth Anything V2", table 2).
    The starts of hashes were read in public scripts that check downloads; no released file could be had here.
    """

    file: str  # that was released
    hub: str  # of the folder with the same weights on the Hugging Face hub; "" where there is none
    backbone: str
    sha256_start: str  # of the released file, 8 or 16 hex digits
    spec: ModelSpec  # as the released file's own code has it
    weights: str  # where the released file is
    nyu: tuple[float, float] | None = None  # AbsRel and d1 on NYUv2
    kitti: tuple[float, float] | None = None
    licence: str = PERMISSIVE

    dataset = "NYUv2 and KITTI"
    mIoU = mIoU_ms_flip = None

    @property
    def name(self) -> str:
        """The released file's, without its ending."""
        return self.file.rpartition(".")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called."""
        return self.name, self.hub

    @property
    def figures(self) -> dict[str, tuple[float, float]]:
        """AbsRel and d1, by data set."""
        found = {"NYUv2": self.nyu, "KITTI": self.kitti}
        return {name: pair for name, pair in found.items() if pair is not None}

    @property
    def protocol(self) -> str:
        """What was published, in words."""
        if not self.figures:
            return "no figure on NYUv2 or KITTI was published with these weights"
        said = (f"AbsRel {abs_rel:.3f}, d1 {d1:.3f} on {name}" for name, (abs_rel, d1) in self.figures.items())
        return f"zero-shot, scale and shift fitted to each image: {'; '.join(said)}"


# Depth Anything, by release: the names of the file and of the folder on the hub, where the file is, the largest depth
# in metres (None: relative), and the licence of all but the small one.
# fmt: off
_RELEASES: dict[str, tuple[str, str, str, float | None, str]] = {
    "V1":      ("depth_anything_vit{s}14",                  "depth-anything-{small}-hf",                   "spaces/LiheYoung/Depth-Anything/resolve/main/checkpoints",              None, PERMISSIVE),
    "V2":      ("depth_anything_v2_vit{s}",                 "Depth-Anything-V2-{Small}-hf",                "depth-anything/Depth-Anything-V2-{Small}/resolve/main",                 None, NON_COMMERCIAL),
    "Indoor":  ("depth_anything_v2_metric_hypersim_vit{s}", "Depth-Anything-V2-Metric-Indoor-{Small}-hf",  "depth-anything/Depth-Anything-V2-Metric-Hypersim-{Small}/resolve/main", 20.0, FINE_TUNED),
    "Outdoor": ("depth_anything_v2_metric_vkitti_vit{s}",   "Depth-Anything-V2-Metric-Outdoor-{Small}-hf", "depth-anything/Depth-Anything-V2-Metric-VKITTI-{Small}/resolve/main",   80.0, FINE_TUNED),
}
# By size: its word, the channels of the fusion, and of each level before it.
_SIZES = {
    "S": ("Small", 64, (48, 96, 192, 384)),
    "B": ("Base", 128, (96, 192, 384, 768)),
    "L": ("Large", 256, (256, 512, 1024, 1024)),
}
# fmt: on


def _depth_anything(release: str, size: str, sha256_start: str, **figures: tuple[float, float]) -> DepthPreset:
    word, channels, widths = _SIZES[size]
    *texts, max_depth, licence = _RELEASES[release]
    name, hub, place = (str(text).format(s=size.lower(), small=word.lower(), Small=word) for text in texts)
    vit = _vit(size, grid=37, eps=1e-6)
    last = tuple(range(vit.num_layers - 4, vit.num_layers))
    backbone = replace(
        vit,
        out_indices=last if release == "V1" else V2_LAYERS[vit.num_layers],
        patch_size=14,
        norm_outputs=True,
        layer_scale=True,
        keeps_equal_count=False,
        pos_offset=0.1,
        cuts_rest=True,
    )
    head = DepthAnythingHeadSpec(
        channels, widths, "ignore", unit_norm=False, unit_bias=True, depth_channels=32, max_depth=max_depth,
        align_corners=True,
    )  # fmt: skip
    spec, weights = ModelSpec(backbone, None, head, num_classes=0), f"{HUB}/{place}/{name}.pth"
    licence = PERMISSIVE if size == "S" else licence
    return DepthPreset(f"{name}.pth", hub, f"ViT-{size}", sha256_start, spec, weights, **figures, licence=licence)


def _midas() -> DepthPreset:
    vit = replace(_vit("L", grid=24, eps=1e-6), interpolate_mode="bilinear", keeps_equal_count=False, cuts_rest=True)
    head = DPTDepthHeadSpec(
        256, (256, 512, 1024, 1024), unit_norm=False, unit_bias=True, depth_channels=32, metres=False
    )  # fmt: skip
    spec, file = ModelSpec(vit, None, head, num_classes=0), "dpt_large-midas-2f21e586.pt"
    weights = f"https://github.com/isl-org/DPT/releases/download/1_0/{file}"
    return DepthPreset(file, "dpt-large", "ViT-L", "2f21e586", spec, weights, licence="MIT")


_DEPTH_TABLE = [
    _depth_anything("V1", "S", "59afe57cfd9f4284", nyu=(0.053, 0.972), kitti=(0.080, 0.936)),
    _depth_anything("V1", "B", "64ae214ae4e27424", nyu=(0.046, 0.979), kitti=(0.080, 0.939)),
    _depth_anything("V1", "L", "6c6a383e33e51c5f", nyu=(0.043, 0.981), kitti=(0.076, 0.947)),
    _depth_anything("V2", "S", "715fade13be8f229", nyu=(0.053, 0.973), kitti=(0.078, 0.936)),
    _depth_anything("V2", "B", "0d2b7002e62d39d6", nyu=(0.049, 0.976), kitti=(0.078, 0.939)),
    _depth_anything("V2", "L", "a7ea19fa0ed99244", nyu=(0.045, 0.979), kitti=(0.074, 0.946)),
    _depth_anything("Indoor", "S", "b782898d8a3e8be1"),
    _depth_anything("Indoor", "B", "9dc9e274c5eff55c"),
    _depth_anything("Indoor", "L", "6f82ff2bc543ac02"),
    _depth_anything("Outdoor", "S", "9203e538d35255c9"),
    _depth_anything("Outdoor", "B", "4dad67a7cc10b462"),
    _depth_anything("Outdoor", "L", "239b1054a369e66d"),
    _midas(),
]
DEPTH_PRESETS: dict[str, DepthPreset] = {preset.name: preset for preset in _DEPTH_TABLE}


def published() -> dict[str, Preset | DepthPreset]:
    """Every published model by its name."""
    return {**PRESETS, **DEPTH_PRESETS}


def find(*, sha256: str, names: tuple[str, ...]) -> tuple[Preset | DepthPreset | None, str]:
    """The preset that a checkpoint is, and how it was recognised; (None, "") when it is none of them.

    Args:
        sha256: hash of the file; the released files carry its start in their names.
        names: file name and experiment name, to be matched with the names of released weights. Of depth the whole name
            counts: what a fine-tuned file's name begins with does not say what its numbers mean.
    """
    for each in published().values():
        if sha256.startswith(each.sha256_start):
            return each, "hash of the released file"
    for preset in PRESETS.values():
        for name in names:
            if name.startswith((preset.released, preset.config)):
                return preset, f"the name {name!r}"
    for depth in DEPTH_PRESETS.values():
        for name in names:
            if name in (depth.hub, depth.file, f"{depth.name}.safetensors"):
                return depth, f"the name {name!r}"
    return None, ""

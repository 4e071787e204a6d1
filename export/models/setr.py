"""SETR's decode heads and neck (Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence
Perspective with Transformers", 2021): naive and progressive (PUP) upsampling, multi-level aggregation (MLA).

Follows ``mmseg/models/decode_heads/setr_up_head.py``, ``setr_mla_head.py`` and ``necks/mla_neck.py`` in arithmetic and
in parameter names. One rewrite is exact but for rounding; ``rewrite=False`` keeps upstream's order:

* The last convolution (1x1) runs before the last upsampling, on a quarter or a sixteenth of the pixels: it commutes
  with bilinear interpolation because the weights of each output sum to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.head_spec import SETRMLAHeadSpec, SETRUPHeadSpec
from denseport.export.models.layers import ConvModule, LayerNorm2d
from denseport.export.models.spec import MLANeckSpec

__all__ = ["MLAModule", "MLANeck", "SETRMLAHead", "SETRUPHead"]


class SETRUPHead(nn.Module):
    """One map (B, width, h, w) to logits (B, classes, h * s**n, w * s**n) by n convolutions, each upsampled s times."""

    def __init__(self, width: int, spec: SETRUPHeadSpec, num_classes: int, rewrite: bool = True) -> None:
        super().__init__()
        c = spec.channels
        self.scale, self.align_corners, self.rewrite = spec.up_scale, spec.align_corners, rewrite
        self.norm = LayerNorm2d(width, eps=spec.layer_eps)
        widths = [width] + [c] * (spec.num_convs - 1)
        self.up_convs = nn.ModuleList(nn.Sequential(ConvModule(w, c, spec.kernel_size)) for w in widths)
        self.conv_seg = nn.Conv2d(c, num_classes, 1)

    def upsample(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=self.align_corners)

    def forward(self, maps: list[Tensor]) -> Tensor:
        (features,) = maps
        x = self.norm(features)
        for i, conv in enumerate(self.up_convs):
            x = conv(self.upsample(x) if i else x)
        return self.upsample(self.conv_seg(x)) if self.rewrite else self.conv_seg(self.upsample(x))


class MLAModule(nn.Module):
    """Maps to one width; of each, with the sum of the deeper ones, a convolution; the deepest first."""

    def __init__(self, width: int, maps: int, spec: MLANeckSpec) -> None:
        super().__init__()
        c, relu = spec.out_channels, spec.relu
        self.channel_proj = nn.ModuleList(ConvModule(width, c, 1, relu=relu) for _ in range(maps))
        self.feat_extract = nn.ModuleList(ConvModule(c, c, 3, relu=relu) for _ in range(maps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        projected = [project(x) for project, x in zip(self.channel_proj, maps, strict=True)]
        total, outputs = projected[-1], []
        for i, extract in enumerate(self.feat_extract):
            total = total + projected[-1 - i] if i else total
            outputs.append(extract(total))
        return outputs


class MLANeck(nn.Module):
    """Maps of one size (B, width, h, w), the shallowest first, to as many (B, C, h, w), the deepest first."""

    def __init__(self, width: int, maps: int, spec: MLANeckSpec) -> None:
        super().__init__()
        self.norm = nn.ModuleList(LayerNorm2d(width, eps=spec.layer_eps) for _ in range(maps))
        self.mla = MLAModule(width, maps, spec)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return self.mla([norm(x) for norm, x in zip(self.norm, maps, strict=True)])


class SETRMLAHead(nn.Module):
    """Maps of one size (B, width, h, w), each convolved twice, joined, to logits (B, classes, h * s, w * s)."""

    def __init__(self, widths: Sequence[int], spec: SETRMLAHeadSpec, num_classes: int, rewrite: bool = True) -> None:
        super().__init__()
        c = spec.mla_channels
        self.scale, self.align_corners, self.rewrite = spec.up_scale, spec.align_corners, rewrite
        self.up_convs = nn.ModuleList(nn.Sequential(ConvModule(w, c, 3), ConvModule(c, c, 3)) for w in widths)
        self.conv_seg = nn.Conv2d(len(widths) * c, num_classes, 1)

    def upsample(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=self.align_corners)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = [convs(x) for convs, x in zip(self.up_convs, maps, strict=True)]
        if self.rewrite:
            return self.upsample(self.conv_seg(torch.cat(x, dim=1)))
        return self.conv_seg(torch.cat([self.upsample(each) for each in x], dim=1))

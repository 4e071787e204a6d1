"""SegFormer's decode head (Xie et al., "SegFormer: Simple and Efficient Design", 2021). Its backbone is in `mit`.

Follows ``mmseg/models/decode_heads/segformer_head.py`` in arithmetic and in parameter names. One rewrite is exact but
for rounding and saves half of the smallest network's work; ``rewrite=False`` keeps upstream's order:

* The fusion convolution (1x1) runs before the upsampling, on each level at its own size: it commutes with bilinear
  interpolation, and what it makes of joined maps is the sum of what its parts make of each. Its BatchNorm is a factor
  and a summand of each channel, which the weights and the first part's bias take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.head_spec import SegformerHeadSpec
from denseport.export.models.layers import ConvModule, resize

__all__ = ["FusionConv", "SegformerHead"]


class FusionConv(ConvModule):
    """1x1 convolution of maps (B, C, h_i, w_i), resized to the first one's size and joined, to (B, C, h_0, w_0)."""

    def __init__(self, channels: int, maps: int, align_corners: bool, rewrite: bool) -> None:
        super().__init__(maps * channels, channels, 1)
        self.channels, self.align_corners, self.rewrite = channels, align_corners, rewrite

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]
        if not self.rewrite:
            joined = torch.cat([resize(x, maps[0], self.align_corners) for x in maps], dim=1)
            return super().forward(joined)
        norm = self.bn
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight, c = self.conv.weight * factor[:, None, None, None], self.channels
        total = F.conv2d(maps[0], weight[:, :c], norm.bias - norm.running_mean * factor)
        for i, x in enumerate(maps[1:], start=1):
            part = F.conv2d(x, weight[:, i * c : (i + 1) * c])
            total = total + resize(part, total, self.align_corners)
        return self.relu(total)


class SegformerHead(nn.Module):
    """Maps of the backbone's stages, the finest first, to logits (B, classes, h, w) at the size of the first."""

    def __init__(self, widths: Sequence[int], spec: SegformerHeadSpec, num_classes: int, rewrite: bool = True) -> None:
        super().__init__()
        c = spec.channels
        norm = spec.level_norm
        self.convs = nn.ModuleList(ConvModule(width, c, 1, norm=norm, relu=norm, bias=not norm) for width in widths)
        self.fusion_conv = FusionConv(c, len(widths), spec.align_corners, rewrite)
        self.conv_seg = nn.Conv2d(c, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv_seg(self.fusion_conv([conv(x) for conv, x in zip(self.convs, maps, strict=True)]))

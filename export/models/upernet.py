"""UPerNet decode head (Xiao et al., 2018) and the MultiLevelNeck in front of it.

Follows ``mmseg/models/decode_heads/uper_head.py``, ``psp_head.py`` and ``necks/multilevel_neck.py`` in arithmetic
and in parameter names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.head_spec import UPerHeadSpec
from denseport.export.models.layers import ConvModule, resize
from denseport.export.models.operators import pyramid_matrix
from denseport.export.models.spec import NeckSpec

__all__ = ["MultiLevelNeck", "UPerHead"]


class MultiLevelNeck(nn.Module):
    """Maps of one size (B, D, h, w) to a pyramid: level i resized by ``scales[i]``; of one map, all levels."""

    def __init__(self, dims: int, levels: int, spec: NeckSpec) -> None:
        super().__init__()
        c = spec.out_channels
        self.scales = spec.scales
        self.lateral_convs = nn.ModuleList(
            ConvModule(dims, c, 1, norm=False, relu=False, bias=True) for _ in range(levels)
        )
        self.convs = nn.ModuleList(ConvModule(c, c, 3, norm=False, relu=False, bias=True) for _ in self.scales)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for x, lateral in zip(inputs, self.lateral_convs, strict=True)]
        maps = maps * len(self.scales) if len(maps) == 1 else maps
        return [
            conv(F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False))
            for x, scale, conv in zip(maps, self.scales, self.convs, strict=True)
        ]


class UPerHead(nn.Module):
    """Feature pyramid, finest first, to logits (B, classes, h0, w0) at the size of the finest map."""

    def __init__(self, dims: int, spec: UPerHeadSpec, num_classes: int) -> None:
        super().__init__()
        c, levels = spec.channels, len(spec.in_index)
        self.align_corners = spec.align_corners
        self.pool_scales = spec.pool_scales
        # The pooling itself is in `pyramid_pooling`; index 0 stands for upstream's AdaptiveAvgPool2d.
        self.psp_modules = nn.ModuleList(nn.Sequential(nn.Identity(), ConvModule(dims, c, 1)) for _ in spec.pool_scales)
        self.bottleneck = ConvModule(dims + len(spec.pool_scales) * c, c, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(dims, c, 1) for _ in range(levels - 1))
        self.fpn_convs = nn.ModuleList(ConvModule(c, c, 3) for _ in range(levels - 1))
        self.fpn_bottleneck = ConvModule(levels * c, c, 3)
        self.conv_seg = nn.Conv2d(c, num_classes, 1)

    def pyramid_pooling(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, C, h, w) with context pooled over k x k regions; sizes below for k = 1, 2, 3, 6."""
        h, w = x.shape[2:]
        rows = pyramid_matrix(h, self.pool_scales, like=x)  # (12, h)
        columns = pyramid_matrix(w, self.pool_scales, like=x)  # (12, w)
        pooled = rows @ x @ columns.T  # (B, D, 12, 12); its diagonal blocks are the pooled maps
        maps, at = [x], 0
        for scale, module in zip(self.pool_scales, self.psp_modules, strict=True):
            block = pooled[:, :, at : at + scale, at : at + scale]
            maps.append(resize(module(block), x, self.align_corners))
            at += scale
        return self.bottleneck(torch.cat(maps, dim=1))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[:-1], strict=True)]
        laterals.append(self.pyramid_pooling(inputs[-1]))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1], self.align_corners)
        maps = [*(conv(x) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)), laterals[-1]]
        maps[1:] = [resize(x, maps[0], self.align_corners) for x in maps[1:]]
        return self.conv_seg(self.fpn_bottleneck(torch.cat(maps, dim=1)))

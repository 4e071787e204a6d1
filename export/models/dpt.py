"""DPT's fusion and its decode head (Ranftl et al., "Vision Transformers for Dense Prediction", 2021).

Follows ``mmseg/models/decode_heads/dpt_head.py`` in arithmetic and in parameter names; `models.depth` has the heads for
depth on the same fusion. Two rewrites are exact but for rounding and save work; ``rewrite=False`` keeps upstream's
order for comparison:

* The 1x1 ``project`` of a fusion block runs before the x2 upsampling, on a quarter of the pixels: it commutes with
  bilinear interpolation because the weights of each output sum to one.
* The readout's Linear over (patch, class token) pairs is split, so that the class token's half is computed once per
  image instead of once per patch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.head_spec import DPTHeadSpec, FusionSpec
from denseport.export.models.layers import ConvModule, resize

__all__ = ["DPTHead", "FeatureFusionBlock", "FusionHead", "PreActResidualConvUnit", "ReassembleBlocks"]


class ReassembleBlocks(nn.Module):
    """Tokens of four layers to feature maps at strides 4, 8, 16 and 32."""

    def __init__(self, dims: int, spec: FusionSpec, rewrite: bool) -> None:
        super().__init__()
        widths = spec.post_process_channels
        self.readout = spec.readout
        self.rewrite = rewrite
        self.projects = nn.ModuleList(ConvModule(dims, c, 1, norm=False, relu=False, bias=True) for c in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        if self.readout == "project":
            self.readout_projects = nn.ModuleList(nn.Sequential(nn.Linear(2 * dims, dims), nn.GELU()) for _ in widths)

    def read_out(self, i: int, features: Tensor, cls: Tensor) -> Tensor:
        """Mix the class token (B, D) into the features (B, D, h, w)."""
        if self.readout == "ignore":
            return features
        if self.readout == "add":
            return features + cls[:, :, None, None]
        linear, gelu = cast(nn.Sequential, self.readout_projects[i])
        linear = cast(nn.Linear, linear)
        tokens = features.flatten(2).transpose(1, 2)  # (B, N, D)
        if self.rewrite:
            dims = tokens.shape[2]
            patch_weight, cls_weight = linear.weight[:, :dims], linear.weight[:, dims:]
            mixed = F.linear(tokens, patch_weight) + F.linear(cls, cls_weight, linear.bias)[:, None]
        else:
            mixed = linear(torch.cat([tokens, cls[:, None].expand_as(tokens)], dim=2))
        return gelu(mixed).transpose(1, 2).reshape(features.shape)

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [
            self.resize_layers[i](self.projects[i](self.read_out(i, features, cls)))
            for i, (features, cls) in enumerate(levels)
        ]


class PreActResidualConvUnit(nn.Module):
    """x + BN(conv(ReLU(BN(conv(ReLU(x)))))), or without BN."""

    def __init__(self, spec: FusionSpec) -> None:
        super().__init__()
        c, norm, bias = spec.channels, spec.unit_norm, spec.unit_bias
        self.conv1 = ConvModule(c, c, 3, relu=False, norm=norm, bias=bias)
        self.conv2 = ConvModule(c, c, 3, relu=False, norm=norm, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FeatureFusionBlock(nn.Module):
    """Add the encoder's feature, refine, upsample (corners aligned), project."""

    def __init__(self, spec: FusionSpec, first: bool, rewrite: bool) -> None:
        super().__init__()
        self.rewrite = rewrite
        self.fits_levels = spec.fits_levels
        self.project = ConvModule(spec.channels, spec.channels, 1, norm=False, relu=False, bias=True)
        if not first:
            self.res_conv_unit1 = PreActResidualConvUnit(spec)
        self.res_conv_unit2 = PreActResidualConvUnit(spec)

    def forward(self, x: Tensor, feature: Tensor | None = None, size: torch.Size | None = None) -> Tensor:
        """``size``: height and width of the result; None: twice those of x."""
        if feature is not None:
            # An odd token grid makes the decoder one row or column larger than the encoder's feature.
            x = x + self.res_conv_unit1(feature if self.fits_levels else resize(feature, like=x))
        x = self.res_conv_unit2(x)
        if self.rewrite:
            x = self.project(x)
        by = {"scale_factor": 2} if size is None else {"size": size}
        x = F.interpolate(x, mode="bilinear", align_corners=True, **by)
        return x if self.rewrite else self.project(x)


class FusionHead(nn.Module):
    """Four (features, class token) pairs of the backbone, fused to one map."""

    def __init__(self, dims: int, spec: FusionSpec, rewrite: bool) -> None:
        super().__init__()
        self.fits_levels = spec.fits_levels
        self.reassemble_blocks = ReassembleBlocks(dims, spec, rewrite)
        self.convs = nn.ModuleList(
            ConvModule(c, spec.channels, 3, norm=False, relu=False) for c in spec.post_process_channels
        )
        self.fusion_blocks = nn.ModuleList(
            FeatureFusionBlock(spec, first=i == 0, rewrite=rewrite) for i in range(len(self.convs))
        )

    def fuse(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        """A map (B, channels, 8 h, 8 w) of features (B, D, h, w), or a little larger where h or w is odd."""
        features = [conv(x) for conv, x in zip(self.convs, self.reassemble_blocks(levels), strict=True)]
        coarsest = features.pop()
        # Only the coarsest level is not half as large as the next: ceil(h / 2) rows beside h.
        x = self.fusion_blocks[0](coarsest, size=features[-1].shape[2:] if self.fits_levels else None)
        for block in self.fusion_blocks[1:]:
            x = block(x, features.pop())
        return x


class DPTHead(FusionHead):
    """Four (features, class token) pairs of the backbone to logits (B, classes, H/2, W/2), or upsampled to H x W."""

    def __init__(self, dims: int, spec: DPTHeadSpec, num_classes: int, rewrite: bool = True) -> None:
        super().__init__(dims, spec, rewrite)
        self.project = ConvModule(spec.channels, spec.channels, 3)
        self.conv_seg = nn.Conv2d(spec.channels, num_classes, 1)
        self.upsamples_logits = spec.upsamples_logits

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        logits = self.conv_seg(self.project(self.fuse(levels)))
        if self.upsamples_logits:
            logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
        return logits

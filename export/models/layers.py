"""Small modules that heads and necks share. Attribute names are mmcv's, so state dicts load as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvModule", "resize"]


class ConvModule(nn.Module):
    """Convolution, optional BatchNorm, optional ReLU, under mmcv's names ``conv`` and ``bn``."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, norm: bool = True, relu: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(c_out) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def resize(x: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    """Resize (B, C, h, w) bilinearly, by default with half-pixel centres, to the height and width of ``like``.

    Equal sizes are resized too, which changes no bit: a comparison of sizes would tie the graph to one input size.
    """
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=align_corners)

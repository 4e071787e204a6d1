"""Small modules that several networks share. Attribute names are mmcv's, so state dicts load as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "ConvModule", "LayerNorm2d", "resize", "to_map", "to_tokens"]


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


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of maps (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention with torch's packed projection (``in_proj_weight``: query, key, value).

    x: (B, T, D) asks; ``context`` (B, S, D) is asked, by default x itself.
    """

    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(0.02 * torch.randn(3 * dims, dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dims))
        self.out_proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        d = x.shape[2]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if context is None:
            q, k, v = F.linear(x, weight, bias).split(d, dim=2)  # 3 of (B, T, D)
        else:
            q = F.linear(x, weight[:d], bias[:d])
            k, v = F.linear(context, weight[d:], bias[d:]).split(d, dim=2)
        y = F.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v))  # (B, heads, T, hd)
        return self.out_proj(y.transpose(1, 2).reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, hd)."""
        b, t, d = x.shape
        return x.reshape(b, t, self.heads, d // self.heads).transpose(1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """A map (B, D, h, w) as tokens (B, h * w, D), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, like: Tensor) -> Tensor:
    """Tokens (B, h * w, D) as a map (B, D, h, w) of the size of ``like``."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *like.shape[2:])


def resize(x: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    """Resize (B, C, h, w) bilinearly, by default with half-pixel centres, to the height and width of ``like``.

    Equal sizes are resized too, which changes no bit: a comparison of sizes would tie the graph to one input size.
    """
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=align_corners)

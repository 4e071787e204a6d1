"""Mix Transformer (MiT), the backbone of SegFormer (Xie et al., 2021).

Follows ``mmseg/models/backbones/mit.py`` in arithmetic and in parameter names. There is no position embedding: the
depthwise convolution of each feed-forward part sees where the map ends.
Shapes: B batch, D width of the stage, h x w its map, N = h*w tokens, r its reduction.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from denseport.export.models.layers import Attention, to_map, to_tokens
from denseport.export.models.spec import MiTSpec

__all__ = ["Block", "EfficientAttention", "MixFFN", "MixVisionTransformer", "OverlapPatchEmbed"]


class EfficientAttention(nn.Module):
    """Attention whose keys and values come from the map, reduced by a convolution of stride r (floor of h/r, w/r)."""

    def __init__(self, dims: int, heads: int, ratio: int, eps: float) -> None:
        super().__init__()
        self.attn = Attention(dims, heads)
        self.ratio = ratio
        if ratio > 1:
            self.sr = nn.Conv2d(dims, dims, ratio, stride=ratio)
            self.norm = nn.LayerNorm(dims, eps=eps)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """x: (B, N, D); like: any map (B, ?, h, w) of the stage."""
        if self.ratio == 1:
            return self.attn(x)
        return self.attn(x, self.norm(to_tokens(self.sr(to_map(x, like)))))


class MixFFN(nn.Module):
    """1x1 convolution, 3x3 depthwise convolution, GELU (the exact one), 1x1 convolution."""

    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dims, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Identity(),  # upstream's dropout, which has a number of its own in the keys
            nn.Conv2d(hidden, dims, 1),
        )

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return to_tokens(self.layers(to_map(x, like)))


class Block(nn.Module):
    """Pre-norm layer: x + attention(norm1(x)), then x + ffn(norm2(x))."""

    def __init__(self, dims: int, heads: int, hidden: int, ratio: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=eps)
        self.attn = EfficientAttention(dims, heads, ratio, eps)
        self.norm2 = nn.LayerNorm(dims, eps=eps)
        self.ffn = MixFFN(dims, hidden)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), like)
        return x + self.ffn(self.norm2(x), like)


class OverlapPatchEmbed(nn.Module):
    """A convolution whose patches overlap, and a LayerNorm: a map to the tokens (B, N, D) of a coarser one."""

    def __init__(self, c_in: int, dims: int, patch: int, stride: int, eps: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(c_in, dims, patch, stride=stride, padding=patch // 2)
        self.norm = nn.LayerNorm(dims, eps=eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, and the map that they were."""
        x = self.projection(x)
        return self.norm(to_tokens(x)), x


class MixVisionTransformer(nn.Module):
    """Image (B, C, H, W), normalised, to the map of each stage in ``out_indices``, at strides 4, 8, 16, 32 by default.

    A stage of stride s has a map of ceil(H / s) x ceil(W / s).
    """

    def __init__(self, spec: MiTSpec) -> None:
        super().__init__()
        self.out_indices = spec.out_indices
        self.layers = nn.ModuleList()  # of each stage: embedding, blocks, norm
        c_in, eps = spec.in_channels, spec.norm_eps
        for i, dims in enumerate(spec.embed_dims):
            embed = OverlapPatchEmbed(c_in, dims, spec.patch_sizes[i], spec.patch_strides[i], eps)
            shape = dims, spec.num_heads[i], spec.mlp_dims[i], spec.sr_ratios[i], eps
            blocks = nn.ModuleList(Block(*shape) for _ in range(spec.num_layers[i]))
            self.layers.append(nn.ModuleList([embed, blocks, nn.LayerNorm(dims, eps=eps)]))
            c_in = dims

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for i, stage in enumerate(self.layers):
            embed, blocks, norm = cast(Any, stage)
            tokens, like = embed(x)
            for block in blocks:
                tokens = block(tokens, like)
            x = to_map(norm(tokens), like)
            if i in self.out_indices:
                outputs.append(x)
        return outputs

"""Vision Transformer backbone.

Follows ``mmseg/models/backbones/vit.py`` (mmsegmentation 0.17 to 1.2) in arithmetic and in parameter names; where the
spec says so, DINOv2 (``facebookresearch/dinov2``; Oquab et al., 2023), isl-org/DPT and transformers in arithmetic.
Shapes: B batch, C channels, D embed_dims, h x w token grid, N = h*w, T = N + 1 tokens with the class token.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.layers import Attention, to_tokens
from denseport.export.models.operators import resize_pos_embed, resize_with_offset
from denseport.export.models.spec import ViTSpec

__all__ = ["EncoderLayer", "LayerScale", "PatchEmbed", "VisionTransformer"]


class LayerScale(nn.Module):
    """A factor for each channel, under DINOv2's name."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: x + attention(ln1(x)), then x + ffn(ln2(x)). GELU is the exact one.

    With layer scale, what is added is scaled by ls1 and ls2.
    """

    def __init__(self, dims: int, heads: int, hidden: int, eps: float, layer_scale: bool = False) -> None:
        super().__init__()
        expand = nn.Sequential(nn.Linear(dims, hidden), nn.GELU())
        # mmcv wraps attention and feed-forward, hence the keys attn.attn.*, ffn.layers.0.0.* and ffn.layers.1.*.
        self.ln1 = nn.LayerNorm(dims, eps=eps)
        self.attn = nn.Sequential(OrderedDict(attn=Attention(dims, heads)))
        self.ln2 = nn.LayerNorm(dims, eps=eps)
        self.ffn = nn.Sequential(OrderedDict(layers=nn.Sequential(expand, nn.Linear(hidden, dims))))
        self.ls1, self.ls2 = (LayerScale(dims) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.ln1(x)))
        return x + self.ls2(self.ffn(self.ln2(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping convolution; the image is zero-padded at the bottom and right to whole patches, or cut."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.patch_size = p = spec.patch_size
        self.cuts_rest = spec.cuts_rest
        self.projection = nn.Conv2d(spec.in_channels, spec.embed_dims, p, stride=p, bias=spec.patch_bias)

    def forward(self, image: Tensor) -> Tensor:
        p = self.patch_size
        if self.cuts_rest:
            return self.projection(image)
        height, width = image.shape[2:]
        padded = F.pad(image, (0, (width + p - 1) // p * p - width, 0, (height + p - 1) // p * p - height))
        return self.projection(padded)  # (B, D, h, w)


class VisionTransformer(nn.Module):
    """Image (B, C, H, W), normalised, to one (features, class token) pair for each of ``out_indices``.

    features: (B, D, ceil(H / patch), ceil(W / patch)), or floor where the rest is cut; class token: (B, D), any patch's
    without one.
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        rows, columns = spec.pos_grid
        self.patch_embed = PatchEmbed(spec)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, spec.embed_dims))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, rows * columns + 1, spec.embed_dims))
        shape = spec.embed_dims, spec.num_heads, spec.mlp_dims, spec.norm_eps, spec.layer_scale
        self.layers = nn.ModuleList(EncoderLayer(*shape) for _ in range(spec.num_layers))
        if spec.final_norm or spec.norm_outputs:
            self.ln1 = nn.LayerNorm(spec.embed_dims, eps=spec.norm_eps)

    def places(self, grid: Tensor, h: int, w: int) -> Tensor:
        """The position embedding (1, D, gh, gw) of h x w tokens: (1, N, D)."""
        mode = self.spec.interpolate_mode
        if self.spec.keeps_equal_count:
            return resize_pos_embed(grid, h, w, mode)
        if self.spec.pos_offset:
            return to_tokens(resize_with_offset(grid, h, w, self.spec.pos_offset))
        return to_tokens(F.interpolate(grid, size=(h, w), mode=mode, align_corners=False))

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        patches = self.patch_embed(image)  # (B, D, h, w)
        b, d, h, w = patches.shape
        grid = self.pos_embed[:, 1:].reshape(1, *self.spec.pos_grid, d).permute(0, 3, 1, 2)  # (1, D, gh, gw)
        places = self.places(grid, h, w)
        x = patches.flatten(2).transpose(1, 2) + places  # (B, N, D)
        first = int(self.spec.with_cls_token)  # the index of the first patch
        if first:
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)  # (B, 1, D)
            x = torch.cat([cls, x], dim=1)  # (B, T, D)

        last = self.spec.num_layers - 1
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == last and self.spec.final_norm:
                x = self.ln1(x)
            if i in self.spec.out_indices:
                y = self.ln1(x) if self.spec.norm_outputs else x
                outputs.append((y[:, first:].transpose(1, 2).reshape(b, d, h, w), y[:, 0]))
        return outputs

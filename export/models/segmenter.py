"""Segmenter's decode heads (Strudel et al., "Segmenter: Transformer for Semantic Segmentation", 2021).

Follows ``mmseg/models/decode_heads/segmenter_mask_head.py`` and ``fcn_head.py`` (without convolutions) in arithmetic
and in parameter names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.head_spec import MaskHeadSpec
from denseport.export.models.layers import to_map, to_tokens
from denseport.export.models.vit import EncoderLayer

__all__ = ["LinearHead", "MaskTransformerHead"]


class MaskTransformerHead(nn.Module):
    """A map (B, width, h, w) to logits (B, K, h, w): how alike each patch's token and each class's token become.

    Shapes: D channels, K classes, N = h*w patches.
    """

    def __init__(self, width: int, spec: MaskHeadSpec, num_classes: int) -> None:
        super().__init__()
        d, eps = spec.channels, spec.layer_eps
        self.cls_emb = nn.Parameter(0.02 * torch.randn(1, num_classes, d))
        self.dec_proj = nn.Linear(width, d)
        self.layers = nn.ModuleList(EncoderLayer(d, spec.num_heads, spec.mlp_dims, eps) for _ in range(spec.num_layers))
        self.decoder_norm = nn.LayerNorm(d, eps=eps)
        self.patch_proj = nn.Linear(d, d, bias=False)
        self.classes_proj = nn.Linear(d, d, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes, eps=eps)

    def forward(self, maps: list[Tensor]) -> Tensor:
        (features,) = maps
        classes = self.cls_emb.expand(features.shape[0], -1, -1)  # (B, K, D)
        x = torch.cat([self.dec_proj(to_tokens(features)), classes], dim=1)  # (B, N + K, D)
        for layer in self.layers:
            x = layer(x)
        x = self.decoder_norm(x)
        k = classes.shape[1]
        patches = F.normalize(self.patch_proj(x[:, :-k]), dim=2)  # (B, N, D), of length 1
        classes = F.normalize(self.classes_proj(x[:, -k:]), dim=2)  # (B, K, D)
        return to_map(self.mask_norm(patches @ classes.transpose(1, 2)), like=features)


class LinearHead(nn.Module):
    """A map (B, width, h, w) to logits (B, classes, h, w) by one 1x1 convolution."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        (features,) = maps
        return self.conv_seg(features)

"""The heads for depth on DPT's fusion: DPT's own, as MiDaS 3.0 has it, and Depth Anything's.

Follow ``dpt/models.py`` (isl-org/DPT), ``depth_anything_v2/dpt.py`` and ``metric_depth`` (DepthAnything), and
``models/{dpt,depth_anything}`` (transformers 4.57) in arithmetic, and the first two in parameter names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.dpt import FusionHead
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DPTDepthHeadSpec
from denseport.export.models.layers import ConvModule

__all__ = ["DPTDepthHead", "DepthAnythingHead"]

SMALLEST_INVERTED = 1e-8  # as isl-org/DPT has it


class DPTDepthHead(FusionHead):
    """Four (features, class token) pairs to (B, 1, 16 h, 16 w), or a little larger where h or w is odd.

    Disparity, larger nearer; metres with ``inversion``, or where it was trained so.
    """

    def __init__(self, dims: int, spec: DPTDepthHeadSpec, rewrite: bool = True) -> None:
        super().__init__(dims, spec, rewrite)
        c, hidden = spec.channels, spec.depth_channels
        self.inversion = spec.inversion
        if spec.projects:
            self.projection = ConvModule(c, c, 3, norm=False, bias=True)
        self.head = nn.Sequential(
            nn.Conv2d(c, c // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(c // 2, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 1),
            nn.ReLU(),
        )
        self.projects = spec.projects

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.fuse(levels)
        x = self.head(self.projection(x) if self.projects else x)
        if self.inversion is None:
            return x
        scale, shift = self.inversion
        return 1 / (scale * x + shift).clamp(min=SMALLEST_INVERTED)


class DepthAnythingHead(FusionHead):
    """Four (features, class token) pairs to (B, 1, patch * h, patch * w): disparity, or metres up to ``max_depth``."""

    def __init__(self, dims: int, spec: DepthAnythingHeadSpec, patch: int, rewrite: bool = True) -> None:
        super().__init__(dims, spec, rewrite)
        c, hidden = spec.channels, spec.depth_channels
        self.patch, self.max_depth = patch, spec.max_depth
        self.output_conv1 = nn.Conv2d(c, c // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(nn.Conv2d(c // 2, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        h, w = levels[0][0].shape[2:]
        x = self.output_conv1(self.fuse(levels))
        x = F.interpolate(x, size=(h * self.patch, w * self.patch), mode="bilinear", align_corners=True)
        x = self.output_conv2(x)
        return F.relu(x) if self.max_depth is None else torch.sigmoid(x) * self.max_depth

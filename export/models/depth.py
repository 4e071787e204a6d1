"""The heads for depth on DPT's fusion: DPT's own, as MiDaS 3.0 has it, and Depth Anything's.

Follow ``dpt/models.py`` (isl-org/DPT), ``depth_anything_v2/dpt.py`` and ``metric_depth`` (DepthAnything), and
``models/{dpt,depth_anything}`` (transformers 4.57) in arithmetic. Both begin with a convolution to half the channels, an
upsampling and two more convolutions; they differ in the size of the result and in what it means.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseport.export.models.dpt import FusionHead
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DepthHeadSpec, DPTDepthHeadSpec
from denseport.export.models.layers import ConvModule

__all__ = ["DPTDepthHead", "DepthAnythingHead"]

SMALLEST_INVERSE = 1e-8  # of what is inverted, as in isl-org/DPT


class DepthHead(FusionHead):
    """What both heads hold."""

    def __init__(self, dims: int, spec: DepthHeadSpec, rewrite: bool) -> None:
        super().__init__(dims, spec, rewrite)
        c, hidden = spec.channels, spec.depth_channels
        self.conv1 = nn.Conv2d(c, c // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(c // 2, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, 1, 1)


class DPTDepthHead(DepthHead):
    """Four (features, class token) pairs to (B, 1, 16 h, 16 w), or a little larger where h or w is odd.

    Disparity, larger nearer; with ``inversion``, or where it was trained so, metres.
    """

    def __init__(self, dims: int, spec: DPTDepthHeadSpec, rewrite: bool = True) -> None:
        super().__init__(dims, spec, rewrite)
        self.inversion = spec.inversion
        self.project = ConvModule(spec.channels, spec.channels, 3, norm=False, bias=True) if spec.projects else None

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.fuse(levels)
        if self.project is not None:
            x = self.project(x)
        x = F.interpolate(self.conv1(x), scale_factor=2, mode="bilinear", align_corners=True)
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        if self.inversion is not None:
            scale, shift = self.inversion
            x = 1 / (scale * x + shift).clamp(min=SMALLEST_INVERSE)
        return x


class DepthAnythingHead(DepthHead):
    """Four (features, class token) pairs to (B, 1, patch * h, patch * w): disparity, or metres up to ``max_depth``."""

    def __init__(self, dims: int, spec: DepthAnythingHeadSpec, patch: int, rewrite: bool = True) -> None:
        super().__init__(dims, spec, rewrite)
        self.patch, self.max_depth = patch, spec.max_depth

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        h, w = levels[0][0].shape[2:]
        x = self.conv1(self.fuse(levels))
        x = F.interpolate(x, size=(h * self.patch, w * self.patch), mode="bilinear", align_corners=True)
        x = self.conv3(F.relu(self.conv2(x)))
        return F.relu(x) if self.max_depth is None else torch.sigmoid(x) * self.max_depth

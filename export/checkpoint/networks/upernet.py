"""Reads mmsegmentation's UPerNet, with or without MultiLevelNeck, off a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from denseport.export.checkpoint.networks.reader import numbers
from denseport.export.checkpoint.networks.vit import VIT, ViTReader
from denseport.export.models.head_spec import UPerHeadSpec
from denseport.export.models.spec import NeckSpec

__all__ = ["UPerNetReader"]

NECK = "neck.convs.0.conv.weight"


class UPerNetReader(ViTReader):
    """VisionTransformer and UPerHead."""

    architecture, sign = "UPerNet", "decode_head.psp_modules."
    kinds: ClassVar = {**VIT, "neck": "MultiLevelNeck", "decode_head": "UPerHead"}

    def neck(self) -> NeckSpec | None:
        if NECK not in self.shapes:
            super().neck()
            return None
        scales = numbers("neck.scales", self.said("neck.scales", (0.5, 1, 2, 4), (4, 2, 1, 0.5)), float)
        return NeckSpec(self.shape(NECK, 4)[0], scales)

    def head(self, levels: int) -> UPerHeadSpec:
        count = self.count(r"decode_head\.psp_modules\.(\d+)\.1\.conv\.weight$")
        scales = numbers("decode_head.pool_scales", self.said("decode_head.pool_scales", (1, 2, 3, 6)), int)
        if len(scales) != count:
            raise ValueError(f"{count} pooling branches for pool_scales {scales}")
        channels = self.shape("decode_head.conv_seg.weight", 4)[1]
        return UPerHeadSpec(channels, scales, **self.head_basics(levels, tuple(range(levels))))

    def shown(self) -> dict[str, Any]:
        return super().shown() | {
            "neck.out_channels": self.first(NECK),
            "decode_head.channels": self.shapes["decode_head.conv_seg.weight"][1],
        }

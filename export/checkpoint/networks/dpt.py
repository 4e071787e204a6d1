"""Reads mmsegmentation's DPT off a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from denseport.export.checkpoint.networks.vit import ViTReader
from denseport.export.models.head_spec import DPTHeadSpec

__all__ = ["DPTReader"]

BLOCKS = "decode_head.reassemble_blocks"


class DPTReader(ViTReader):
    """VisionTransformer and DPTHead."""

    architecture, sign = "DPT", f"{BLOCKS}."
    kinds: ClassVar = {"": "EncoderDecoder", "backbone": "VisionTransformer", "decode_head": "DPTHead"}
    norm_eps = 1e-5

    def head(self, levels: int) -> DPTHeadSpec:
        readout = "project"
        if f"{BLOCKS}.readout_projects.0.0.weight" not in self.shapes:
            head = self.published.head if self.published else None
            published = head.readout if isinstance(head, DPTHeadSpec) else None
            readout = str(self.hidden("decode_head.readout_type", "ignore", published, "ignore"))
        widths = tuple(self.shape(f"{BLOCKS}.projects.{i}.conv.weight", 4)[0] for i in range(4))
        channels = self.shape("decode_head.project.conv.weight", 4)[0]
        basics = self.head_basics(levels, tuple(range(levels)))
        return DPTHeadSpec(channels, widths, readout, self.hugging_face, **basics)

    def shown(self) -> dict[str, Any]:
        projected = f"{BLOCKS}.readout_projects.0.0.weight" in self.shapes
        return super().shown() | {
            "decode_head.channels": self.first("decode_head.project.conv.weight"),
            "decode_head.post_process_channels": [self.first(f"{BLOCKS}.projects.{i}.conv.weight") for i in range(4)],
            "decode_head.readout_type": "project" if projected else None,
        }

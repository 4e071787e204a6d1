"""Reads mmsegmentation's SETR (naive, PUP, MLA) off a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.networks.reader import Shapes, number
from denseport.export.checkpoint.networks.vit import VIT, ViTReader
from denseport.export.checkpoint.pipeline import Usual
from denseport.export.models.head_spec import SETRMLAHeadSpec, SETRUPHeadSpec
from denseport.export.models.spec import Backbone, MLANeckSpec
from denseport.runtime.bundle.manifest import Inference

__all__ = ["SETRMLAReader", "SETRReader", "SETRUPReader"]

FIRST = "decode_head.up_convs.0.0.conv.weight"
NECK = "neck.mla.channel_proj.0.conv.weight"


class SETRReader(ViTReader):
    """What all three have."""

    architecture, sign = "SETR", "decode_head.up_convs."
    interpolation = "bilinear"

    def usual(self, backbone: Backbone) -> Usual:
        height, width = self.trained_on(backbone)
        return Usual(inference=Inference("slide", (height, width), (max(1, 2 * height // 3), max(1, 2 * width // 3))))

    def up_scale(self, assumed: int) -> int:
        published = self.published.head if self.published else None
        known = published.up_scale if isinstance(published, SETRUPHeadSpec | SETRMLAHeadSpec) else None
        return number("decode_head.up_scale", self.hidden("decode_head.up_scale", 4, known, assumed), int)


class SETRUPReader(SETRReader):
    """VisionTransformer and SETRUPHead: naive and PUP."""

    kinds: ClassVar = {**VIT, "decode_head": "SETRUPHead"}

    @classmethod
    def why_not(cls, shapes: Shapes) -> str | None:
        norm = "decode_head.norm.weight"
        return super().why_not(shapes) or (None if norm in shapes else f"it has no {norm!r}")

    def assumed_layers(self, layers: int) -> tuple[int, ...]:
        return (layers - 1,)

    def head(self, levels: int) -> SETRUPHeadSpec:
        channels, _, kernel, _ = self.shape(FIRST, 4)
        count = self.count(r"decode_head\.up_convs\.(\d+)\.")
        return SETRUPHeadSpec(
            channels,
            num_convs=count,
            kernel_size=kernel,
            up_scale=self.up_scale(4 if count == 1 else 2),
            layer_eps=self.layer_eps("decode_head.norm_layer", 1e-6),
            **self.head_basics(levels, -1),
        )

    def shown(self) -> dict[str, Any]:
        channels, width, kernel, _ = self.shapes[FIRST]
        return super().shown() | {
            "decode_head.channels": channels,
            "decode_head.in_channels": width,
            "decode_head.num_convs": self.count(r"decode_head\.up_convs\.(\d+)\."),
            "decode_head.kernel_size": kernel,
        }


class SETRMLAReader(SETRReader):
    """VisionTransformer, MLANeck and SETRMLAHead."""

    kinds: ClassVar = {**VIT, "neck": "MLANeck", "decode_head": "SETRMLAHead"}
    cls_token = False

    @classmethod
    def why_not(cls, shapes: Shapes) -> str | None:
        return super().why_not(shapes) or (None if NECK in shapes else f"it has no {NECK!r}")

    def neck(self) -> MLANeckSpec:
        channels = self.shape(NECK, 4)[0]
        act = self.said("neck.act_cfg", None, {"type": "ReLU"})  # upstream's default is none
        return MLANeckSpec(
            channels,
            layer_eps=self.layer_eps("neck.norm_layer", 1e-6),
            norm_eps=number("neck.norm_cfg.eps", look_up(self.model, "neck", "norm_cfg", "eps", default=1e-5), float),
            relu=act is not None,
        )

    def head(self, levels: int) -> SETRMLAHeadSpec:
        channels = self.shape("decode_head.conv_seg.weight", 4)[1]
        width = self.shape(FIRST, 4)[0]
        basics = self.head_basics(levels, tuple(range(levels)))
        return SETRMLAHeadSpec(channels, width, up_scale=self.up_scale(4), **basics)

    def shown(self) -> dict[str, Any]:
        return super().shown() | {
            "neck.out_channels": self.first(NECK),
            "decode_head.channels": self.shapes["decode_head.conv_seg.weight"][1],
            "decode_head.mla_channels": self.first(FIRST),
        }

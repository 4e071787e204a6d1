"""Reads mmsegmentation's Segmenter, with a mask transformer or a linear head, off a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from denseport.export.checkpoint.networks.reader import Shapes, number
from denseport.export.checkpoint.networks.vit import VIT, ViTReader
from denseport.export.checkpoint.pipeline import Usual
from denseport.export.models.head_spec import LinearHeadSpec, MaskHeadSpec
from denseport.export.models.spec import Backbone
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.steps import Normalise, Resize

__all__ = ["LinearReader", "MaskReader", "SegmenterReader"]

NORMALISE = Normalise((127.5,) * 3, (127.5,) * 3, bgr_to_rgb=True)


class SegmenterReader(ViTReader):
    """What both have: the last layer alone feeds the head."""

    architecture = "Segmenter"

    def usual(self, backbone: Backbone) -> Usual:
        height, width = self.trained_on(backbone)
        windows = Inference("slide", (height, width), (max(1, height - 32), max(1, width - 32)))
        return Usual(Resize((4 * max(height, width), min(height, width)), keep_ratio=True), NORMALISE, windows)

    def assumed_layers(self, layers: int) -> tuple[int, ...]:
        return (layers - 1,)


class MaskReader(SegmenterReader):
    """VisionTransformer and SegmenterMaskTransformerHead."""

    sign = "decode_head.cls_emb"
    kinds: ClassVar = {**VIT, "decode_head": "SegmenterMaskTransformerHead"}

    def outputs(self) -> int:
        return self.shape("decode_head.cls_emb", 3)[1]

    def head(self, levels: int) -> MaskHeadSpec:
        if self.outputs() == 1:
            raise ValueError("a mask transformer cannot tell one class: its masks are normalised over the classes")
        dims = self.shape("decode_head.dec_proj.weight", 2)[0]
        published = self.published.head if self.published else None
        heads = published.num_heads if isinstance(published, MaskHeadSpec) else None
        heads = self.hidden("decode_head.num_heads", None, heads, max(1, dims // 64))
        basics = self.head_basics(levels, -1)
        return MaskHeadSpec(
            dims,
            num_layers=self.count(r"decode_head\.layers\.(\d+)\."),
            num_heads=number("decode_head.num_heads", heads, int),
            mlp_dims=self.shape("decode_head.layers.0.ffn.layers.0.0.weight", 2)[0],
            layer_eps=basics.pop("norm_eps"),  # the head has no BatchNorm: norm_cfg is its LayerNorms'
            **basics,
        )

    def shown(self) -> dict[str, Any]:
        dims = self.shapes["decode_head.dec_proj.weight"][0]
        return super().shown() | {
            "decode_head.embed_dims": dims,
            "decode_head.in_channels": self.shapes["decode_head.dec_proj.weight"][1],
            "decode_head.num_layers": self.layers_shown("decode_head"),
            "decode_head.qkv_bias": "decode_head.layers.0.attn.attn.in_proj_bias" in self.shapes,
            "decode_head.mlp_ratio": self.ratio_shown("decode_head", "layers.0.ffn.layers.0.0.weight", dims),
        }


class LinearReader(SegmenterReader):
    """VisionTransformer and FCNHead without convolutions."""

    sign = "decode_head.conv_seg."
    kinds: ClassVar = {**VIT, "decode_head": "FCNHead"}

    @classmethod
    def why_not(cls, shapes: Shapes) -> str | None:
        others = [key for key in shapes if key.startswith("decode_head.") and not key.startswith(cls.sign)]
        return f"its head has more than conv_seg ({others[0]!r})" if others else super().why_not(shapes)

    def head(self, levels: int) -> LinearHeadSpec:
        channels = self.shape("decode_head.conv_seg.weight", 4)[1]
        return LinearHeadSpec(channels, **self.head_basics(levels, -1))

    def shown(self) -> dict[str, Any]:
        return super().shown() | {"decode_head.channels": self.shapes["decode_head.conv_seg.weight"][1]}

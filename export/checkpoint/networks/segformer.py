"""Reads mmsegmentation's SegFormer off a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.networks.reader import Reader, numbers
from denseport.export.models.head_spec import SegformerHeadSpec
from denseport.export.models.spec import MiTSpec

__all__ = ["SegFormerReader"]

STRIDES = (4, 2, 2, 2)  # upstream's default, and the published models'


class SegFormerReader(Reader):
    """MixVisionTransformer and SegformerHead."""

    architecture, sign = "SegFormer", "decode_head.fusion_conv."
    kinds: ClassVar = {"": "EncoderDecoder", "backbone": "MixVisionTransformer", "decode_head": "SegformerHead"}

    def backbone(self) -> MiTSpec:
        stages = range(self.count(r"backbone\.layers\.(\d+)\."))
        embeds = [self.shape(f"backbone.layers.{i}.0.projection.weight", 4) for i in stages]
        self.check_channels(embeds[0][1] if embeds else 0)
        dims, patches = tuple(shape[0] for shape in embeds), tuple(shape[2] for shape in embeds)
        layers = tuple(self.count(rf"backbone\.layers\.{i}\.1\.(\d+)\.") for i in stages)
        published = self.published.backbone if self.published else None
        if not isinstance(published, MiTSpec) or (published.embed_dims, published.num_layers) != (dims, layers):
            published = None
        assumed = tuple(width // dims[0] for width in dims)  # the first stage of every published model has one
        heads = self.hidden("backbone.num_heads", (1, 2, 4, 8), published and published.num_heads, assumed)
        return MiTSpec(
            embed_dims=dims,
            num_layers=layers,
            num_heads=numbers("backbone.num_heads", heads, int),
            mlp_dims=tuple(self.shape(f"backbone.layers.{i}.1.0.ffn.layers.0.weight", 4)[0] for i in stages),
            patch_sizes=patches,
            patch_strides=numbers("backbone.strides", self.said("backbone.strides", STRIDES), int),
            sr_ratios=tuple(self._ratio(i) for i in stages),
            out_indices=numbers("backbone.out_indices", self.said("backbone.out_indices", (0, 1, 2, 3)), int),
            norm_eps=self.layer_eps("backbone.norm_cfg", 1e-6),
            in_channels=embeds[0][1],
        )

    def _ratio(self, stage: int) -> int:
        key = f"backbone.layers.{stage}.1.0.attn.sr.weight"
        return self.shape(key, 4)[2] if key in self.shapes else 1

    def head(self, levels: int) -> SegformerHeadSpec:
        channels = self.shape("decode_head.conv_seg.weight", 4)[1]
        level_norm = "decode_head.convs.0.conv.bias" not in self.shapes  # as Hugging Face's folders have it
        return SegformerHeadSpec(channels, level_norm=level_norm, **self.head_basics(levels, tuple(range(levels))))

    def shown(self) -> dict[str, Any]:
        stages = range(self.count(r"backbone\.layers\.(\d+)\."))
        embeds = [self.shapes[f"backbone.layers.{i}.0.projection.weight"] for i in stages]
        base = look_up(self.model, "backbone", "embed_dims", default=64)  # of one attention head, in every stage
        heads = [shape[0] // base if isinstance(base, int) and base > 0 else 0 for shape in embeds]
        whole = [heads[i] * base == shape[0] for i, shape in enumerate(embeds)]
        said = look_up(self.model, "backbone", "num_heads") is not None
        return {
            "backbone.in_channels": embeds[0][1],
            "backbone.embed_dims": None if all(whole) else embeds[0][0],
            "backbone.num_heads": heads if said and all(whole) else None,
            "backbone.num_stages": len(stages),
            "backbone.num_layers": [self.count(rf"backbone\.layers\.{i}\.1\.(\d+)\.") for i in stages],
            "backbone.patch_sizes": [shape[2] for shape in embeds],
            "backbone.sr_ratios": [self._ratio(i) for i in stages],
            "backbone.qkv_bias": "backbone.layers.0.1.0.attn.attn.in_proj_bias" in self.shapes,
            "backbone.mlp_ratio": self.ratio_shown("backbone", "layers.0.1.0.ffn.layers.0.weight", embeds[0][0]),
            "decode_head.channels": self.shapes["decode_head.conv_seg.weight"][1],
        }

"""What readers of networks on mmsegmentation's VisionTransformer share: the backbone."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.networks.original import DEPTH_ANYTHING
from denseport.export.checkpoint.networks.reader import Reader, flag, number, numbers
from denseport.export.models.spec import Backbone, ViTSpec, quarters
from denseport.runtime.bundle.steps import LARGEST_SIDE

__all__ = ["VIT", "ViTReader"]

VIT = {"": "EncoderDecoder", "backbone": "VisionTransformer"}  # of `Reader.kinds`
HEAD_DIMS = 64  # channels of an attention head of every published ViT


class ViTReader(Reader):
    """A reader of a network whose backbone is a plain Vision Transformer."""

    # Of the published models; without a configuration they are assumed.
    norm_eps: ClassVar[float] = 1e-6
    interpolation: ClassVar[str] = "bicubic"
    cls_token: ClassVar[bool] = True

    def assumed_layers(self, layers: int) -> tuple[int, ...]:
        """The layers that feed the published models' heads."""
        return quarters(layers)

    def backbone(self) -> ViTSpec:
        dims, channels, patch, across = self.shape("backbone.patch_embed.projection.weight", 4)
        if patch != across:
            raise self.unknown(f"its patches of {across} x {patch} pixels are not square")
        self.check_channels(channels)
        tokens = self.shape("backbone.pos_embed", 3)[1] - 1
        self.shape("backbone.cls_token", 3)
        layers = self.count(r"backbone\.layers\.(\d+)\.")
        published = self.published.backbone if self.published else None
        if not isinstance(published, ViTSpec) or (published.embed_dims, published.num_layers) != (dims, layers):
            published = None
        # Upstream's defaults are 12 heads, the last layer, and torch's eps.
        heads = self.hidden("backbone.num_heads", 12, published and published.num_heads, max(1, dims // HEAD_DIMS))
        assumed = self.assumed_layers(layers)
        indices = self.hidden("backbone.out_indices", -1, published and published.out_indices, assumed)
        eps = self.hidden("backbone.norm_cfg.eps", 1e-5, published and published.norm_eps, self.norm_eps)
        indices = (indices,) if isinstance(indices, int) else numbers("backbone.out_indices", indices, int)
        normed, scaled = (f"backbone.{key}" in self.shapes for key in ("ln1.weight", "layers.0.ls1.gamma"))
        return ViTSpec(
            embed_dims=dims,
            num_layers=layers,
            num_heads=number("backbone.num_heads", heads, int),
            mlp_dims=self.shape("backbone.layers.0.ffn.layers.0.0.weight", 2)[0],
            # Upstream gives the features in the layers' order, whatever the order of the list.
            out_indices=tuple(sorted({layers + i if i < 0 else i for i in indices})),
            pos_grid=self._pos_grid(tokens, patch),
            norm_eps=number("backbone.norm_cfg.eps", eps, float),
            final_norm=normed and not scaled,
            norm_outputs=normed and scaled,  # as DINOv2 in every network that takes several of its layers
            layer_scale=scaled,
            patch_bias="backbone.patch_embed.projection.bias" in self.shapes,
            patch_size=patch,
            in_channels=channels,
            interpolate_mode=str(self.said("backbone.interpolate_mode", "bicubic", self.interpolation)),
            with_cls_token=flag("backbone.with_cls_token", self.said("backbone.with_cls_token", True, self.cls_token)),
            keeps_equal_count=self.follows_mmseg,
            pos_offset=0.1 if self.layout == DEPTH_ANYTHING else 0.0,
            cuts_rest=not self.follows_mmseg,
        )

    def _pos_grid(self, tokens: int, patch: int) -> tuple[int, int]:
        size = look_up(self.model, "backbone", "img_size")
        if size is not None:
            sides = (size,) if isinstance(size, int) else numbers("backbone.img_size", size, int)
            height, width = sides * 2 if len(sides) == 1 else sides
            if (height // patch) * (width // patch) == tokens:
                return height // patch, width // patch
        side = math.isqrt(tokens)
        if side * side != tokens:
            fits = "tells its height and width, is missing" if size is None else f"is {size}, does not fit it"
            raise ValueError(
                f"a position embedding of {tokens} places is not square, and backbone.img_size, which {fits} "
                f"(patches of {patch} x {patch} pixels)"
            )
        return side, side

    def shown(self) -> dict[str, Any]:
        dims, channels, patch, _ = self.shapes["backbone.patch_embed.projection.weight"]
        found: dict[str, Any] = {
            "backbone.embed_dims": dims,
            "backbone.num_layers": self.layers_shown("backbone"),
            "backbone.in_channels": channels,
            "backbone.final_norm": "backbone.ln1.weight" in self.shapes,
            "backbone.qkv_bias": "backbone.layers.0.attn.attn.in_proj_bias" in self.shapes,
            "backbone.mlp_ratio": self.ratio_shown("backbone", "layers.0.ffn.layers.0.0.weight", dims),
        }
        said = look_up(self.model, "backbone", "patch_size", default=patch)
        found["backbone.patch_size"] = [patch, patch] if isinstance(said, (list, tuple)) else patch
        return found

    def trained_on(self, backbone: Backbone) -> tuple[int, int]:
        """Height and width of the images of the training, pixels, as the position embedding shows them."""
        assert isinstance(backbone, ViTSpec)  # the only one that a ViTReader reads
        height, width = (min(side * backbone.patch_size, LARGEST_SIDE // 4) for side in backbone.pos_grid)
        return height, width

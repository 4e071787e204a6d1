"""What a network is: frozen dataclasses, from which ``models.segmentor.build`` makes it.

A spec says only what changes the arithmetic; the rest is in the manifest (`denseport.runtime.bundle.manifest`). Field
``kind``, upstream's name of the part, tells the parts of a network in JSON. Strides are pixels of the network input for
one place of a map, along one side, for inputs whose sides are multiples of `unit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, prod
from operator import mul
from typing import Any

from denseport.export.models.head_spec import LARGEST_SCALE, DepthHeadSpec, FusionSpec, Head, check_eps
from denseport.runtime.bundle.decode import decode_dataclass

__all__ = ["Backbone", "MLANeckSpec", "MiTSpec", "ModelSpec", "Neck", "NeckSpec", "ViTSpec", "quarters", "spec_of"]

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class ViTSpec:
    """A plain Vision Transformer (Dosovitskiy et al., 2021) with class token and learned positions."""

    embed_dims: int  # D, the width of a token
    num_layers: int
    num_heads: int
    mlp_dims: int  # hidden width of the feed-forward part
    out_indices: tuple[int, ...]  # the layers whose output goes to the neck or head, in order
    pos_grid: tuple[int, int]  # rows, columns of the stored position embedding
    norm_eps: float  # of every LayerNorm; no checkpoint shows it
    final_norm: bool = False  # LayerNorm `ln1` behind the last layer only
    norm_outputs: bool = False  # LayerNorm `ln1` on what each of `out_indices` gives; the next layer reads it without
    layer_scale: bool = False  # DINOv2's: what attention and feed-forward add is scaled, a factor for each channel
    patch_bias: bool = True  # released weights have it, checkpoints of mmsegmentation 1.2 lack it
    patch_size: int = 16
    in_channels: int = 3  # of the image: 3 colours, or 1
    interpolate_mode: str = "bicubic"  # how the position embedding is resized: bicubic, bilinear
    with_cls_token: bool = True  # whether the class token goes through the layers
    keeps_equal_count: bool = True  # the position embedding is not resized where the number of tokens is the same
    pos_offset: float = 0.0  # DINOv2's own code, 0.1: h rows of patches take places of a grid of h + 0.1 (bicubic)
    cuts_rest: bool = False  # what is less than a patch at the bottom and right is cut off; else zeros complete it
    kind: str = field(default="VisionTransformer", init=False)

    def __post_init__(self) -> None:
        _check_channels(self.in_channels)
        if self.interpolate_mode not in INTERPOLATIONS:
            raise ValueError(f"interpolate_mode {self.interpolate_mode!r} is not one of {', '.join(INTERPOLATIONS)}")
        check_eps(self.norm_eps)
        if self.num_heads < 1 or self.embed_dims % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dims {self.embed_dims}")
        if self.final_norm and self.norm_outputs:
            raise ValueError("final_norm and norm_outputs are two places of one LayerNorm")
        if not 0 <= self.pos_offset < 1 or (self.pos_offset and self.interpolate_mode != "bicubic"):
            raise ValueError(f"pos_offset {self.pos_offset} is not in 0 to 1, of bicubic interpolation")
        indices = self.out_indices
        inside = all(0 <= i < self.num_layers for i in indices)
        if not indices or not inside or list(indices) != sorted(set(indices)):
            raise ValueError(f"out_indices {indices} are not layers, in ascending order, of {self.num_layers}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map that it gives."""
        return (self.embed_dims,) * len(self.out_indices)

    @property
    def strides(self) -> tuple[float, ...]:
        """Of each map that it gives."""
        return (self.patch_size,) * len(self.out_indices)

    @property
    def unit(self) -> int:
        """Pixels along one side of what becomes one place of the coarsest map."""
        return self.patch_size

    @property
    def smallest(self) -> int:
        """Pixels along one side of the smallest input."""
        return self.patch_size


def quarters(num_layers: int) -> tuple[int, ...]:
    """The last layer of each quarter, which is what published models take features from."""
    return tuple(num_layers * i // 4 - 1 for i in (1, 2, 3, 4))


@dataclass(frozen=True)
class MiTSpec:
    """Mix Transformer, the backbone of SegFormer (Xie et al., 2021): stages of layers, each on a coarser map."""

    embed_dims: tuple[int, ...]  # the width of a token in each stage
    num_layers: tuple[int, ...]  # of each stage
    num_heads: tuple[int, ...]
    mlp_dims: tuple[int, ...]  # hidden widths of the feed-forward parts
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)  # pixels, or places of the map before; patches overlap
    patch_strides: tuple[int, ...] = (4, 2, 2, 2)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)  # keys and values come from a map that is smaller by this
    out_indices: tuple[int, ...] = (0, 1, 2, 3)  # the stages whose maps go to the head
    norm_eps: float = 1e-6  # of every LayerNorm; no checkpoint shows it
    in_channels: int = 3  # of the image: 3 colours, or 1
    kind: str = field(default="MixVisionTransformer", init=False)

    def __post_init__(self) -> None:
        _check_channels(self.in_channels)
        check_eps(self.norm_eps)
        stages = len(self.embed_dims)
        for name in ("num_layers", "num_heads", "mlp_dims", "patch_sizes", "patch_strides", "sr_ratios"):
            values = getattr(self, name)
            if len(values) != stages or not all(value > 0 for value in values):
                raise ValueError(f"{name} {values} are not positive numbers, one for each of {stages} stages")
        if any(dims % heads for dims, heads in zip(self.embed_dims, self.num_heads, strict=True)):
            raise ValueError(f"num_heads {self.num_heads} do not divide embed_dims {self.embed_dims}")
        if max(self.patch_strides) > LARGEST_SCALE:
            raise ValueError(f"strides {self.patch_strides} are above {LARGEST_SCALE}")
        indices = self.out_indices
        if not indices or list(indices) != sorted({*indices} & {*range(stages)}):
            raise ValueError(f"out_indices {indices} are not stages, in ascending order, of {stages}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map that it gives."""
        return tuple(self.embed_dims[i] for i in self.out_indices)

    @property
    def strides(self) -> tuple[float, ...]:
        """Of each map that it gives."""
        strides = list(accumulate(self.patch_strides, mul))
        return tuple(strides[i] for i in self.out_indices)

    @property
    def unit(self) -> int:
        """Pixels along one side of what becomes one place of the coarsest map."""
        return prod(self.patch_strides)

    @property
    def smallest(self) -> int:
        """Pixels along one side of the smallest input: of each stage's map a place is left after the reduction."""
        strides = accumulate(self.patch_strides, mul)
        return max((ratio - 1) * stride + 1 for ratio, stride in zip(self.sr_ratios, strides, strict=True))


Backbone = ViTSpec | MiTSpec


@dataclass(frozen=True)
class NeckSpec:
    """MultiLevelNeck: one resized feature map a scale, made of one layer each, or all of the only layer."""

    out_channels: int
    scales: tuple[float, ...] = (4, 2, 1, 0.5)
    kind: str = field(default="MultiLevelNeck", init=False)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"neck.scales {self.scales} are not positive numbers")

    def strides(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Of the maps that it makes of maps of the given strides."""
        if len(levels) not in (1, len(self.scales)):
            raise ValueError(f"neck.scales {self.scales} do not go with {len(levels)} layers of out_indices")
        return tuple(levels[i % len(levels)] / scale for i, scale in enumerate(self.scales))


@dataclass(frozen=True)
class MLANeckSpec:
    """MLANeck of SETR: maps of one size, each with the sum of the deeper ones, the deepest first."""

    out_channels: int
    layer_eps: float = 1e-6  # of the LayerNorm on each map
    norm_eps: float = 1e-5  # of every BatchNorm
    relu: bool = True  # behind every BatchNorm
    kind: str = field(default="MLANeck", init=False)

    def __post_init__(self) -> None:
        check_eps(self.layer_eps)
        check_eps(self.norm_eps)

    def strides(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Of the maps that it makes of maps of the given strides."""
        return tuple(levels[::-1])


Neck = NeckSpec | MLANeckSpec


@dataclass(frozen=True)
class ModelSpec:
    """A whole network: backbone, optional neck, head, number of classes."""

    backbone: Backbone
    neck: Neck | None
    head: Head
    num_classes: int  # 0 of depth

    def __post_init__(self) -> None:
        levels = len(self._levels)
        if not self.head.in_index or not all(0 <= i < levels for i in self.head.in_index):
            raise ValueError(f"decode_head.in_index {self.head.in_index} does not go with {levels} levels")
        if isinstance(self.head, FusionSpec) and not (
            isinstance(self.backbone, ViTSpec) and self.backbone.with_cls_token
        ):
            raise ValueError("with_cls_token=False does not go with DPT, whose backbone gives the class token")
        if (self.num_classes == 0) != (self.task == "depth"):
            raise ValueError(f"num_classes {self.num_classes} does not go with {self.head.kind}")
        if self.head.threshold is not None and self.num_classes != 2:
            raise ValueError(f"decode_head.threshold divides two classes, not {self.num_classes}")

    @property
    def architecture(self) -> str:
        return self.head.architecture

    @property
    def task(self) -> str:
        """What the network is for: "segmentation" or "depth"."""
        return "depth" if isinstance(self.head, DepthHeadSpec) else "segmentation"

    @property
    def _levels(self) -> tuple[float, ...]:
        """Strides of the maps that the head chooses from."""
        return self.neck.strides(self.backbone.strides) if self.neck else self.backbone.strides

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the maps that the head takes."""
        widths = (self.neck.out_channels,) * len(self._levels) if self.neck else self.backbone.widths
        return tuple(widths[i] for i in self.head.in_index)

    @property
    def stride(self) -> int:
        """Input pixels per logit along one side, rounded."""
        levels = self._levels
        return max(1, round(self.head.stride([levels[i] for i in self.head.in_index])))

    @property
    def unit(self) -> int:
        """Pixels of a square, of whole patches, of which a few give every level several rows and columns."""
        scales = self.neck.scales if isinstance(self.neck, NeckSpec) else (1,)
        return self.backbone.unit * ceil(0.4 / min(scales))


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"in_channels {channels} is neither 3 (colour) nor 1 (grey)")


def spec_of(data: dict[str, Any]) -> ModelSpec:
    """The spec that a manifest holds, as JSON gives it back: the inverse of `dataclasses.asdict`.

    Raises:
        BundleError: a setting is missing, unknown or mistyped, or does not go with the others.
    """
    return decode_dataclass(ModelSpec, data, "the manifest", "spec")

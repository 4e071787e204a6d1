"""What a network is: frozen dataclasses, from which ``models.segmentor.build`` makes it.

A spec says only what changes the arithmetic; the rest is in the manifest (`denseport.runtime.bundle.manifest`). Field
``kind``, upstream's name of the part, tells heads in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from denseport.runtime.bundle.decode import decode_dataclass

__all__ = ["DPTHeadSpec", "Head", "HeadSpec", "ModelSpec", "NeckSpec", "UPerHeadSpec", "ViTSpec", "quarters", "spec_of"]

READOUTS = ("project", "add", "ignore")
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
    patch_bias: bool = True  # released weights have it, checkpoints of mmsegmentation 1.2 lack it
    patch_size: int = 16
    in_channels: int = 3  # of the image: 3 colours, or 1
    interpolate_mode: str = "bicubic"  # how the position embedding is resized: bicubic, bilinear
    with_cls_token: bool = True  # whether the class token goes through the layers

    def __post_init__(self) -> None:
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels {self.in_channels} is neither 3 (colour) nor 1 (grey)")
        if self.interpolate_mode not in INTERPOLATIONS:
            raise ValueError(f"interpolate_mode {self.interpolate_mode!r} is none of {', '.join(INTERPOLATIONS)}")
        _check_eps(self.norm_eps)
        if self.num_heads < 1 or self.embed_dims % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dims {self.embed_dims}")
        indices = self.out_indices
        inside = all(0 <= i < self.num_layers for i in indices)
        if not indices or not inside or list(indices) != sorted(set(indices)):
            raise ValueError(f"out_indices {indices} are not layers, in ascending order, of {self.num_layers}")


def quarters(num_layers: int) -> tuple[int, ...]:
    """The last layer of each quarter, which is what published models take features from."""
    return tuple(num_layers * i // 4 - 1 for i in (1, 2, 3, 4))


@dataclass(frozen=True)
class NeckSpec:
    """MultiLevelNeck: one resized feature map a scale, made of one layer each, or all of the only layer."""

    out_channels: int
    scales: tuple[float, ...] = (4, 2, 1, 0.5)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"neck.scales {self.scales} are not positive numbers")


@dataclass(frozen=True)
class HeadSpec:
    """What every decode head has."""

    channels: int  # width of the fusion path
    in_index: tuple[int, ...] = field(default=(0, 1, 2, 3), kw_only=True)  # the levels it takes, in its order
    align_corners: bool = field(default=False, kw_only=True)  # of UPerNet's resizes, and of every resize of the logits
    norm_eps: float = field(default=1e-5, kw_only=True)  # of every BatchNorm; no checkpoint shows it
    # One output z for two classes: a pixel is of the second where sigmoid(z) exceeds it. See `checkpoint.weights`.
    threshold: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_eps(self.norm_eps)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} is not between 0 and 1: every pixel would be of one class")


@dataclass(frozen=True)
class DPTHeadSpec(HeadSpec):
    """DPT decode head (Ranftl et al., 2021)."""

    post_process_channels: tuple[int, ...]  # width of each reassembled level
    readout: str = "project"  # what becomes of the class token: project, add, ignore
    kind: str = field(default="DPTHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.in_index) != 4:
            raise ValueError(f"decode_head.in_index {self.in_index} are not the four levels that DPT fuses")
        if self.readout not in READOUTS:
            raise ValueError(f"readout {self.readout!r} is none of {', '.join(READOUTS)}")


@dataclass(frozen=True)
class UPerHeadSpec(HeadSpec):
    """UPerNet decode head (Xiao et al., 2018): pyramid pooling, then a feature pyramid."""

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    kind: str = field(default="UPerHead", init=False)


Head = DPTHeadSpec | UPerHeadSpec


@dataclass(frozen=True)
class ModelSpec:
    """A whole network: backbone, optional neck, head, number of classes."""

    backbone: ViTSpec
    neck: NeckSpec | None
    head: Head
    num_classes: int

    def __post_init__(self) -> None:
        levels = len(self.backbone.out_indices)
        if self.neck is not None:
            if levels not in (1, len(self.neck.scales)):
                raise ValueError(f"neck.scales {self.neck.scales} do not go with {levels} layers of out_indices")
            levels = len(self.neck.scales)
        if not self.head.in_index or not all(0 <= i < levels for i in self.head.in_index):
            raise ValueError(f"decode_head.in_index {self.head.in_index} does not go with {levels} levels")
        if isinstance(self.head, DPTHeadSpec) and not self.backbone.with_cls_token:
            raise ValueError("with_cls_token=False does not go with DPT, whose backbone gives the class token")
        if self.head.threshold is not None and self.num_classes != 2:
            raise ValueError(f"decode_head.threshold divides two classes, not {self.num_classes}")

    @property
    def architecture(self) -> str:
        return "DPT" if isinstance(self.head, DPTHeadSpec) else "UPerNet"

    @property
    def stride(self) -> int:
        """Input pixels per logit along one side, rounded, for inputs that are multiples of 32."""
        if isinstance(self.head, DPTHeadSpec):
            return 2
        scale = self.neck.scales[self.head.in_index[0]] if self.neck else 1
        return max(1, round(self.backbone.patch_size / scale))


def _check_eps(eps: float) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"norm_eps {eps} is {'below 0' if eps < 0 else 'no number'}")


def spec_of(data: dict[str, Any]) -> ModelSpec:
    """The spec that a manifest holds, as JSON gives it back: the inverse of `dataclasses.asdict`.

    Raises:
        BundleError: a setting is missing, unknown or mistyped, or does not go with the others.
    """
    return decode_dataclass(ModelSpec, data, "the manifest", "spec")

"""What a network is: frozen dataclasses, from which ``models.segmentor.build`` makes it.

A spec says only what changes the arithmetic; the rest is in the manifest (`denseport.runtime.bundle.manifest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from denseport.runtime.bundle.decode import decode_dataclass

__all__ = ["DPTHeadSpec", "ModelSpec", "NeckSpec", "UPerHeadSpec", "ViTSpec", "quarters", "spec_of"]

READOUTS = ("project", "add", "ignore")


@dataclass(frozen=True)
class ViTSpec:
    """A plain Vision Transformer (Dosovitskiy et al., 2021) with class token and learned positions."""

    embed_dims: int  # D, the width of a token
    num_layers: int
    num_heads: int
    mlp_dims: int  # hidden width of the feed-forward part
    out_indices: tuple[int, ...]  # the four layers whose output goes to the neck or head, in order
    pos_grid: tuple[int, int]  # rows, columns of the stored position embedding
    norm_eps: float  # of every LayerNorm; no checkpoint shows it
    final_norm: bool = False  # LayerNorm `ln1` behind the last layer only
    patch_bias: bool = True  # released weights have it, checkpoints of mmsegmentation 1.2 lack it
    patch_size: int = 16

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.embed_dims % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dims {self.embed_dims}")
        indices = self.out_indices
        inside = all(0 <= i < self.num_layers for i in indices)
        if len(indices) != 4 or not inside or list(indices) != sorted(set(indices)):
            raise ValueError(f"out_indices {indices} are not four layers, in ascending order, of {self.num_layers}")


def quarters(num_layers: int) -> tuple[int, ...]:
    """The last layer of each quarter, which is what published models take features from."""
    return tuple(num_layers * i // 4 - 1 for i in (1, 2, 3, 4))


@dataclass(frozen=True)
class NeckSpec:
    """MultiLevelNeck: one resized feature map a scale, made of one layer each."""

    out_channels: int
    scales: tuple[float, ...] = (4, 2, 1, 0.5)

    def __post_init__(self) -> None:
        if len(self.scales) != 4 or not all(scale > 0 for scale in self.scales):
            raise ValueError(f"neck.scales {self.scales} are not four positive numbers")


@dataclass(frozen=True)
class DPTHeadSpec:
    """DPT decode head (Ranftl et al., 2021)."""

    channels: int  # width of the fusion path
    post_process_channels: tuple[int, ...]  # width of each reassembled level
    readout: str = "project"  # what becomes of the class token: project, add, ignore

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ValueError(f"readout {self.readout!r} is none of {', '.join(READOUTS)}")


@dataclass(frozen=True)
class UPerHeadSpec:
    """UPerNet decode head (Xiao et al., 2018): pyramid pooling, then a feature pyramid."""

    channels: int
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)


@dataclass(frozen=True)
class ModelSpec:
    """A whole network: backbone, optional neck, head, number of classes."""

    backbone: ViTSpec
    neck: NeckSpec | None
    head: DPTHeadSpec | UPerHeadSpec
    num_classes: int

    @property
    def architecture(self) -> str:
        return "DPT" if isinstance(self.head, DPTHeadSpec) else "UPerNet"

    @property
    def stride(self) -> int:
        """Input pixels per logit along one side, for inputs that are multiples of 32."""
        if isinstance(self.head, DPTHeadSpec):
            return 2
        return int(self.backbone.patch_size / (max(self.neck.scales) if self.neck else 1))


def spec_of(data: dict[str, Any]) -> ModelSpec:
    """The spec that a manifest holds, as JSON gives it back: the inverse of `dataclasses.asdict`.

    Raises:
        BundleError: a setting is missing, unknown or mistyped.
    """
    head = DPTHeadSpec if "readout" in data["head"] else UPerHeadSpec
    parts: dict[str, Any] = {"backbone": ViTSpec, "head": head} | ({} if data["neck"] is None else {"neck": NeckSpec})
    specs = {part: decode_dataclass(kind, data[part], "the manifest", f"spec.{part}") for part, kind in parts.items()}
    return ModelSpec(**data | specs)

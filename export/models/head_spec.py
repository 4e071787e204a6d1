"""What a decode head is: frozen dataclasses, each with the architecture that it makes of a backbone.

A stride is pixels of the network input for one place of a map, along one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = [
    "LARGEST_SCALE",
    "DPTDepthHeadSpec",
    "DPTHeadSpec",
    "DepthAnythingHeadSpec",
    "DepthHeadSpec",
    "FusionSpec",
    "Head",
    "HeadSpec",
    "LinearHeadSpec",
    "MaskHeadSpec",
    "SETRMLAHeadSpec",
    "SETRUPHeadSpec",
    "SegformerHeadSpec",
    "UPerHeadSpec",
    "check_eps",
]

READOUTS = ("project", "add", "ignore")
LARGEST_SCALE = 64  # of an upsampling; a hostile file must not ask for all the memory


@dataclass(frozen=True)
class HeadSpec:
    """What every decode head has."""

    architecture: ClassVar[str]  # the network's name, for people

    channels: int  # width of the fusion path
    in_index: tuple[int, ...] = field(default=(0, 1, 2, 3), kw_only=True)  # the levels it takes, in its order
    align_corners: bool = field(default=False, kw_only=True)  # of its resizes but DPT's, and of those of the logits
    norm_eps: float = field(default=1e-5, kw_only=True)  # of every BatchNorm; no checkpoint shows it
    # One output z for two classes: a pixel is of the second where sigmoid(z) exceeds it. See `checkpoint.weights`.
    threshold: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_eps(self.norm_eps)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} is not between 0 and 1: every pixel would be of one class")

    def stride(self, levels: Sequence[float]) -> float:
        """Of the logits; ``levels``: of the maps that the head takes."""
        return levels[0]

    def _need(self, number: int, what: str) -> None:
        if len(self.in_index) != number:
            raise ValueError(f"decode_head.in_index {self.in_index} {'are' if number > 1 else 'is'} not {what}")


@dataclass(frozen=True)
class FusionSpec(HeadSpec):
    """What DPT's heads share (Ranftl et al., 2021): tokens of four layers as maps, fused from coarse to fine."""

    # What is upsampled takes the next level's size; else every upsampling is by two, and the level takes its size.
    fits_levels: ClassVar[bool] = False

    post_process_channels: tuple[int, ...]  # width of each reassembled level
    readout: str = "project"  # what becomes of the class token: project, add, ignore
    unit_norm: bool = field(default=True, kw_only=True)  # BatchNorm behind the convolutions of the fusion's units
    unit_bias: bool = field(default=False, kw_only=True)  # bias of these convolutions

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(4, "the four levels that DPT fuses")
        if self.readout not in READOUTS:
            raise ValueError(f"readout {self.readout!r} is not one of {', '.join(READOUTS)}")


@dataclass(frozen=True)
class DPTHeadSpec(FusionSpec):
    """DPT decode head."""

    architecture = "DPT"

    upsamples_logits: bool = False  # by two, corners aligned
    kind: str = field(default="DPTHead", init=False)

    def stride(self, levels: Sequence[float]) -> float:
        # Four times as fine for the first fusion, and twice by the last.
        return levels[0] / (16 if self.upsamples_logits else 8)


@dataclass(frozen=True)
class DepthHeadSpec(FusionSpec):
    """A head on DPT's fusion that gives a depth, or a disparity, for each pixel; zero or above."""

    depth_channels: int = field(kw_only=True)  # of the map before the last convolution


@dataclass(frozen=True)
class DPTDepthHeadSpec(DepthHeadSpec):
    """DPT's and MiDaS's head for depth."""

    architecture = "DPT"

    projects: bool = field(default=False, kw_only=True)  # one more convolution and ReLU behind the fusion
    metres: bool = field(kw_only=True)  # larger is farther; else a disparity, larger nearer, up to a scale and a shift
    inversion: tuple[float, float] | None = field(default=None, kw_only=True)  # a, b: metres are 1 / (a * x + b)
    kind: str = field(default="DPTDepthHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inversion is not None and not (min(self.inversion) > 0 and max(self.inversion) < float("inf")):
            raise ValueError(f"inversion {self.inversion} is not a scale and a shift above 0")
        if self.inversion is not None and not self.metres:
            raise ValueError("an inversion gives metres")

    def stride(self, levels: Sequence[float]) -> float:
        return levels[0] / 16


@dataclass(frozen=True)
class DepthAnythingHeadSpec(DepthHeadSpec):
    """Depth Anything's head (Yang et al., 2024), V1 and V2: its map has the size of the image's whole patches."""

    architecture = "Depth Anything"
    fits_levels = True

    max_depth: float | None = field(default=None, kw_only=True)  # what a sigmoid is multiplied by; None: ReLU
    kind: str = field(default="DepthAnythingHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_depth is not None and not 0 < self.max_depth < float("inf"):
            raise ValueError(f"max_depth {self.max_depth} is not a depth")

    @property
    def metres(self) -> bool:
        """Larger is farther; else a disparity."""
        return self.max_depth is not None

    def stride(self, levels: Sequence[float]) -> float:
        return 1


@dataclass(frozen=True)
class UPerHeadSpec(HeadSpec):
    """UPerNet decode head (Xiao et al., 2018): pyramid pooling, then a feature pyramid."""

    architecture = "UPerNet"

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    kind: str = field(default="UPerHead", init=False)


@dataclass(frozen=True)
class SETRUPHeadSpec(HeadSpec):
    """SETR's naive and progressive decode heads (Zheng et al., 2021): convolutions of one map, each upsampled."""

    architecture = "SETR"

    num_convs: int = 1
    kernel_size: int = 3  # of each convolution
    up_scale: int = 4  # by which each result is upsampled
    layer_eps: float = 1e-6  # of the LayerNorm on the map
    kind: str = field(default="SETRUPHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(1, "the one level that SETRUPHead takes")
        check_eps(self.layer_eps)
        if self.num_convs < 1:
            raise ValueError(f"num_convs {self.num_convs} is below 1")
        _check_scale(self.up_scale, "up_scale")
        _check_scale(self.up_scale**self.num_convs, "up_scale ** num_convs")

    def stride(self, levels: Sequence[float]) -> float:
        return levels[0] / self.up_scale**self.num_convs


@dataclass(frozen=True)
class SETRMLAHeadSpec(HeadSpec):
    """SETR's multi-level decode head: two convolutions of each map, upsampled and joined."""

    architecture = "SETR"

    mla_channels: int  # of each map's convolutions
    up_scale: int = 4
    kind: str = field(default="SETRMLAHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scale(self.up_scale, "up_scale")

    def stride(self, levels: Sequence[float]) -> float:
        return levels[0] / self.up_scale


@dataclass(frozen=True)
class MaskHeadSpec(HeadSpec):
    """Segmenter's mask transformer (Strudel et al., 2021): class tokens among the patches' give the masks."""

    architecture = "Segmenter"

    num_layers: int
    num_heads: int
    mlp_dims: int  # hidden width of the feed-forward parts
    layer_eps: float = 1e-5  # of every LayerNorm
    kind: str = field(default="SegmenterMaskTransformerHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(1, "the one level that Segmenter takes")
        check_eps(self.layer_eps)
        if self.num_heads < 1 or self.channels % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dims {self.channels}")


@dataclass(frozen=True)
class LinearHeadSpec(HeadSpec):
    """Segmenter's linear decode head: FCNHead without a convolution before the last."""

    architecture = "Segmenter"

    kind: str = field(default="FCNHead", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(1, "the one level that FCNHead takes")


@dataclass(frozen=True)
class SegformerHeadSpec(HeadSpec):
    """SegFormer's decode head (Xie et al., 2021): every level at one width and the first one's size, joined."""

    architecture = "SegFormer"

    level_norm: bool = True  # BatchNorm and ReLU on each level; Hugging Face's has a bias there instead
    kind: str = field(default="SegformerHead", init=False)


Head = (
    DPTHeadSpec
    | DPTDepthHeadSpec
    | DepthAnythingHeadSpec
    | UPerHeadSpec
    | SETRUPHeadSpec
    | SETRMLAHeadSpec
    | MaskHeadSpec
    | LinearHeadSpec
    | SegformerHeadSpec
)


def _check_scale(scale: int, name: str) -> None:
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"{name} {scale} is not in 1 to {LARGEST_SCALE}")


def check_eps(eps: float) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"norm_eps {eps} is {'below 0' if eps < 0 else 'no number'}")

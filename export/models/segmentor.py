"""The whole network: normalised image in, logits or depth out."""

from __future__ import annotations

from torch import Tensor, nn

from denseport.export.models.depth import DepthAnythingHead, DPTDepthHead
from denseport.export.models.dpt import DPTHead, FusionHead
from denseport.export.models.head_spec import (
    DepthAnythingHeadSpec,
    DPTDepthHeadSpec,
    DPTHeadSpec,
    FusionSpec,
    LinearHeadSpec,
    MaskHeadSpec,
    SegformerHeadSpec,
    SETRMLAHeadSpec,
    SETRUPHeadSpec,
    UPerHeadSpec,
)
from denseport.export.models.mit import MixVisionTransformer
from denseport.export.models.segformer import SegformerHead
from denseport.export.models.segmenter import LinearHead, MaskTransformerHead
from denseport.export.models.setr import MLANeck, SETRMLAHead, SETRUPHead
from denseport.export.models.spec import Backbone, MiTSpec, MLANeckSpec, ModelSpec, NeckSpec, ViTSpec
from denseport.export.models.upernet import MultiLevelNeck, UPerHead
from denseport.export.models.vit import VisionTransformer

__all__ = ["Segmentor", "build", "has_rewrites"]


class Segmentor(nn.Module):
    """Image (B, C, H, W), normalised float, RGB or grey, to the head's logits (B, classes, h, w), before any resize.

    A head for depth gives (B, 1, h, w), zero or above, in metres or up to a scale and a shift.

    h, w are H, W over the spec's ``stride`` for multiples of its ``unit``; otherwise padding to whole patches, patches
    that overlap and an odd token grid make them a little larger (``mmseg`` resizes, it does not crop).
    """

    def __init__(self, spec: ModelSpec, rewrite: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = _backbone(spec.backbone)
        self.neck = _neck(spec)
        self.decode_head = _with_eps(_head(spec, rewrite), spec.head.norm_eps)

    def forward(self, image: Tensor) -> Tensor:
        levels, wanted = self.backbone(image), self.spec.head.in_index
        if isinstance(self.decode_head, FusionHead):
            return self.decode_head([levels[i] for i in wanted])
        if isinstance(self.backbone, VisionTransformer):
            levels = [features for features, _ in levels]
        maps = self.neck(levels) if self.neck is not None else levels
        return self.decode_head([maps[i] for i in wanted])


def _backbone(spec: Backbone) -> nn.Module:
    match spec:
        case ViTSpec():
            return VisionTransformer(spec)
        case MiTSpec():
            return MixVisionTransformer(spec)


def _neck(spec: ModelSpec) -> nn.Module | None:
    widths = spec.backbone.widths
    match spec.neck:
        case NeckSpec():
            return MultiLevelNeck(widths[0], len(widths), spec.neck)
        case MLANeckSpec():
            return _with_eps(MLANeck(widths[0], len(widths), spec.neck), spec.neck.norm_eps)
        case None:
            return None


def _head(spec: ModelSpec, rewrite: bool) -> nn.Module:
    widths, classes = spec.widths, spec.num_classes
    match spec.head:
        case DPTHeadSpec() as head:
            return DPTHead(widths[0], head, classes, rewrite)
        case DPTDepthHeadSpec() as head:
            return DPTDepthHead(widths[0], head, rewrite)
        case DepthAnythingHeadSpec() as head:
            return DepthAnythingHead(widths[0], head, spec.backbone.smallest, rewrite)
        case UPerHeadSpec() as head:
            return UPerHead(widths[0], head, classes)
        case SETRUPHeadSpec() as head:
            return SETRUPHead(widths[0], head, classes, rewrite)
        case SETRMLAHeadSpec() as head:
            return SETRMLAHead(widths, head, classes, rewrite)
        case MaskHeadSpec() as head:
            return MaskTransformerHead(widths[0], head, classes)
        case LinearHeadSpec():
            return LinearHead(widths[0], classes)
        case SegformerHeadSpec() as head:
            return SegformerHead(widths, head, classes, rewrite)


def _with_eps(part: nn.Module, eps: float) -> nn.Module:
    """A part of the network, its BatchNorms with the eps of their configuration."""
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return part


def has_rewrites(spec: ModelSpec) -> bool:
    """Whether ``rewrite`` of `build` changes the order of a network's operations."""
    return isinstance(spec.head, FusionSpec | SETRUPHeadSpec | SETRMLAHeadSpec | SegformerHeadSpec)


def build(spec: ModelSpec, *, rewrite: bool = True) -> Segmentor:
    """The network of a spec, in evaluation mode, with random weights.

    Args:
        rewrite: with the exact rewrites of `models.dpt`, `models.setr`, `models.segformer`; else in upstream's order.
    """
    return Segmentor(spec, rewrite).eval()

"""The whole network: normalised image in, logits out."""

from __future__ import annotations

from torch import Tensor, nn

from denseport.export.models.dpt import DPTHead
from denseport.export.models.spec import DPTHeadSpec, ModelSpec
from denseport.export.models.upernet import MultiLevelNeck, UPerHead
from denseport.export.models.vit import VisionTransformer

__all__ = ["Segmentor", "build"]


class Segmentor(nn.Module):
    """Image (B, C, H, W), normalised float, RGB or grey, to the head's logits (B, classes, h, w), before any resize.

    h, w are H, W over the spec's ``stride`` for multiples of 32; otherwise the padding to whole patches and an odd
    token grid make them a little larger (``mmseg`` resizes, it does not crop).
    """

    def __init__(self, spec: ModelSpec, rewrite: bool = True) -> None:
        super().__init__()
        self.spec = spec
        dims, levels = spec.backbone.embed_dims, len(spec.backbone.out_indices)
        self.backbone = VisionTransformer(spec.backbone)
        self.neck = None
        if spec.neck is not None:
            self.neck = MultiLevelNeck(dims, levels, spec.neck)
            dims = spec.neck.out_channels
        self.decode_head: nn.Module
        if isinstance(spec.head, DPTHeadSpec):
            self.decode_head = DPTHead(dims, spec.head, spec.num_classes, rewrite)
        else:
            self.decode_head = UPerHead(dims, spec.head, spec.num_classes)
        for module in self.decode_head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = spec.head.norm_eps

    def forward(self, image: Tensor) -> Tensor:
        levels, wanted = self.backbone(image), self.spec.head.in_index
        if isinstance(self.decode_head, DPTHead):
            return self.decode_head([levels[i] for i in wanted])
        maps = [features for features, _ in levels]
        maps = self.neck(maps) if self.neck is not None else maps
        return self.decode_head([maps[i] for i in wanted])


def build(spec: ModelSpec, *, rewrite: bool = True) -> Segmentor:
    """The network of a spec, in evaluation mode, with random weights; ``rewrite``: see `models.dpt`."""
    return Segmentor(spec, rewrite).eval()

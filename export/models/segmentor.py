"""The whole network: normalised image in, logits out."""

from __future__ import annotations

from torch import Tensor, nn

from denseport.export.models.dpt import DPTHead
from denseport.export.models.spec import DPTHeadSpec, ModelSpec
from denseport.export.models.upernet import MultiLevelNeck, UPerHead
from denseport.export.models.vit import VisionTransformer

__all__ = ["Segmentor", "build"]


class Segmentor(nn.Module):
    """Image (B, 3, H, W), normalised RGB float, to the head's logits (B, classes, h, w), before any resize.

    h, w are H, W over the spec's ``stride`` for multiples of 32; otherwise the padding to whole patches and an odd
    token grid make them a little larger (``mmseg`` resizes, it does not crop).
    """

    def __init__(self, spec: ModelSpec, rewrite: bool = True) -> None:
        super().__init__()
        self.spec = spec
        dims, levels = spec.backbone.embed_dims, len(spec.backbone.out_indices)
        self.backbone = VisionTransformer(spec.backbone)
        self.neck = None
        if isinstance(spec.head, DPTHeadSpec):
            self.decode_head: nn.Module = DPTHead(dims, spec.head, spec.num_classes, rewrite)
            return
        if spec.neck is not None:
            self.neck = MultiLevelNeck(dims, levels, spec.neck)
            dims = spec.neck.out_channels
        self.decode_head = UPerHead(dims, levels, spec.head, spec.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        levels = self.backbone(image)
        if isinstance(self.decode_head, DPTHead):
            return self.decode_head(levels)
        maps = [features for features, _ in levels]
        return self.decode_head(self.neck(maps) if self.neck is not None else maps)


def build(spec: ModelSpec, *, rewrite: bool = True) -> Segmentor:
    """The network of a spec, in evaluation mode, with random weights; ``rewrite``: see `models.dpt`."""
    return Segmentor(spec, rewrite).eval()

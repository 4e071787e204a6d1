"""A network of one line, in the place of a checkpoint's: for tests of what happens before and after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.settings import inference_of
from denseport.runtime.backends.session import Session
from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import NetworkInput
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.pipeline.pipeline import SegmentationPipeline

__all__ = ["WEIGHT", "network", "runner"]

WEIGHT = torch.randn(3, 3, 1, 1, generator=torch.Generator().manual_seed(0))


def network(tensor: Tensor, weight: Tensor = WEIGHT) -> Tensor:
    """Logits (1, K, ceil(h / 4), ceil(w / 4)) of a normalised image (1, C, h, w); weight: (K, C, 1, 1)."""
    return F.conv2d(F.avg_pool2d(tensor, 4, ceil_mode=True), weight)


@dataclass(frozen=True)
class FakeSession(Session):
    weight: Tensor
    threshold: float | None
    description = "a fake"

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = network(torch.from_numpy(image), self.weight).numpy()
        if self.threshold is None:
            return logits
        return np.concatenate([np.full_like(logits, math.log(self.threshold / (1 - self.threshold))), logits], 1)


def runner(
    sample: Bundle,
    checkpoint: Checkpoint,
    *,
    align_corners: bool = False,
    weight: Tensor = WEIGHT,
    threshold: float | None = None,
) -> SegmentationPipeline:
    """What runs a bundle of the checkpoint, with `network` in the place of its network.

    Args:
        sample: any bundle, whose manifest is changed.
        threshold: of a weight with one output.
    """
    path, classes = image_steps(checkpoint), 2 if threshold is not None else len(weight)
    manifest = replace(
        sample.manifest,
        preprocess=path.preprocess,
        inference=inference_of(checkpoint)[0],
        augmentation=path.augmentation,
        align_corners=align_corners,
        classes=tuple("abc"[:classes]),
        palette=((0, 0, 0),) * classes,
        patch_size=1,
        threshold=threshold,
        input=NetworkInput("image", (None, weight.shape[1], None, None)),
    )
    session = SharedSession(FakeSession(weight, threshold))
    return SegmentationPipeline(manifest, Path(), "fake", parse_protocol("reference", manifest), session, 1)

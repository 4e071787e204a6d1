"""Put a checkpoint's weights into the network, strictly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from denseport.export.checkpoint.file import Checkpoint
from denseport.export.errors import CheckpointError
from denseport.export.models.segmentor import Segmentor, build
from denseport.export.models.spec import ModelSpec

__all__ = ["load_model"]

AUXILIARY = "auxiliary_head."  # the keys of what helps to train the backbone, and is never run afterwards
MOST = 6  # keys of each kind of misfit that a message lists


def load_model(checkpoint: Checkpoint, spec: ModelSpec, *, rewrite: bool = True) -> Segmentor:
    """The network of ``spec`` with the checkpoint's weights as float32, in evaluation mode.

    The auxiliary head is left out; every other key must fit.

    Raises:
        CheckpointError: missing or unexpected keys, or shapes that differ; the first of each are listed.
    """
    weights = {
        key: value.float() if value.is_floating_point() else value
        for key, value in checkpoint.state_dict.items()
        if not key.startswith(AUXILIARY)
    }
    with torch.device("meta"):
        model = build(spec, rewrite=rewrite)
    problems = _problems(model.state_dict(), weights)
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: its weights do not fit a {spec.architecture} network:\n  " + "\n  ".join(problems),
            "Give the checkpoint as it was trained; a file with keys renamed or cut out cannot be exported.",
        )
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False)


def _problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, in words."""
    missing = [f"missing {key} {tuple(value.shape)}" for key, value in wanted.items() if key not in found]
    unexpected = [f"unexpected {key} {tuple(value.shape)}" for key, value in found.items() if key not in wanted]
    different = [
        f"{key} is {tuple(value.shape)} {value.dtype}, expected {tuple(wanted[key].shape)} {wanted[key].dtype}"
        for key, value in found.items()
        if key in wanted and (value.shape != wanted[key].shape or value.dtype != wanted[key].dtype)
    ]
    problems = []
    for kind in (missing, unexpected, different):
        problems += kind[:MOST]
        if len(kind) > MOST:
            problems.append(f"… and {len(kind) - MOST} more like it")
    return problems

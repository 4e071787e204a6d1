"""Put a checkpoint's weights into the network, strictly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from denseport.export.checkpoint import Checkpoint
from denseport.export.errors import CheckpointError
from denseport.export.models.segmentor import Segmentor, build
from denseport.export.spec import ModelSpec

__all__ = ["load_model"]

AUXILIARY = "auxiliary_head."  # helps to train the backbone, is never run afterwards


def load_model(checkpoint: Checkpoint, spec: ModelSpec, *, rewrite: bool = True) -> Segmentor:
    """The network of ``spec`` with the checkpoint's weights as float32, in evaluation mode.

    The auxiliary head is left out by name; every other key must fit.

    Raises:
        CheckpointError: missing or unexpected keys, or shapes that differ; all are listed.
    """
    weights = {
        key: value.float() if value.is_floating_point() else value
        for key, value in checkpoint.state_dict.items()
        if not key.startswith(AUXILIARY)
    }
    with torch.device("meta"):
        model = build(spec, rewrite=rewrite)
    problems = _problems({key: value.shape for key, value in model.state_dict().items()}, weights)
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: its weights do not fit a {spec.architecture} network:\n  " + "\n  ".join(problems),
            "Give the checkpoint as it was trained; a file with keys renamed or cut out cannot be exported.",
        )
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False)


def _problems(wanted: Mapping[str, torch.Size], found: Mapping[str, Tensor], at_most: int = 12) -> list[str]:
    problems = [f"missing {key} {tuple(shape)}" for key, shape in wanted.items() if key not in found]
    problems += [f"unexpected {key} {tuple(value.shape)}" for key, value in found.items() if key not in wanted]
    problems += [
        f"{key} is {tuple(value.shape)}, expected {tuple(wanted[key])}"
        for key, value in found.items()
        if key in wanted and value.shape != wanted[key]
    ]
    if len(problems) > at_most:
        problems = [*problems[:at_most], f"… and {len(problems) - at_most} more"]
    return problems

"""PyTorch eager as a session: what ``denseport bench --baseline torch`` compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from denseport.export.checkpoint import read_checkpoint
from denseport.export.models.segmentor import build
from denseport.export.recognise import recognise
from denseport.export.spec import DPTHeadSpec, ModelSpec, NeckSpec, UPerHeadSpec, ViTSpec
from denseport.export.weights import load_model
from denseport.runtime.manifest import Manifest

__all__ = ["TorchSession", "spec_of", "torch_baseline"]


class TorchSession:
    """A network in PyTorch, eager, FP32, on the CPU or, where there is one, the GPU.

    Args:
        threads: of the CPU; default: the CPUs this process may use, as PyTorch counts them. It holds for the process.
    """

    def __init__(self, model: torch.nn.Module, weights: str, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._weights = weights

    @torch.inference_mode()
    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32."""
        logits: NDArray[np.float32] = self._model(torch.from_numpy(image).to(self._device)).cpu().numpy()
        return logits

    @property
    def description(self) -> str:
        threads = f", {torch.get_num_threads()} threads" if self._device.type == "cpu" else ""
        return f"PyTorch {torch.__version__} eager, {self._device.type}{threads}, {self._weights}"


def torch_baseline(manifest: Manifest, checkpoint: Path | None, threads: int | None = None) -> TorchSession:
    """The bundle's network in PyTorch, as upstream computes it: without the rewrites of the export.

    Args:
        checkpoint: its weights; None: random ones, which take as long.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is another network.
    """
    if checkpoint is None:
        torch.manual_seed(0)
        return TorchSession(build(spec_of(manifest.spec), rewrite=False), "random weights", threads)
    source = read_checkpoint(checkpoint)
    model = load_model(source, recognise(source, None).spec, rewrite=False)
    return TorchSession(model, checkpoint.name, threads)


def spec_of(data: dict[str, Any]) -> ModelSpec:
    """The spec that a manifest holds, the inverse of `dataclasses.asdict`."""

    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}

    head = data["head"]
    return ModelSpec(
        backbone=ViTSpec(**tuples(data["backbone"])),
        neck=NeckSpec(**tuples(data["neck"])) if data["neck"] is not None else None,
        head=DPTHeadSpec(**tuples(head)) if "readout" in head else UPerHeadSpec(**tuples(head)),
        num_classes=data["num_classes"],
    )

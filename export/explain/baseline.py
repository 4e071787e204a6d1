"""PyTorch eager as a session: what artifacts are compared with, in speed and in accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.weights import load_model
from denseport.export.models.segmentor import build
from denseport.export.models.spec import spec_of
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import InputError
from denseport.runtime.system.text import count

__all__ = ["TorchSession", "torch_baseline"]


class TorchSession(Session):
    """A network in PyTorch, eager, FP32.

    Args:
        device: where the network is moved to; default: the GPU if PyTorch has one, else the CPU.
        weights: what they are, for the description.
    """

    def __init__(self, model: torch.nn.Module, *, device: str | None = None, weights: str = "") -> None:
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.on_gpu = self._device.type != "cpu"
        self._model = model.eval().to(self._device)
        self._weights = weights

    @torch.inference_mode()
    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32."""
        logits: NDArray[np.float32] = self._model(torch.from_numpy(image).to(self._device)).cpu().numpy()
        return logits

    @property
    def description(self) -> str:
        threads = count(torch.get_num_threads(), "thread") if self._device.type == "cpu" else ""
        facts = [f"PyTorch {torch.__version__} eager", self._device.type, threads, self._weights]
        return ", ".join(fact for fact in facts if fact)


def torch_baseline(manifest: Manifest, checkpoint: Path | None, threads: int | None = None) -> TorchSession:
    """The bundle's network in PyTorch, as upstream computes it: without the rewrites of the export.

    Args:
        checkpoint: its weights; None: random ones, which are as fast.
        threads: of the CPU, for this process; default: PyTorch's own choice.

    Raises:
        InputError: an imported network, or a module of one's own.
        CheckpointError: the checkpoint cannot be read, or is of another network than the bundle's.
    """
    if not manifest.spec:
        what = f"{manifest.name} ({manifest.architecture}) is not built by Denseport, so there is no torch module of it"
        raise InputError(what, "Leave --baseline out.")
    if threads is not None:
        torch.set_num_threads(threads)
    spec = spec_of(manifest.spec)
    if checkpoint is None:
        torch.manual_seed(0)
        return TorchSession(build(spec, rewrite=False), weights="random weights")
    ema = manifest.artifacts[manifest.source].record.get("ema")
    model = load_model(read_checkpoint(checkpoint), spec, rewrite=False, ema=ema)
    return TorchSession(model, weights=checkpoint.name)

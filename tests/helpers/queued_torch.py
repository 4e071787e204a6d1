"""torch on the CPU as a back end of the fake GPU (``scripts/gpu/gpu_torch.py``): it computes when its stream runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda

from denseport.runtime.backends.cuda.zero_copy import View


def queue_torch(monkeypatch: pytest.MonkeyPatch, gpu_torch: Any) -> None:
    """Let the slots of `gpu_torch.TorchDeviceSession` queue their work on the fake's streams."""

    class QueuedSlot(gpu_torch._Slot):  # type: ignore[misc]  # its base is only known now
        def __init__(self, module: torch.nn.Module, cuda: FakeCuda) -> None:
            super().__init__(module, cuda)
            self._cuda = cuda

        def infer(self, image: View) -> View:
            view: View = super().infer(image)  # of whatever lies there now: memory for the result
            logits = self._logits
            self._cuda.lend(view.address, view.nbytes)

            def work() -> None:
                with torch.inference_mode():
                    source = gpu_torch.tensor_of(image, on_gpu=False).to(self._dtype)
                    logits.copy_(self._module(source).float())

            assert self._cuda.enqueue(self.stream.handle, work) == 0
            return view

    monkeypatch.setattr(gpu_torch, "_Slot", QueuedSlot)

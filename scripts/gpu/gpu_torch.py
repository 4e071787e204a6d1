"""A back end in torch whose tensors stay on the GPU, in streams of ours: for checks, no part of the product.

A machine with torch alone proves with it what else takes TensorRT or ONNX Runtime's GPU package: streams, CUDA graphs,
the kernels around a network, and whole images. Used by gpu_images.py and by the GPU tests.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.device import DeviceNetwork
from denseport.runtime.backends.cuda.driver import Cuda, open_cuda
from denseport.runtime.backends.cuda.zero_copy import CPU, CUDA, DeviceArray, View
from denseport.runtime.backends.session import Session

if TYPE_CHECKING:
    from denseport.runtime.backends.cuda.device import ExecutionSlot

__all__ = ["TorchDeviceSession", "finished", "tensor_of"]

SLOTS = 2


class TorchDeviceSession(Session):
    """A torch network as a back end.

    Args:
        module: from images (N, 3, H, W) of its parameters' type to logits (N, C, h, w).
        graphs: whether the work of each size is recorded once and repeated.
        cuda: default: `open_cuda`.
    """

    on_gpu = True

    def __init__(self, module: torch.nn.Module, *, graphs: bool = False, cuda: Cuda | None = None) -> None:
        self._module, self._graphs = module.eval().requires_grad_(False), graphs
        self._cuda = cuda or open_cuda()
        finished(next(module.parameters()))

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        parameter = next(self._module.parameters())
        with torch.inference_mode():
            logits = self._module(torch.from_numpy(image).to(parameter.device, parameter.dtype))
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    @property
    def description(self) -> str:
        return f"torch {torch.__version__}, {self._cuda.device.name}"

    def device_network(self) -> DeviceNetwork:
        def new_slot() -> ExecutionSlot:
            return _Slot(self._module, self._cuda)

        return DeviceNetwork(self._cuda, SLOTS, self._graphs, new_slot)


class _Slot:
    """A stream, and memory that nobody else is given: what is recorded here writes to it again and again."""

    def __init__(self, module: torch.nn.Module, cuda: Cuda) -> None:
        parameter = next(module.parameters())
        self._module, self._dtype, self._device = module, parameter.dtype, parameter.device
        self.stream = cuda.stream()
        self._pool = torch.cuda.MemPool() if self._device.type == "cuda" else None
        self._logits: torch.Tensor | None = None

    def infer(self, image: View) -> View:
        source = tensor_of(image, on_gpu=self._pool is not None)
        with torch.inference_mode(), self._queue():
            logits = self._module(source.to(self._dtype)).float().contiguous()
        self._logits = logits
        return View(logits.data_ptr(), tuple(logits.shape), np.dtype(np.float32), None, logits)

    def _queue(self) -> AbstractContextManager[Any]:
        """Work goes to the slot's stream, and memory comes from its pool."""
        if self._pool is None:
            return nullcontext()
        with ExitStack() as stack:
            stream = torch.cuda.ExternalStream(self.stream.handle)  # type: ignore[no-untyped-call]
            stack.enter_context(torch.cuda.stream(stream))
            stack.enter_context(torch.cuda.use_mem_pool(self._pool))
            return stack.pop_all()

    def capturable(self) -> bool:
        """After the first run of a size the pool has all that it needs, and torch has chosen its kernels."""
        return self._logits is not None

    def close(self) -> None:
        self._logits = self._pool = None
        self.stream.close()


def finished(tensor: torch.Tensor) -> None:
    """Wait for what torch has queued on a tensor's device: streams of ours are ordered with none of torch's."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def tensor_of(view: View, *, on_gpu: bool) -> torch.Tensor:
    """A tensor on memory of ours, without a copy."""
    kind = CUDA if on_gpu else CPU
    array = DeviceArray(view.address, view.shape, view.dtype, lambda: None, device=(kind, 0))
    tensor: torch.Tensor = torch.from_dlpack(array)  # type: ignore[attr-defined]
    return tensor

"""A back end in torch whose tensors stay on the GPU, in streams and memory of ours: for checks, no part of the product.

A machine with torch alone proves with it what else takes TensorRT or ONNX Runtime's GPU package: streams, CUDA graphs,
the kernels around a network, and whole images. Used by gpu_images.py and by the GPU tests.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.buffers import Buffers
from denseport.runtime.backends.cuda.device import DeviceNetwork
from denseport.runtime.backends.cuda.driver import Cuda, Stream, open_cuda
from denseport.runtime.backends.cuda.zero_copy import DeviceArray, View
from denseport.runtime.backends.session import Session

__all__ = ["Queue", "TorchDeviceSession", "finished", "tensor_of"]

Queue = Callable[[Stream, Callable[[], object]], object]  # puts work of torch on a stream of ours
FLOAT32 = np.dtype(np.float32)
SLOTS = 2


class TorchDeviceSession(Session):
    """A torch network as a back end.

    Args:
        module: from images (N, 3, H, W) of its parameters' type to logits (N, C, h, w).
        graphs: whether the work of each size is recorded once and repeated.
        cuda: default: `open_cuda`.
        queue: for a module that is not on a GPU; default: what torch does there goes to the stream.
    """

    on_gpu = True

    def __init__(
        self, module: torch.nn.Module, *, graphs: bool = False, cuda: Cuda | None = None, queue: Queue | None = None
    ) -> None:
        self._module, self._graphs, self._queue = module.eval().requires_grad_(False), graphs, queue
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
        new_slot = partial(_Slot, self._module, self._cuda, self._queue)
        return DeviceNetwork(self._cuda, SLOTS, self._graphs, new_slot)


class _Slot:
    """A stream, logits in a buffer of ours, and memory of torch's that nobody else is given."""

    def __init__(self, module: torch.nn.Module, cuda: Cuda, queue: Queue | None) -> None:
        parameter = next(module.parameters())
        self._module, self._dtype, self._device = module, parameter.dtype, parameter.device
        self._buffers, self.stream = Buffers(cuda), cuda.stream()
        self._queue = queue or _torch_queue()
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # of the logits, by the image's

    def infer(self, image: View) -> View:
        if image.shape not in self._shapes:
            self._shapes[image.shape] = self._try_out(image.shape)
        shape = self._shapes[image.shape]
        logits = View(self._buffers.device("logits", 4 * math.prod(shape)), shape, FLOAT32, None, self)
        source, target = (tensor_of(view, on_gpu=self._device.type == "cuda") for view in (image, logits))

        @torch.inference_mode()
        def work() -> None:
            target.copy_(self._module(source.to(self._dtype)))

        self._queue(self.stream, work)
        return logits

    @torch.inference_mode()
    def _try_out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the logits. Torch chooses its kernels meanwhile, which may not happen while work is recorded."""
        logits = self._module(torch.zeros(shape, dtype=self._dtype, device=self._device))
        finished(logits)
        return tuple(logits.shape)

    def capturable(self) -> bool:
        return True

    def close(self) -> None:
        self._buffers.close()
        self.stream.close()


def _torch_queue() -> Queue:
    """Torch's work goes to a stream of ours, and takes its memory from a pool that stays.

    What is recorded writes to that memory again and again: nobody else may be given it.
    """
    pool = torch.cuda.MemPool()

    def queue(stream: Stream, work: Callable[[], object]) -> None:
        external = torch.cuda.ExternalStream(stream.handle)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(external), torch.cuda.use_mem_pool(pool):
            work()

    return queue


def finished(tensor: torch.Tensor) -> None:
    """Wait for what torch has queued on a tensor's device: streams of ours are ordered with none of torch's."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def tensor_of(view: View, *, on_gpu: bool) -> torch.Tensor:
    """A tensor on memory of ours, without a copy."""
    if on_gpu:
        array = DeviceArray(view.address, view.shape, view.dtype, lambda: None)
        tensor: torch.Tensor = torch.from_dlpack(array)  # type: ignore[attr-defined]
        return tensor
    memory = (ctypes.c_uint8 * (math.prod(view.shape) * view.dtype.itemsize)).from_address(view.address)
    return torch.from_numpy(np.frombuffer(memory, view.dtype).reshape(view.shape))

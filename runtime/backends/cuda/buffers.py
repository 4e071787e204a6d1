"""Memory that is taken once and used again: it grows to the largest that was asked for."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from denseport.runtime.backends.cuda.driver import Cuda, DeviceMemory, PinnedMemory

__all__ = ["Buffers"]


class Buffers:
    """Buffers on the GPU and pinned ones on the host, by name; for one user at a time, in the GPU's context."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: dict[str, DeviceMemory] = {}
        self._host: dict[str, PinnedMemory] = {}
        self._stack = ExitStack()

    def device(self, name: str, size: int) -> int:
        """The address of at least ``size`` bytes; the same one until more is asked for."""
        memory = self._device.get(name)
        if memory is None or memory.size < size:
            if memory is not None:
                memory.close()
            memory = self._device[name] = self._cuda.allocate(size)
            self._stack.callback(memory.close)
        return memory.address

    def host(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A pinned array, whose content lasts until the next call for this name."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._host.get(name)
        if memory is None or memory.data.nbytes < size:
            if memory is not None:
                memory.close()
            memory = self._host[name] = self._cuda.pinned(size)
            self._stack.callback(memory.close)
        return memory.data[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Give all of it back; no address or array of it may be used any more."""
        self._stack.close()

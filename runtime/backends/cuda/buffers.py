"""Memory that is allocated once and used again. It grows to the largest size that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from denseport.runtime.backends.cuda.driver import Cuda, DeviceMemory, PinnedMemory

__all__ = ["Buffers"]

M = TypeVar("M", DeviceMemory, PinnedMemory)


class Buffers:
    """Buffers on the GPU and pinned ones on the host, by name; for one user at a time, in the GPU's context."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: dict[str, DeviceMemory] = {}
        self._host: dict[str, PinnedMemory] = {}

    def device(self, name: str, size: int) -> int:
        """The address of at least ``size`` bytes; the same one until more is asked for."""
        return _grown(self._device, name, size, self._cuda.allocate).address

    def host(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A pinned array, whose content lasts until the next call for this name."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return _grown(self._host, name, size, self._cuda.pinned).data[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Give all of it back; no address or array of it may be used any more."""
        with ExitStack() as stack:
            for memory in (*self._device.values(), *self._host.values()):
                stack.callback(memory.close)


def _grown(kept: dict[str, M], name: str, size: int, allocate: Callable[[int], M]) -> M:
    if name in kept and kept[name].size < size:
        kept.pop(name).close()
    if name not in kept:
        kept[name] = allocate(size)
    return kept[name]

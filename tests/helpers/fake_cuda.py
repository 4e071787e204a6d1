"""A fake of CUDA for machines without a GPU: it checks the order of the calls, and runs the kernels."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from cpu_kernels import Kernels

from denseport.runtime.backends.cuda.driver import Cuda, Device, DeviceMemory, Graph, PinnedMemory, Stream
from denseport.runtime.backends.cuda.kernels.launch import Launch


class FakeCuda(Cuda):
    """Memory is host memory, copies and kernels happen at once, a graph repeats its Python calls.

    Args:
        kernels: what `load` gives, compiled for this processor.
    """

    name = "fake"
    device = Device("Fake GPU", (8, 6), "13.0")

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = kernels
        self.allocated: list[np.ndarray[Any, Any]] = []
        self.pinned_count = 0
        self.launched: list[str] = []
        self.alive = 0
        self.captures = self.launches = self.device_synchronizations = 0
        self.capturing = False
        self._inside = threading.local()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._inside.depth = getattr(self._inside, "depth", 0) + 1
        try:
            yield
        finally:
            self._inside.depth -= 1

    def _need_context(self) -> None:
        assert getattr(self._inside, "depth", 0) > 0, "a CUDA call outside of the context"

    def _release(self) -> None:
        self._need_context()
        self.alive -= 1

    def allocate(self, size: int) -> DeviceMemory:
        self._need_context()
        assert not self.capturing
        self.allocated.append(np.zeros(size, np.uint8))
        self.alive += 1
        return DeviceMemory(self._release, self.allocated[-1].ctypes.data, size)

    def pinned(self, size: int) -> PinnedMemory:
        self._need_context()
        self.alive += 1
        self.pinned_count += 1
        return PinnedMemory(self._release, np.zeros(size, np.uint8))

    def stream(self) -> Stream:
        self._need_context()
        self.alive += 1
        return Stream(self._release, id(object()), None)

    def copy_to_device(self, target: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
        if not self.capturing:
            at(target, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

    def copy_to_host(self, target: np.ndarray[Any, Any], source: int, stream: Stream) -> None:
        if not self.capturing:
            target.reshape(-1).view(np.uint8)[:] = at(source, target.nbytes)

    def synchronize(self, stream: Stream | None = None) -> None:
        self._need_context()
        self.device_synchronizations += stream is None

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        self.captures += 1
        self.capturing = True
        work()
        self.capturing = False

        def launch() -> None:
            self.launches += 1
            work()

        self.alive += 1
        return Graph(self._release, launch)

    def load(self, ptx: bytes) -> FakeModule:
        self._need_context()
        assert self._kernels is not None
        self.alive += 1
        return FakeModule(self, self._kernels)


class FakeModule:
    """Runs the kernels that g++ compiled."""

    def __init__(self, cuda: FakeCuda, kernels: Kernels) -> None:
        self._cuda, self._kernels = cuda, kernels

    def launch(self, plan: Launch, inputs: Sequence[int | None], output: int, stream: int) -> None:
        self._cuda._need_context()
        if not self._cuda.capturing:
            self._kernels.launch(plan, inputs, output)
            self._cuda.launched.append(plan.kernel)

    def close(self) -> None:
        self._cuda._release()


def at(address: int, size: int) -> np.ndarray[Any, Any]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

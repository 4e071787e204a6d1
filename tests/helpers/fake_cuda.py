"""CUDA for machines without a GPU: the runtime's own layer over a strict driver of C (``fake_driver.c``).

In this process a few lines of ctypes stand in for NVIDIA's cuda-bindings, since a libcuda that the whole process can
see would be found by TensorRT-RTX's builder too. Where `REAL` is set, in a process of its own, the real bindings call
it: ``tests/runtime/backends/cuda/test_driver.py`` runs the tests of engines and of the device path once more that way.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_kernels import Kernels

from denseport.runtime.backends.cuda import library as library_module
from denseport.runtime.backends.cuda.driver import DeviceMemory, Graph, PinnedMemory, Stream, _CudaBindings
from denseport.runtime.backends.cuda.kernels import launch
from denseport.runtime.backends.cuda.kernels.launch import Launch
from denseport.runtime.backends.cuda.module import Module
from denseport.runtime.backends.cuda.zero_copy import DeviceArray

REAL = "DENSEPORT_TEST_REAL_BINDINGS"
PARAMETERS = {"resize_normalise": (2, 5), "image_mask": (1, 7), "non_finite": (1, 3)}  # inputs and integers
FIRST_GIVEN = {  # functions whose first argument is where they write what they give
    "cuCtxPopCurrent": ctypes.c_void_p,
    "cuDeviceGet": ctypes.c_int,
    "cuDeviceGetAttribute": ctypes.c_int,
    "cuDeviceGetCount": ctypes.c_int,
    "cuDevicePrimaryCtxRetain": ctypes.c_void_p,
    "cuDriverGetVersion": ctypes.c_int,
    "cuGraphInstantiate": ctypes.c_void_p,
    "cuMemAlloc": ctypes.c_void_p,
    "cuMemHostAlloc": ctypes.c_void_p,
    "cuStreamCreate": ctypes.c_void_p,
}
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Status(enum.IntEnum):
    """CUresult, as far as it is met here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 904
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906


def build_driver(folder: Path, name: str = "libcuda.so.1") -> Path:
    """The fake as a library of that name in a folder; skips where there is no compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    source, target = Path(__file__).with_name("fake_driver.c"), folder / name
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{name}"]
    subprocess.run([compiler, *options, str(source), "-o", str(target), "-lpthread", "-ldl"], check=True)
    return target


@functools.cache
def driver_library() -> ctypes.CDLL:
    """The fake, loaded under a name that nobody else looks for."""
    if REAL in os.environ:
        return ctypes.CDLL("libcuda.so.1")
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(build_driver(Path(folder), "fake.so")))


class Bindings:
    """What the runtime calls of ``cuda.bindings.driver``: functions that return a status, and what they give."""

    CUresult = Status
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )
    CUstream = int

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        function = getattr(driver_library(), name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            # Sizes and addresses have 64 bits, and so may every number be passed.
            plain = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
            if name == "cuDeviceGetName":
                text = ctypes.create_string_buffer(arguments[0])
                return Status(function(text, *plain)), text.raw
            if name == "cuStreamEndCapture":
                given: Any = ctypes.c_void_p()
                return Status(function(*plain, ctypes.byref(given))), given.value
            if name not in FIRST_GIVEN:
                return (Status(function(*plain)),)
            given = FIRST_GIVEN[name]()
            return Status(function(ctypes.byref(given), *plain)), given.value

        return call


BINDINGS = Bindings()


class FakeCuda(_CudaBindings):
    """The runtime's CUDA over the fake driver, counted.

    Args:
        kernels: what `load` gives, compiled for this processor.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None = None) -> None:
        self.library = driver_library()
        if REAL not in os.environ:
            monkeypatch.setattr(library_module, "open_library", lambda: self.library)
        self.library.fake_reset()
        super().__init__(0)
        self.name = "fake"
        for kernel in launch.KERNELS if kernels is not None else ():
            inputs, integers = next(found for name, found in PARAMETERS.items() if kernel.startswith(name))
            self.library.fake_kernel(kernel.encode(), kernels.address(kernel), inputs, integers)  # type: ignore[union-attr]
        self.allocated: list[int] = []  # bytes
        self.pinned_count = self.captures = self.launches = 0
        self.launched: list[str] = []
        self._functions: list[Any] = []  # that the driver will call

    def _bindings(self) -> Any:
        return BINDINGS if REAL not in os.environ else super()._bindings()

    @property
    def alive(self) -> int:
        """Memory, streams, graphs and modules that are not given back."""
        return ctypes.c_int.in_dll(self.library, "alive").value

    def allocate(self, size: int) -> DeviceMemory:
        self.allocated.append(size)
        return super().allocate(size)

    def pinned(self, size: int) -> PinnedMemory:
        self.pinned_count += 1
        return super().pinned(size)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        self.captures += 1
        graph = super().capture(stream, work)
        launch = graph.launch

        def counted() -> None:
            self.launches += 1
            launch()

        return replace(graph, launch=counted)

    def load(self, ptx: bytes) -> Module:
        return FakeModule(ptx, self.launched)

    # What other libraries do on the same GPU.

    def enqueue(self, stream: int, work: Callable[[], None]) -> int:
        """Queue a function of Python on a stream, by its handle; the driver's status."""
        self._functions.append(HostFunction(lambda _: work()))
        return int(self.library.cuLaunchHostFunc(ctypes.c_void_p(stream), self._functions[-1], None))

    def finish(self) -> None:
        """Wait for the whole GPU, as torch.cuda.synchronize does."""
        with self.current():
            assert self.library.cuCtxSynchronize() == 0

    def is_recording(self, stream: int) -> bool:
        recording = ctypes.c_int()
        status = self.library.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(recording))
        assert status == 0, Status(status)
        return bool(recording.value)

    def is_device(self, address: int, size: int) -> bool:
        return bool(self.library.fake_is_device(ctypes.c_void_p(address), ctypes.c_size_t(size)))

    def lend(self, address: int, size: int) -> None:
        """Let memory of another library count as the GPU's."""
        self.library.fake_lend(ctypes.c_void_p(address), ctypes.c_size_t(size))

    def array(self, data: np.ndarray[Any, Any], offset: int = 0) -> DeviceArray:
        """A copy of an array in the GPU's memory, ``offset`` bytes behind an address that is aligned."""
        with self.current():
            memory = super().allocate(data.nbytes + offset)
        at(memory.address + offset, data.nbytes)[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)

        def release() -> None:
            with self.current():
                memory.close()

        return DeviceArray(memory.address + offset, data.shape, data.dtype, release)


class FakeModule(Module):
    """Tells which kernels were queued, or recorded."""

    def __init__(self, ptx: bytes, launched: list[str]) -> None:
        super().__init__(ptx)
        self._launched = launched

    def launch(self, plan: Launch, *arguments: Any) -> None:
        super().launch(plan, *arguments)
        self._launched.append(plan.kernel)


def at(address: int, size: int) -> np.ndarray[Any, Any]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def read(array: DeviceArray) -> np.ndarray[Any, Any]:
    """What an array on the GPU holds."""
    return at(array.address, array.nbytes).view(array.dtype).reshape(array.shape).copy()

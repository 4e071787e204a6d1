"""Every CUDA call of the runtime, over pycuda or over NVIDIA's cuda-bindings.

pycuda is used when it can be imported (it is compiled on the machine); the cuda-bindings are wheels. Both work in the
device's primary context, which TensorRT and torch use too. (``pycuda.autoinit`` makes a context of its own, in which
this memory is not valid: a program that uses pycuda beside Denseport imports ``pycuda.autoprimaryctx`` instead.)

Streams are ordered with no other one: while one of them is recorded as a graph, the default stream stays usable, and
nothing here waits for the whole GPU, which would break the recording. `Cuda.wait_for` orders them where it matters.

pycuda has no graphs: the cuda-bindings record them on its streams. Kernels are launched, and streams ordered, through
the driver's library for both. Memory, streams and graphs are context managers.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.library import order
from denseport.runtime.backends.cuda.module import Module
from denseport.runtime.errors import MachineError

__all__ = ["Closing", "Cuda", "Device", "DeviceMemory", "Graph", "PinnedMemory", "Stream", "open_cuda"]

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no order with the default stream
NO_DRIVER = "Install NVIDIA's driver, or run the bundle on the CPU: --artifact model.onnx"


@dataclass(frozen=True)
class Device:
    """A GPU."""

    name: str
    capability: tuple[int, int]
    driver: str  # the newest CUDA version that the driver knows, "13.0"
    index: int = 0  # as CUDA counts, after CUDA_VISIBLE_DEVICES


@dataclass
class Closing:
    """Something of the GPU that is given back once: at the end of a ``with`` block or by ``close``."""

    release: Callable[[], None]

    def close(self) -> None:
        """Give it back; a second call does nothing."""
        release, self.release = self.release, lambda: None
        release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class DeviceMemory(Closing):
    """Bytes on the GPU."""

    address: int
    size: int


@dataclass
class PinnedMemory(Closing):
    """Bytes of the host that the GPU copies from and to directly."""

    data: NDArray[np.uint8]

    @property
    def size(self) -> int:
        return self.data.nbytes


@dataclass
class Stream(Closing):
    """A queue of work on the GPU."""

    handle: int  # CUstream as a number, as TensorRT takes it
    owner: Any  # the implementation's object


@dataclass
class Graph(Closing):
    """Recorded work; ``launch`` repeats it."""

    launch: Callable[[], None]


class Cuda(ABC):
    """One GPU. All calls need its context: ``with cuda.current():``."""

    name: str  # of the implementation
    device: Device

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make the GPU's context the calling thread's, for a block."""

    @abstractmethod
    def allocate(self, size: int) -> DeviceMemory:
        """``size`` bytes on the GPU, not initialised; MachineError where they are not free."""

    @abstractmethod
    def pinned(self, size: int) -> PinnedMemory:
        """``size`` bytes of the host, not initialised."""

    @abstractmethod
    def stream(self) -> Stream:
        """A new queue, ordered with no other."""

    def wait_for(self, stream: Stream, other: int) -> None:
        """Let a stream wait for what is queued on another one by now.

        Args:
            other: its handle; 1 is the default stream, and with it all streams that are ordered with it.
        """
        order(other, stream.handle)

    @abstractmethod
    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Queue a copy from the host; ``source`` is contiguous and stays as it is until the stream is done."""

    @abstractmethod
    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Queue a copy to the host; ``target`` is contiguous, and filled when the stream is done."""

    @abstractmethod
    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy of ``size`` bytes from address to address on the GPU."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Wait for a stream."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues, without running it.

        Raises:
            MachineError: the cuda-bindings are not installed, or something of ``work`` cannot be recorded.
        """
        try:
            driver = self._bindings()
        except ImportError as err:
            raise MachineError("pycuda has no CUDA graphs", "pip install cuda-bindings beside it") from err
        handle = driver.CUstream(stream.handle)
        # Thread-local: other threads may allocate meanwhile.
        self._call("cuStreamBeginCapture", handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with suppress(MachineError):  # the recording is spoiled; what spoiled it is told
                self._call("cuGraphDestroy", self._call("cuStreamEndCapture", handle))
            raise
        graph = self._call("cuStreamEndCapture", handle)
        try:
            executable = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return Graph(
            lambda: self._call("cuGraphExecDestroy", executable),
            lambda: self._call("cuGraphLaunch", executable, handle),
        )

    def _bindings(self) -> Any:
        from cuda.bindings import driver

        return driver

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call a function of cuda.bindings.driver and return its value, or values, without the status."""
        driver = self._bindings()
        status, *values = getattr(driver, function)(*arguments)
        code = driver.CUresult
        if status == code.CUDA_ERROR_OUT_OF_MEMORY:
            raise _out_of_memory(function)
        if status in (code.CUDA_ERROR_NO_DEVICE, code.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH):
            raise MachineError(f"no GPU can be used: {function}: {status.name}", NO_DRIVER)
        if status != code.CUDA_SUCCESS:
            raise MachineError(f"{function}: {status.name}")
        return values[0] if len(values) == 1 else values

    def load(self, ptx: bytes) -> Module:
        """Kernels to launch, which stay loaded until they are closed."""
        return Module(ptx)


def open_cuda(index: int = 0, implementation: str | None = None) -> Cuda:
    """The GPU ``index``, over the first implementation that is installed.

    Args:
        implementation: "pycuda" or "cuda-bindings"; default: pycuda if it can be imported.

    Raises:
        MachineError: neither is installed, there is no driver, or no such GPU.
    """
    reasons = []
    for name in [implementation] if implementation else list(IMPLEMENTATIONS):
        try:
            return IMPLEMENTATIONS[name](index)
        except ImportError as err:  # not installed, or built for another CUDA
            reasons.append(f"{name}: {err}")
    raise MachineError(
        f"no way to reach CUDA from Python ({'; '.join(reasons)})",
        "pip install cuda-bindings (wheels), or pip install pycuda (compiled; it needs the CUDA toolkit)",
    )


class _CudaBindings(Cuda):
    """CUDA through ``cuda.bindings.driver``."""

    name = "cuda-bindings"

    def __init__(self, index: int) -> None:
        driver = self._bindings()
        try:
            self._call("cuInit", 0)
        except RuntimeError as err:  # the bindings found no libcuda
            raise MachineError(f"this machine has no NVIDIA driver: {err}", NO_DRIVER) from err
        _check_index(index, self._call("cuDeviceGetCount"))
        device = self._call("cuDeviceGet", index)
        attribute = driver.CUdevice_attribute
        major = attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        minor = attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        self.device = Device(
            self._call("cuDeviceGetName", 256, device).decode().rstrip("\0"),
            (self._call("cuDeviceGetAttribute", major, device), self._call("cuDeviceGetAttribute", minor, device)),
            _cuda_version(self._call("cuDriverGetVersion")),
            index,
        )
        self._context = self._call("cuDevicePrimaryCtxRetain", device)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size: int) -> DeviceMemory:
        pointer = self._call("cuMemAlloc", size)
        return DeviceMemory(lambda: self._call("cuMemFree", pointer), int(pointer), size)

    def pinned(self, size: int) -> PinnedMemory:
        pointer = self._call("cuMemHostAlloc", size, 0)
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer)))
        return PinnedMemory(lambda: self._call("cuMemFreeHost", pointer), data)

    def stream(self) -> Stream:
        stream = self._call("cuStreamCreate", NON_BLOCKING)
        return Stream(lambda: self._call("cuStreamDestroy", stream), int(stream), stream)

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, stream.owner)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, stream.owner)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, size, stream.owner)

    def synchronize(self, stream: Stream) -> None:
        self._call("cuStreamSynchronize", stream.owner)


class _PyCuda(Cuda):
    """CUDA through pycuda."""

    name = "pycuda"

    def __init__(self, index: int) -> None:
        from pycuda import driver

        self._driver: Any = driver
        try:
            driver.init()
        except driver.Error as err:
            raise MachineError(f"CUDA does not start: {err}", NO_DRIVER) from err
        _check_index(index, driver.Device.count())
        device = driver.Device(index)
        version = _cuda_version(driver.get_driver_version())
        self.device = Device(device.name(), device.compute_capability(), version, index)
        self._context = device.retain_primary_context()

    def _checked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.MemoryError as err:
            raise _out_of_memory(str(err)) from err
        except self._driver.Error as err:
            raise MachineError(f"CUDA: {err}") from err

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, size: int) -> DeviceMemory:
        memory = self._checked(self._driver.mem_alloc, size)
        return DeviceMemory(memory.free, int(memory), size)

    def pinned(self, size: int) -> PinnedMemory:
        data = self._checked(self._driver.pagelocked_empty, size, np.uint8)
        return PinnedMemory(data.base.free, data)

    def stream(self) -> Stream:
        stream = self._checked(self._driver.Stream, NON_BLOCKING)
        return Stream(lambda: None, int(stream.handle), stream)  # pycuda destroys it with the object

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        self._checked(self._driver.memcpy_htod_async, target, source, stream.owner)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        self._checked(self._driver.memcpy_dtoh_async, target, source, stream.owner)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self._checked(self._driver.memcpy_dtod_async, target, source, size, stream.owner)

    def synchronize(self, stream: Stream) -> None:
        self._checked(stream.owner.synchronize)


IMPLEMENTATIONS: dict[str, Callable[[int], Cuda]] = {"pycuda": _PyCuda, "cuda-bindings": _CudaBindings}


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise MachineError(f"no GPU {index}: this machine has {count}", NO_DRIVER if not count else None)


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"  # 13000 is 13.0


def _out_of_memory(what: str) -> MachineError:
    return MachineError(
        f"the GPU has too little free memory ({what})",
        "Free memory of other programs on it, use fewer contexts or smaller batches, or build for a smaller size.",
    )

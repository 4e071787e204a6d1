"""Every CUDA call of the runtime, over pycuda or over NVIDIA's cuda-bindings.

pycuda is taken when it can be imported (it is compiled on the machine); the cuda-bindings are wheels. Both work in
the device's primary context, which is TensorRT's too, and in streams that are ordered with the default stream, so
that memory of torch or cupy needs no further synchronisation.

Memory, streams and graphs are context managers: they live in ``with`` blocks or an ExitStack.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.module import Module
from denseport.runtime.errors import MachineError

__all__ = [
    "Closing",
    "Cuda",
    "CudaBindings",
    "Device",
    "DeviceMemory",
    "Graph",
    "PinnedMemory",
    "PyCuda",
    "Stream",
    "open_cuda",
]

NO_DRIVER = "Install NVIDIA's driver, or run the bundle on the CPU: --artifact model.onnx"


@dataclass(frozen=True)
class Device:
    """A GPU."""

    name: str
    capability: tuple[int, int]
    memory: int  # bytes, all of it
    driver: str  # the newest CUDA version that the driver knows, "13.0"


class Closing:
    """Something of the GPU that is given back once: at the end of a ``with`` block or by ``close``."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Give it back; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceMemory(Closing):
    """Bytes on the GPU."""

    def __init__(self, address: int, size: int, release: Callable[[], None]) -> None:
        super().__init__(release)
        self.address = address
        self.size = size


class PinnedMemory(Closing):
    """Bytes of the host that the GPU copies from and to without a detour; ``data`` is a uint8 array."""

    def __init__(self, data: NDArray[np.uint8], release: Callable[[], None]) -> None:
        super().__init__(release)
        self.data = data


class Stream(Closing):
    """A queue of work on the GPU."""

    def __init__(self, handle: int, owner: Any, release: Callable[[], None]) -> None:
        super().__init__(release)
        self.handle = handle  # CUstream as a number, as TensorRT takes it
        self.owner = owner  # the implementation's object


class Graph(Closing):
    """Recorded work; ``launch`` repeats it."""

    def __init__(self, launch: Callable[[], None], release: Callable[[], None]) -> None:
        super().__init__(release)
        self.launch = launch


class Cuda(Protocol):
    """One GPU. Calls other than `device` need its context: ``with cuda.current():``."""

    name: str

    @property
    def device(self) -> Device:
        """Which GPU it is."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU's context the calling thread's, for a block."""
        ...

    def allocate(self, size: int) -> DeviceMemory:
        """``size`` bytes on the GPU, not initialised; MachineError where they are not free."""
        ...

    def pinned(self, size: int) -> PinnedMemory:
        """``size`` bytes of the host, not initialised."""
        ...

    def stream(self) -> Stream:
        """A new queue, ordered with the default stream."""
        ...

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Queue a copy from the host; ``source`` is contiguous and stays as it is until the stream is done."""
        ...

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Queue a copy to the host; ``target`` is contiguous, and filled when the stream is done."""
        ...

    def synchronize(self, stream: Stream | None = None) -> None:
        """Wait for a stream, or for the whole GPU."""
        ...

    def elapsed(self, stream: Stream, work: Callable[[], None]) -> float:
        """Milliseconds that the GPU spends on what ``work`` queues."""
        ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues, without running it."""
        ...

    def load(self, ptx: bytes) -> Module:
        """Kernels to launch, which stay loaded until they are closed."""
        ...


def open_cuda(index: int = 0, implementation: str | None = None) -> Cuda:
    """The GPU ``index``, over the first implementation that is installed.

    Args:
        implementation: "pycuda" or "cuda-bindings"; default: pycuda if it can be imported.

    Raises:
        MachineError: neither is installed, there is no driver, or no such GPU.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
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


class CudaBindings:
    """CUDA through ``cuda.bindings.driver``."""

    name = "cuda-bindings"

    def __init__(self, index: int) -> None:
        self._driver = _driver_bindings()
        try:
            self._call("cuInit", 0)
        except RuntimeError as err:  # the bindings found no libcuda
            raise MachineError(f"this machine has no NVIDIA driver: {err}", NO_DRIVER) from err
        count = self._call("cuDeviceGetCount")
        _check_index(index, count)
        self._device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def _call(self, function: str, *arguments: Any) -> Any:
        return _checked(self._driver, function, *arguments)

    @property
    def device(self) -> Device:
        attribute = self._driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), self._device)
            for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR")
        )
        name = self._call("cuDeviceGetName", 256, self._device).decode().rstrip("\0")
        memory = int(self._call("cuDeviceTotalMem", self._device))
        return Device(name, (int(major), int(minor)), memory, _cuda_version(int(self._call("cuDriverGetVersion"))))

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size: int) -> DeviceMemory:
        pointer = self._call("cuMemAlloc", size)
        return DeviceMemory(int(pointer), size, lambda: self._call("cuMemFree", pointer))

    def pinned(self, size: int) -> PinnedMemory:
        pointer = self._call("cuMemHostAlloc", size, 0)
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer)))
        return PinnedMemory(data, lambda: self._call("cuMemFreeHost", pointer))

    def stream(self) -> Stream:
        stream = self._call("cuStreamCreate", 0)  # 0: ordered with the default stream
        return Stream(int(stream), stream, lambda: self._call("cuStreamDestroy", stream))

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, stream.owner)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, stream.owner)

    def synchronize(self, stream: Stream | None = None) -> None:
        if stream is None:
            self._call("cuCtxSynchronize")
        else:
            self._call("cuStreamSynchronize", stream.owner)

    def elapsed(self, stream: Stream, work: Callable[[], None]) -> float:
        start, stop = (self._call("cuEventCreate", 0) for _ in range(2))
        try:
            self._call("cuEventRecord", start, stream.owner)
            work()
            self._call("cuEventRecord", stop, stream.owner)
            self._call("cuEventSynchronize", stop)
            return float(self._call("cuEventElapsedTime", start, stop))
        finally:
            for event in (start, stop):
                self._call("cuEventDestroy", event)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        return _capture(self._driver, stream, work)

    def load(self, ptx: bytes) -> Module:
        return Module(ptx)


class PyCuda:
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
        self._device = driver.Device(index)
        self._context = self._device.retain_primary_context()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._driver.MemoryError as err:
            raise _out_of_memory(str(err)) from err
        except self._driver.Error as err:
            raise MachineError(f"CUDA: {err}") from err

    @property
    def device(self) -> Device:
        device = self._device
        version = _cuda_version(self._driver.get_driver_version())
        return Device(device.name(), device.compute_capability(), device.total_memory(), version)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, size: int) -> DeviceMemory:
        with self._translated():
            memory = self._driver.mem_alloc(size)
        return DeviceMemory(int(memory), size, memory.free)

    def pinned(self, size: int) -> PinnedMemory:
        with self._translated():
            data = self._driver.pagelocked_empty(size, np.uint8)
        return PinnedMemory(data, data.base.free)

    def stream(self) -> Stream:
        stream = self._driver.Stream()
        return Stream(int(stream.handle), stream, lambda: None)  # pycuda destroys it with the object

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        with self._translated():
            self._driver.memcpy_htod_async(target, source, stream.owner)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        with self._translated():
            self._driver.memcpy_dtoh_async(target, source, stream.owner)

    def synchronize(self, stream: Stream | None = None) -> None:
        with self._translated():
            (self._driver.Context if stream is None else stream.owner).synchronize()

    def elapsed(self, stream: Stream, work: Callable[[], None]) -> float:
        start, stop = self._driver.Event(), self._driver.Event()
        with self._translated():
            start.record(stream.owner)
            work()
            stop.record(stream.owner)
            stop.synchronize()
            return float(stop.time_since(start))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        try:
            driver = _driver_bindings()
        except ImportError as err:
            raise MachineError("pycuda has no CUDA graphs", "pip install cuda-bindings beside it") from err
        return _capture(driver, stream, work)

    def load(self, ptx: bytes) -> Module:
        return Module(ptx)


IMPLEMENTATIONS: dict[str, Callable[[int], Cuda]] = {"pycuda": PyCuda, "cuda-bindings": CudaBindings}


def _driver_bindings() -> Any:
    from cuda.bindings import driver

    return driver


def _checked(driver: Any, function: str, *arguments: Any) -> Any:
    """Call a function of cuda.bindings.driver and return its value, or values, without the status."""
    status, *values = getattr(driver, function)(*arguments)
    code = driver.CUresult
    if status == code.CUDA_ERROR_OUT_OF_MEMORY:
        raise _out_of_memory(function)
    if status in (code.CUDA_ERROR_NO_DEVICE, code.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH):
        raise MachineError(f"no GPU can be used: {function}: {status.name}", NO_DRIVER)
    if status != code.CUDA_SUCCESS:
        raise MachineError(f"{function}: {status.name}")
    return values[0] if len(values) == 1 else values


def _capture(driver: Any, stream: Stream, work: Callable[[], None]) -> Graph:
    """Both implementations' streams are the driver's own, so its graphs serve pycuda, which has none, too."""
    handle = driver.CUstream(stream.handle)
    # Thread-local: other threads may allocate meanwhile.
    _checked(driver, "cuStreamBeginCapture", handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    try:
        work()
    finally:
        graph = _checked(driver, "cuStreamEndCapture", handle)
    try:
        executable = _checked(driver, "cuGraphInstantiate", graph, 0)
    finally:
        _checked(driver, "cuGraphDestroy", graph)
    return Graph(
        lambda: _checked(driver, "cuGraphLaunch", executable, handle),
        lambda: _checked(driver, "cuGraphExecDestroy", executable),
    )


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

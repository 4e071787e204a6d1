"""Run an engine with TensorRT or TensorRT-RTX.

An engine is native code: give this module only files whose hash `Bundle.verified` has compared with the manifest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.buffers import Buffers
from denseport.runtime.backends.cuda.device import DeviceNetwork
from denseport.runtime.backends.cuda.driver import Cuda, Stream, open_cuda
from denseport.runtime.backends.cuda.replay import Replay
from denseport.runtime.backends.cuda.zero_copy import CUDA, DeviceArray, View, view_of
from denseport.runtime.backends.pool import Pool
from denseport.runtime.backends.session import Session
from denseport.runtime.backends.tensorrt_engine import REBUILD, Engine, last_error
from denseport.runtime.backends.tensorrt_library import Library, load_library
from denseport.runtime.bundle.engine_record import TITLES, BuildRecord, Profile, find_profile, mismatch
from denseport.runtime.errors import BundleError, InputError, MachineError

__all__ = ["TensorRTSession", "check_record", "why_not"]

ACTIVATIONS = "activations"  # beside the tensors' names in a slot's buffers
ALIGNMENT = 256  # bytes, of every tensor's address
COMPILING = 10.0  # seconds that closing waits at most for kernels that are being compiled


def check_record(record: BuildRecord, library: Library, cuda: Cuda) -> None:
    """Compare what an engine was built for with what is here.

    Raises:
        MachineError: another version of TensorRT, or a GPU that the engine was not built for.
    """
    problem = mismatch(record, library.version, cuda.device.capability)
    if problem is not None:
        raise MachineError(problem, REBUILD.format(flavour=record.flavour))


def why_not(record: BuildRecord) -> str | None:
    """Why this machine cannot run an engine, as one line; None if nothing speaks against it."""
    try:
        check_record(record, load_library(record.flavour), open_cuda())
    except MachineError as err:
        return err.message
    return None


class TensorRTSession(Session):
    """An engine, opened. Safe to call from several threads; it is a context manager.

    Attributes:
        profiles: the input shapes that the engine accepts.

    Args:
        path: the engine, verified.
        record: how it was built, from the manifest.
        contexts: how many inferences may run at once; each has its own activation memory on the GPU.
        cuda_graphs: record the work of each input size once and repeat it: less work for the CPU. Each size then
            has a context of its own, so ``contexts`` is also how many sizes are kept.
        device: index of the GPU.
        cuda: default: `open_cuda`.

    Raises:
        MachineError: TensorRT, the driver or the GPU is missing or is not what the engine was built for.
        BundleError: the engine cannot be opened although it should fit.
    """

    on_gpu = True

    def __init__(
        self,
        path: Path,
        record: BuildRecord,
        *,
        contexts: int = 2,
        cuda_graphs: bool = False,
        device: int = 0,
        cuda: Cuda | None = None,
    ) -> None:
        self._library = load_library(record.flavour)
        self._cuda = cuda or open_cuda(device)
        check_record(record, self._library, self._cuda)
        self._graphs = cuda_graphs
        with self._cuda.current():
            self._engine = Engine(self._library, path, record)
        self.profiles = _profiles(self._engine.trt, self._library.trt)
        self._contexts = contexts
        self._pool: Pool[_Slot] = Pool(self._slot, contexts)

    @property
    def description(self) -> str:
        name = TITLES[self._library.flavour]
        graphs = ", CUDA graphs" if self._graphs else ""
        return f"{name} {self._library.version}, {self._cuda.device.name}, {self._cuda.name}{graphs}"

    def largest_batch(self, height: int, width: int) -> int | None:
        """The images of one size that one run accepts: 1 where no profile has that size, for `run` to refuse it."""
        fitting = [p.maximum[0] for p in self.profiles if (*p.maximum[:2], height, width) in p]
        return max(fitting, default=1)

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w), float32 (or whatever the engine's output is), of a normalised batch (N, 3, H, W).

        Raises:
            InputError: the engine was not built for this size.
            MachineError: the GPU failed, or its memory is full.
        """
        profile = find_profile(self.profiles, image.shape)
        with self._cuda.current(), self._pool.take(image.shape if self._graphs else None) as slot:
            return cast("NDArray[np.float32]", slot.run(image, profile))

    def run_device(self, image: Any, out: Any = None) -> DeviceArray | Any:
        """As `run`, on memory that is on the GPU already, without copies.

        Args:
            image: has ``__dlpack__`` or ``__cuda_array_interface__`` (a torch or cupy array, …); contiguous. Work that
                its library has queued on it, on torch's current stream say, is waited for. Where its address is no
                multiple of 256, as a slice's may be, it is copied.
            out: likewise, to be written; default: a new `DeviceArray`.

        Returns:
            ``out`` or the new array; the work on it is done.

        Raises:
            InputError: another size, type or memory layout than the engine's.
        """
        with self._cuda.current(), self._pool.take(None) as slot:
            return slot.run_device(image, out)

    def device_network(self) -> DeviceNetwork:
        """The engine, for tensors that are on the GPU; close its slots before the session.

        Its slots have contexts of their own, beside those of `run`: as many again, where both are used.
        """
        return DeviceNetwork(self._cuda, self._contexts, self._graphs, lambda: self._slot(None))

    def _slot(self, key: Hashable) -> _Slot:
        return _Slot(self._engine, self._library, self._cuda, self.profiles, graphs=key is not None)

    def close(self) -> None:
        """Give back contexts, streams and memory; the session cannot be used again."""
        with self._cuda.current():
            self._pool.close()
            self._engine.close()

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tensor_names(engine: Any, trt: Any) -> tuple[str, str]:
    """The input's name and the output's: ``image`` and ``logits`` or ``mask``."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(
            f"the engine has inputs {inputs} and outputs {outputs}; expected one of each",
            "Build it again: denseport build BUNDLE",
        )
    return inputs[0], outputs[0]


def _profiles(engine: Any, trt: Any) -> tuple[Profile, ...]:
    name, _ = _tensor_names(engine, trt)
    shapes = [engine.get_tensor_profile_shape(name, i) for i in range(engine.num_optimization_profiles)]
    return tuple(Profile(*(cast("tuple[int, int, int, int]", tuple(shape)) for shape in trio)) for trio in shapes)


class _Slot:
    """One execution context with its stream and its buffers, which grow and are used again."""

    def __init__(
        self, engine: Engine, library: Library, cuda: Cuda, profiles: tuple[Profile, ...], *, graphs: bool
    ) -> None:
        self._library, self._cuda, self._profiles = library, cuda, profiles
        self._input, self._output = _tensor_names(engine.trt, library.trt)
        types = (library.trt.nptype(engine.trt.get_tensor_dtype(name)) for name in (self._input, self._output))
        self._types = tuple(map(np.dtype, types))
        self._context: Any = engine.new_context()
        self._profile = 0  # a new context's
        self._shape: tuple[int, ...] | None = None  # that the activations' memory is for
        self._buffers = Buffers(cuda)
        self.stream: Stream = cuda.stream()
        self._replay = Replay(cuda, self.stream, graphs=graphs)

    def infer(self, image: View) -> View:
        """As `denseport.runtime.backends.cuda.device.ExecutionSlot.infer`."""
        self._check("the image", image, image.shape, self._types[0])
        self._accept(image.shape, find_profile(self._profiles, image.shape))
        shape = self._output_shape()
        address = self._buffers.device(self._output, math.prod(shape) * self._types[1].itemsize)
        result = View(address, shape, self._types[1], None, self)
        self._queue(image, result)
        return result

    def run(self, image: NDArray[Any], profile: int) -> NDArray[Any]:
        self._accept(image.shape, profile)
        shape = self._output_shape()
        source = self._buffers.host(self._input, image.shape, self._types[0])
        target = self._buffers.host(self._output, shape, self._types[1])
        pairs = ((self._input, source), (self._output, target))
        addresses = {name: self._buffers.device(name, array.nbytes) for name, array in pairs}

        def work() -> None:
            self._cuda.copy_to_device(addresses[self._input], source, self.stream)
            self._execute(addresses)
            self._cuda.copy_to_host(target, addresses[self._output], self.stream)

        np.copyto(source, image, casting="same_kind")
        self._replay.run(work, self.capturable)
        return target.copy()

    def capturable(self) -> bool:
        """False while TensorRT-RTX still compiles kernels; TensorRT compiles none and has no such call."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self.stream.handle))

    def run_device(self, image: Any, out: Any) -> DeviceArray | Any:
        source = self._view(image)
        profile = find_profile(self._profiles, source.shape)
        self._check("the image", source, source.shape, self._types[0])
        self._accept(source.shape, profile)
        shape = self._output_shape()
        out = self._new_array(shape) if out is None else out
        target = self._view(out)
        self._check("out", target, shape, self._types[1])
        self._queue(source, target)
        self._cuda.synchronize(self.stream)
        return out

    def _view(self, array: Any) -> View:
        """Memory of another library that this slot's stream may use."""
        view = view_of(array, self.stream.handle, device=(CUDA, self._cuda.device.index))
        if view.stream is not None:
            self._cuda.wait_for(self.stream, view.stream)
        return view

    def _queue(self, source: View, target: View) -> None:
        """Queue the network, with copies where an address is not aligned."""
        image, result = self._aligned(self._input, source), self._aligned(self._output, target)
        if image != source.address:
            self._cuda.copy(image, source.address, source.nbytes, self.stream)
        self._execute({self._input: image, self._output: result})
        if result != target.address:
            self._cuda.copy(target.address, result, target.nbytes, self.stream)

    def _aligned(self, name: str, view: View) -> int:
        """The view's address, or where that is not aligned one in a buffer as large."""
        return self._buffers.device(name, view.nbytes) if view.address % ALIGNMENT else view.address

    def _new_array(self, shape: tuple[int, ...]) -> DeviceArray:
        memory, cuda = self._cuda.allocate(math.prod(shape) * self._types[1].itemsize), self._cuda

        def release() -> None:
            with cuda.current():
                memory.close()

        return DeviceArray(memory.address, shape, self._types[1], release, device=(CUDA, cuda.device.index))

    def _check(self, what: str, view: View, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if view.shape != shape or view.dtype != dtype:
            raise InputError(f"{what} is {view.shape} {view.dtype}; the engine needs {shape} {dtype}")

    def _accept(self, shape: tuple[int, ...], profile: int) -> None:
        if (profile, shape) == (self._profile, self._shape):
            return  # nothing is set while a graph is recorded
        if profile != self._profile:
            self._switch(profile)
            self._profile, self._shape = profile, None
        if not self._context.set_input_shape(self._input, shape):
            raise InputError(
                f"TensorRT refused an input of {shape}", "Give a size that denseport inspect BUNDLE lists."
            )
        if shape != self._shape:
            needed = self._context.update_device_memory_size_for_shapes()
            self._context.set_device_memory(self._buffers.device(ACTIVATIONS, max(needed, 1)), needed)
            self._shape = shape

    def _switch(self, profile: int) -> None:
        with self._library.log.collect() as lines:
            try:
                done = self._context.set_optimization_profile_async(profile, self.stream.handle)
            except RuntimeError:  # the binding's answer to a failure; it never returns False
                done = False
        if not done:
            what = f"TensorRT refused optimization profile {profile}: {last_error(lines)}"
            raise MachineError(what, "Free memory on the GPU.")

    def _output_shape(self) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(self._output))
        if any(n < 0 for n in shape):
            raise BundleError(
                f"the engine's output shape {shape} depends on more than the input's shape",
                "Build it again: denseport build BUNDLE",
            )
        return shape

    def _execute(self, addresses: dict[str, int]) -> None:
        with self._library.log.collect() as lines:
            done = all(self._context.set_tensor_address(name, address) for name, address in addresses.items())
            done = done and self._context.execute_async_v3(self.stream.handle)
        if not done:
            raise MachineError(
                f"TensorRT could not run the engine: {last_error(lines)}",
                "Free memory on the GPU; if that is not it, build the engine again on this machine.",
            )

    def close(self) -> None:
        self._replay.close()
        if self._shape is not None:
            self._wait_for_compiler()
        self._context = None  # before the stream that it may still use
        self._buffers.close()
        self.stream.close()

    def _wait_for_compiler(self) -> None:
        """A thread of TensorRT-RTX that compiles logs through Python, whose lock the context's end holds."""
        limit = time.monotonic() + COMPILING
        while not self.capturable() and time.monotonic() < limit:
            time.sleep(0.02)

"""Engines at run time. What needs a GPU is played by fakes of TensorRT's and CUDA's objects, which know of nothing but
the order and the arguments of the calls: these tests show this side's logic, not that an engine runs."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from denseport.runtime.backends import cuda as cuda_module
from denseport.runtime.backends import tensorrt as backend
from denseport.runtime.backends.cuda import Device, DeviceMemory, Graph, PinnedMemory, Stream, open_cuda
from denseport.runtime.backends.tensorrt import TensorRTSession, why_not
from denseport.runtime.backends.tensorrt_library import Library, LogBook, load_library
from denseport.runtime.build_record import BuildRecord, Profile
from denseport.runtime.errors import BundleError, InputError, MachineError

LANDSCAPE = Profile((1, 3, 8, 8), (1, 3, 8, 12), (2, 3, 8, 32))
PORTRAIT = Profile((1, 3, 8, 8), (1, 3, 12, 8), (1, 3, 32, 8))
RECORD = BuildRecord(
    flavour="tensorrt", version="11.4.0.1", cuda="13", driver="13.0", gpu="Fake", compute_capability="sm_86",
    targets=(), version_compatible=False, hardware_compatibility="none", profiles=(LANDSCAPE, PORTRAIT), folded=False,
    optimization_level=3, workspace=None, timing_cache="", types_asked={}, types_built=None, types_built_note=None,
    onnx_sha256="", engine_sha256="", seconds=1.0, peak_host_bytes=None, log=(),
)  # fmt: skip

HAS_DRIVER = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


class FakeCuda:
    """Memory is host memory, copies happen at once, a graph repeats its Python calls."""

    name = "fake"
    device = Device("Fake GPU", (8, 6), 2**30, "13.0")

    def __init__(self) -> None:
        self.allocated: list[np.ndarray[Any, Any]] = []
        self.alive = 0
        self.captures = self.launches = self.device_synchronizations = 0
        self.capturing = False
        self._inside = threading.local()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._inside.depth = getattr(self._inside, "depth", 0) + 1
        yield
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
        return DeviceMemory(self.allocated[-1].ctypes.data, size, self._release)

    def pinned(self, size: int) -> PinnedMemory:
        self._need_context()
        self.alive += 1
        return PinnedMemory(np.zeros(size, np.uint8), self._release)

    def stream(self) -> Stream:
        self._need_context()
        self.alive += 1
        return Stream(id(object()), None, self._release)

    def copy_to_device(self, target: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
        if not self.capturing:
            at(target, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

    def copy_to_host(self, target: np.ndarray[Any, Any], source: int, stream: Stream) -> None:
        if not self.capturing:
            target.reshape(-1).view(np.uint8)[:] = at(source, target.nbytes)

    def synchronize(self, stream: Stream | None = None) -> None:
        self._need_context()
        self.device_synchronizations += stream is None

    def elapsed(self, stream: Stream, work: Callable[[], None]) -> float:
        work()
        return 0.0

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        self.captures += 1
        self.capturing = True
        work()
        self.capturing = False

        def launch() -> None:
            self.launches += 1
            work()

        self.alive += 1
        return Graph(launch, self._release)


def at(address: int, size: int) -> np.ndarray[Any, Any]:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class FakeContext:
    """Its network takes every second row and column of the first channel and doubles it: (N, 1, H/2, W/2)."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.memory = np.zeros(0, np.uint8)
        self.running = threading.Lock()
        self.asked = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        self.engine.switches.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "image" and shape in (LANDSCAPE, PORTRAIT)[self.profile]

    def update_device_memory_size_for_shapes(self) -> int:
        return 10 * int(np.prod(self.shape))

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == 10 * int(np.prod(self.shape))
        self.memory = at(address, size)  # a wrong address ends the process here

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, _, h, w = self.shape
        return (n, 1, h // 2, w // 2)

    def is_stream_capturable(self, stream: int) -> bool:
        self.asked += 1
        return self.asked > self.engine.compiling

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert self.running.acquire(blocking=False), "two threads in one context"
        if self.engine.cuda.capturing:
            self.running.release()
            return True
        if self.engine.broken:
            self.engine.book.write("ERROR", "illegal memory access")
            self.running.release()
            return False
        assert self.memory.size == 10 * int(np.prod(self.shape)), "activations of another shape"
        self.memory[:] = 0xFF
        size = 4 * int(np.prod(self.shape))
        image = at(self.addresses["image"], size).view(np.float32).reshape(self.shape)
        result = np.ascontiguousarray(2 * image[:, :1, ::2, ::2])
        at(self.addresses["logits"], result.nbytes)[:] = result.reshape(-1).view(np.uint8)
        self.running.release()
        return True


class FakeEngine:
    num_io_tensors = 2
    num_optimization_profiles = 2

    def __init__(self, cuda: FakeCuda, book: LogBook) -> None:
        self.cuda, self.book = cuda, book
        self.contexts: list[FakeContext] = []
        self.switches: list[int] = []
        self.broken = False
        self.compiling = 0  # runs until a context can be captured

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        profile = (LANDSCAPE, PORTRAIT)[index]
        return [profile.minimum, profile.optimum, profile.maximum]

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class Machine:
    """Fakes of TensorRT 11.4 on an sm_86 GPU, and sessions on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.cuda = FakeCuda()
        self.book = LogBook()
        self.engine = FakeEngine(self.cuda, self.book)
        self.deserialised: list[bytes] = []
        self.refusal: str | None = None
        trt = SimpleNamespace(
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=self._deserialise),
            TensorIOMode=SimpleNamespace(INPUT="in"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            nptype=np.dtype,
        )
        library = Library("tensorrt", trt, "11.4.0.1", "13", None, self.book)
        monkeypatch.setattr(backend, "load_library", lambda flavour: library)
        self.path = path
        path.write_bytes(b"engine")

    def _deserialise(self, data: bytes) -> FakeEngine | None:
        self.deserialised.append(data)
        if self.refusal:
            self.book.write("ERROR", self.refusal)
            return None
        return self.engine

    def session(self, record: BuildRecord = RECORD, **options: Any) -> TensorRTSession:
        return TensorRTSession(self.path, record, cuda=self.cuda, **options)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "fp16.engine")


def image_of(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def expected(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 2 * image[:, :1, ::2, ::2]


# Refusals.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": "11.2.0.9"}, "built with TensorRT 11.2.0.9 for sm_86; here is 11.4.0.1 on sm_86"),
        ({"compute_capability": "sm_90"}, "built with TensorRT 11.4.0.1 for sm_90; here is 11.4.0.1 on sm_86"),
    ],
)
def test_an_engine_for_another_machine_is_refused_before_it_is_opened(
    machine: Machine, changes: dict[str, str], sentence: str
) -> None:
    with pytest.raises(MachineError) as caught:
        machine.session(dataclasses.replace(RECORD, **changes))  # type: ignore[arg-type]
    assert caught.value.message == sentence and "denseport build BUNDLE" in str(caught.value)
    assert caught.value.exit_code == 3 and not machine.deserialised


def test_an_engine_that_tensorrt_refuses_is_explained_by_its_log(machine: Machine) -> None:
    machine.refusal = "Serialization assertion header.magicTag failed"
    with pytest.raises(BundleError, match=r"TensorRT 11\.4\.0\.1 cannot open it: Serialization assertion") as caught:
        machine.session()
    assert "denseport build" in str(caught.value)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavour: str) -> None:
    monkeypatch.setitem(sys.modules, flavour, None)
    load_library.cache_clear()
    record = dataclasses.replace(RECORD, flavour=flavour)
    with pytest.raises(MachineError, match=f"the package {flavour} ") as caught:
        TensorRTSession(tmp_path / "e", record)
    assert "pip install" in str(caught.value)
    assert f"the package {flavour} " in (why_not(record) or "")
    load_library.cache_clear()


def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))  # type: ignore[arg-type]
    load_library.cache_clear()
    with pytest.raises(MachineError, match=r"tensorrt 10\.3\.0 is too old: Denseport needs 10\.9"):
        load_library("tensorrt")
    load_library.cache_clear()


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_a_machine_without_driver_is_named_by_the_real_bindings() -> None:
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    with pytest.raises(MachineError, match="no NVIDIA driver") as caught:
        open_cuda(implementation="cuda-bindings")
    assert "--artifact model.onnx" in str(caught.value)


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_the_real_tensorrt_rtx_is_checked_before_the_engine_is_read(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    record = dataclasses.replace(RECORD, flavour="tensorrt_rtx")
    with pytest.raises(MachineError):
        TensorRTSession(tmp_path / "absent.engine", record)
    assert why_not(record)


def test_without_any_binding_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match=r"no way to reach CUDA from Python \(pycuda: .*; cuda-bindings: ") as caught:
        open_cuda()
    assert "pip install cuda-bindings" in str(caught.value)


def test_pycuda_is_taken_when_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def implementation(name: str, found: bool, index: int) -> Any:
        tried.append(name)
        if not found:
            raise ImportError(f"No module named {name}")
        return FakeCuda()

    both = {name: functools.partial(implementation, name, True) for name in ("pycuda", "cuda-bindings")}
    monkeypatch.setattr(cuda_module, "IMPLEMENTATIONS", both)
    open_cuda()
    open_cuda(implementation="cuda-bindings")
    monkeypatch.setitem(both, "pycuda", functools.partial(implementation, "pycuda", False))
    open_cuda()
    assert tried == ["pycuda", "cuda-bindings", "pycuda", "cuda-bindings"]


def test_a_size_outside_of_the_profiles_is_answered_with_the_range(machine: Machine) -> None:
    with machine.session() as session, pytest.raises(InputError) as caught:
        session.run(image_of(1, 3, 16, 16))
    assert "(1, 3, 16, 16)" in str(caught.value) and "(1..2, 3, 8, 8..32) or (1, 3, 8..32, 8)" in str(caught.value)
    assert not machine.engine.contexts


def test_a_failing_run_is_explained_and_its_context_not_used_again(machine: Machine) -> None:
    with machine.session(contexts=1) as session:
        machine.engine.broken = True
        with pytest.raises(MachineError, match="could not run the engine: illegal memory access"):
            session.run(image_of(1, 3, 8, 8))
        machine.engine.broken = False
        session.run(image_of(1, 3, 8, 8))
    assert len(machine.engine.contexts) == 2
    assert machine.cuda.alive == 0


# Running, on fakes.


def test_shapes_profiles_and_buffers(machine: Machine) -> None:
    with machine.session(contexts=1) as session:
        shapes = [(1, 3, 8, 32), (1, 3, 8, 8), (2, 3, 8, 16), (1, 3, 24, 8), (1, 3, 8, 10)]
        results = [(image, session.run(image)) for image in (image_of(*shape) for shape in shapes)]
        # The first shape's buffers serve the smaller ones.
        assert len(machine.cuda.allocated) == 3  # input, output, activations
        assert session.profiles == (LANDSCAPE, PORTRAIT)
        assert session.description == "TensorRT 11.4.0.1, Fake GPU, fake"
    for image, logits in results:  # compared at the end: no result may lie in a buffer that was used again
        np.testing.assert_array_equal(logits, expected(image))
    assert machine.engine.switches == [1, 0] and len(machine.engine.contexts) == 1
    assert machine.cuda.alive == 0


def test_larger_inputs_grow_the_buffers(machine: Machine) -> None:
    with machine.session(contexts=1) as session:
        for width in (8, 16, 32):
            image = image_of(1, 3, 8, width)
            np.testing.assert_array_equal(session.run(image), expected(image))
    assert len(machine.cuda.allocated) == 9 and machine.cuda.alive == 0


def test_threads_have_contexts_of_their_own(machine: Machine) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(20):
            image = image_of(1, 3, 8, 8 + 2 * ((seed + turn) % 10), seed=seed)
            if not np.array_equal(session.run(image), expected(image)):
                wrong.append(seed)

    with machine.session(contexts=3) as session:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert not wrong and 1 <= len(machine.engine.contexts) <= 3 and machine.cuda.alive == 0


def test_cuda_graphs_are_kept_by_shape(machine: Machine) -> None:
    with machine.session(contexts=2, cuda_graphs=True) as session:
        for width in (8, 12, 8, 12, 12):
            image = image_of(1, 3, 8, width, seed=width)
            np.testing.assert_array_equal(session.run(image), expected(image))
        assert (machine.cuda.captures, machine.cuda.launches) == (2, 3)
        assert len(machine.engine.contexts) == 2  # a captured context may not change its shape
        session.run(image_of(1, 3, 8, 16))  # takes the place of the longest idle
        assert machine.cuda.captures == 3
        assert "CUDA graphs" in session.description
    assert machine.cuda.alive == 0


def test_a_context_that_still_compiles_is_captured_later(machine: Machine) -> None:
    machine.engine.compiling = 2
    image = image_of(1, 3, 8, 8)
    with machine.session(cuda_graphs=True) as session:
        for _ in range(5):
            np.testing.assert_array_equal(session.run(image), expected(image))
    assert (machine.cuda.captures, machine.cuda.launches) == (1, 2)


class OnDevice:
    """Host memory that claims to be the fake GPU's."""

    def __init__(self, array: np.ndarray[Any, Any], stream: int | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "stream": stream,
            "strides": array.strides, "version": 3,
        }  # fmt: skip


def test_arrays_on_the_gpu_are_used_in_place(machine: Machine) -> None:
    image = image_of(1, 3, 8, 12)
    with machine.session() as session:
        result = session.run_device(OnDevice(image))
        assert result.shape == (1, 1, 4, 6) and len(machine.cuda.allocated) == 2  # activations and the result
        found = at(result.address, result.nbytes).view(np.float32).reshape(result.shape)
        np.testing.assert_array_equal(found, expected(image))
        assert machine.engine.contexts[0].addresses["image"] == image.ctypes.data
        out = OnDevice(np.zeros((1, 1, 4, 6), np.float32))
        assert session.run_device(OnDevice(image), out) is out
        np.testing.assert_array_equal(out.array, expected(image))
        assert len(machine.cuda.allocated) == 2 and machine.cuda.device_synchronizations == 0
        session.run_device(OnDevice(image, stream=77), out)
        assert machine.cuda.device_synchronizations == 1  # another library's stream may still write
        del result
    assert machine.cuda.alive == 0


def test_arrays_on_the_gpu_that_do_not_fit_are_refused(machine: Machine) -> None:
    image = image_of(1, 3, 8, 12)
    with machine.session() as session:
        with pytest.raises(InputError, match=r"the image is .* float64; the engine needs .* float32"):
            session.run_device(OnDevice(image.astype(np.float64)))
        with pytest.raises(InputError, match=r"out is \(1, 1, 4, 5\)"):
            session.run_device(OnDevice(image), OnDevice(np.zeros((1, 1, 4, 5), np.float32)))
        with pytest.raises(InputError, match="not contiguous"):
            session.run_device(OnDevice(image[:, :, :, ::2]))
        with pytest.raises(InputError, match="neither __cuda_array_interface__"):
            session.run_device([1])


def test_lines_are_collected_by_whoever_listens() -> None:
    book, heard = LogBook(), list[str]()
    with book.collect() as outer:
        book.write("WARNING", "one")
        with book.collect(heard.append) as inner:
            book.write("VERBOSE", "two")
            book.write("ERROR", "three")
    book.write("ERROR", "nobody listens")
    assert [line.text for line in outer] == ["one", "three"] and [line.text for line in inner] == ["three"]
    assert heard == ["[VERBOSE] two", "[ERROR] three"]


# What the fakes and the CUDA module rely on, asked of the real packages.


def test_the_fakes_have_no_call_that_the_real_objects_lack() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    for fake, real in ((FakeContext, trt.IExecutionContext), (FakeEngine, trt.ICudaEngine)):
        for name in (name for name in vars(fake) if not name.startswith("_")):
            assert hasattr(real, name), f"{real.__name__}.{name}"
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None


def test_the_real_bindings_have_every_function_that_is_called() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="pip install cuda-bindings")
    called = set(re.findall(r'"(cu[A-Z]\w+)"', Path(cuda_module.__file__).read_text(encoding="utf-8")))
    assert len(called) > 25
    assert not [name for name in called if not hasattr(driver, name)]
    assert all(hasattr(driver.CUresult, name) for name in ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_NO_DEVICE"))
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")

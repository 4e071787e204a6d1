"""Engines at run time. What needs a GPU is played by fakes of TensorRT's and CUDA's objects, which know of nothing but
the order and the arguments of the calls: these tests show this side's logic, not that an engine runs."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, at
from fake_tensorrt import LANDSCAPE, PORTRAIT, RECORD, FakeContext, FakeEngine, Machine

from denseport.runtime.backends.cuda import driver as cuda_module
from denseport.runtime.backends.cuda.driver import open_cuda
from denseport.runtime.backends.tensorrt import TensorRTSession, why_not
from denseport.runtime.backends.tensorrt_library import LogBook, load_library
from denseport.runtime.errors import BundleError, InputError, MachineError

HAS_DRIVER = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


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


def test_the_largest_batch_is_that_of_the_profiles_that_have_the_size(machine: Machine) -> None:
    with machine.session() as session:
        assert session.largest_batch(8, 16) == 2  # landscape's maximum
        assert session.largest_batch(16, 8) == 1  # portrait's
        assert session.largest_batch(64, 64) == 1  # neither: left to `run`, which says what is allowed


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
    assert len(called) == 25
    assert not [name for name in called if not hasattr(driver, name)]
    assert all(hasattr(driver.CUresult, name) for name in ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_NO_DEVICE"))
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")

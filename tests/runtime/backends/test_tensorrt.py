"""Engines at run time. What needs a GPU is played by fakes of TensorRT's objects and of CUDA's driver, which refuse
what the originals refuse: these tests show this side's logic, not that an engine runs."""

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
from fake_cuda import FakeCuda
from fake_tensorrt import (
    LANDSCAPE,
    PORTRAIT,
    RECORD,
    FakeContext,
    FakeEngine,
    FakeRtxContext,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    Machine,
    expected,
    image_of,
)

from denseport.runtime.backends.cuda import driver as cuda_module
from denseport.runtime.backends.cuda.driver import open_cuda
from denseport.runtime.backends.tensorrt import TensorRTSession, why_not
from denseport.runtime.backends.tensorrt_library import LogBook, load_library
from denseport.runtime.errors import BundleError, InputError, MachineError

HAS_DRIVER = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "fp16.engine")


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
        return fake

    fake = FakeCuda(monkeypatch)
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


@pytest.mark.parametrize("graphs", [False, True])
def test_threads_have_contexts_of_their_own(machine: Machine, graphs: bool) -> None:
    """With graphs some record while others take and give back memory, contexts and recordings."""
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(20):
            image = image_of(1, 3, 8, 8 + 2 * ((seed + turn) % 10), seed=seed)
            if not np.array_equal(session.run(image), expected(image)):
                wrong.append(seed)

    with machine.session(contexts=3, cuda_graphs=graphs) as session:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert not wrong and machine.cuda.alive == 0
    assert machine.cuda.captures > 3 if graphs else 1 <= len(machine.engine.contexts) <= 3


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


def test_what_cannot_be_recorded_was_done_all_the_same(machine: Machine) -> None:
    """As where an engine allocates while it runs: the recording is lost, the first run's result is not."""
    machine.engine.allocates = True
    image = image_of(1, 3, 8, 8)
    with machine.session(cuda_graphs=True) as session:
        with pytest.warns(RuntimeWarning, match="no CUDA graph, work is queued anew each time: TensorRT could not run"):
            np.testing.assert_array_equal(session.run(image), expected(image))
        for _ in range(2):  # without another warning
            np.testing.assert_array_equal(session.run(image), expected(image))
    assert (machine.cuda.captures, machine.cuda.launches, machine.cuda.alive) == (1, 0, 0)


def test_the_default_stream_can_be_used_while_work_is_recorded(machine: Machine) -> None:
    """As torch does it in another thread; with streams that are ordered with it the driver would refuse it (906)."""
    execute, statuses = FakeContext.execute_async_v3, list[int]()

    def others_work() -> None:
        with machine.cuda.current():
            statuses.append(machine.cuda.enqueue(0, lambda: None))

    def meanwhile(context: FakeContext, stream: int) -> bool:
        if machine.cuda.is_recording(stream):
            thread = threading.Thread(target=others_work)
            thread.start()
            thread.join()
        return execute(context, stream)

    image = image_of(1, 3, 8, 8)
    with machine.session(cuda_graphs=True) as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeContext, "execute_async_v3", meanwhile)
        for _ in range(3):
            np.testing.assert_array_equal(session.run(image), expected(image))
    assert statuses == [0] and (machine.cuda.captures, machine.cuda.launches) == (1, 2)


def test_a_profile_that_tensorrt_refuses_is_explained(machine: Machine) -> None:
    """Its binding raises RuntimeError, and never returns False."""
    with machine.session() as session:
        session.run(image_of(1, 3, 8, 12))
        machine.engine.no_profiles = True
        with pytest.raises(MachineError, match="refused optimization profile 1: no memory for the profile"):
            session.run(image_of(1, 3, 24, 8))
    assert machine.cuda.alive == 0


def test_layers_are_not_named_to_profilers_at_each_run(machine: Machine) -> None:
    """Engines are built with detailed verbosity, for the inspector; at run time that costs."""
    with machine.session() as session:
        session.run(image_of(1, 3, 8, 8))
        assert [context.nvtx_verbosity for context in machine.engine.contexts] == ["none"]


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
    pairs = (
        (FakeContext, trt.IExecutionContext),
        (FakeRtxContext, trt.IExecutionContext),
        (FakeEngine, trt.ICudaEngine),
        (FakeRuntimeConfig, trt.IRuntimeConfig),
        (FakeRuntimeCache, trt.IRuntimeCache),
    )
    for fake, real in pairs:
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

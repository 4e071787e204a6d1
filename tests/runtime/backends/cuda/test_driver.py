"""The CUDA layer over the real cuda-bindings, on a strict driver of C that works on host memory (``fake_driver.c``).

This shows what is called with which arguments, in which order, in a context, and given back; not that a GPU does it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import REAL, build_driver
from support import REPO

pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake as libcuda.so.1."""
    return build_driver(tmp_path_factory.mktemp("driver")).parent


def run(library: Path, program: str, **environment: str) -> str:
    """A process of its own: the driver is loaded once in each."""
    head = """
import ctypes
import numpy as np
from denseport.runtime.backends.cuda.driver import open_cuda
from denseport.runtime.errors import MachineError
fake = ctypes.CDLL("libcuda.so.1")
alive = ctypes.c_int.in_dll(fake, "alive")
"""
    variables = {**os.environ, "LD_LIBRARY_PATH": str(library), **environment}
    done = subprocess.run(
        [sys.executable, "-c", head + program], capture_output=True, text=True, env=variables, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_is_described_without_its_context(library: Path) -> None:
    out = run(library, "print(open_cuda(implementation='cuda-bindings').device)")
    assert out.strip() == "Device(name='Fake GPU', capability=(8, 6), driver='13.2', index=0)"


def test_a_machine_without_that_gpu_is_named(library: Path) -> None:
    program = """
for index in (0, 1):
    try:
        open_cuda(index, "cuda-bindings")
        print("opened")
    except MachineError as err:
        print(err.message)
"""
    assert run(library, program).splitlines() == ["opened", "no GPU 1: this machine has 1"]
    assert run(library, program, FAKE_NO_GPU="1").splitlines()[0] == "no GPU 0: this machine has 0"


def test_bytes_go_to_the_gpu_and_back(library: Path) -> None:
    program = """
cuda = open_cuda(implementation="cuda-bindings")
data = np.arange(1000, dtype=np.float32)
with cuda.current(), cuda.stream() as stream, cuda.allocate(data.nbytes) as memory, cuda.pinned(data.nbytes) as pinned:
    assert (memory.size, pinned.size, pinned.data.dtype, alive.value) == (4000, 4000, np.uint8, 3)
    cuda.copy_to_device(memory.address, data, stream)
    target = pinned.data.view(np.float32)
    target[:] = -1
    cuda.copy_to_host(target, memory.address, stream)
    assert (target == -1).all()  # nothing waits unless it is told to
    cuda.synchronize(stream)
    assert (target == data).all()
    with cuda.allocate(data.nbytes) as other:
        cuda.copy(other.address, memory.address, data.nbytes, stream)
        cuda.copy_to_host(target[::-1].copy(), other.address, stream)
        cuda.synchronize(stream)
    memory.close()
    assert alive.value == 2
assert alive.value == 0, alive
"""
    run(library, program)


def test_recorded_work_runs_when_it_is_launched_and_only_then(library: Path) -> None:
    program = """
cuda = open_cuda(implementation="cuda-bindings")
with cuda.current(), cuda.stream() as stream, cuda.allocate(8) as memory, cuda.pinned(8) as a, cuda.pinned(8) as b:
    data, target = a.data, b.data
    target[:] = 9
    def work():
        cuda.copy_to_device(memory.address, data, stream)
        cuda.copy_to_host(target, memory.address, stream)
    with cuda.capture(stream, work) as graph:
        assert (target == 9).all() and alive.value == 5  # the graph that it is made from is given back
        for number in (1, 2):
            data[:] = number
            graph.launch()
            cuda.synchronize(stream)
            assert (target == number).all()
    def fail():
        raise ValueError("in the middle")
    try:
        cuda.capture(stream, fail)
    except ValueError:
        cuda.synchronize(stream)  # the recording was ended
    def wait():
        cuda.synchronize(stream)
    try:
        cuda.capture(stream, wait)
    except MachineError as err:
        assert "cuStreamSynchronize: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in str(err), err
    cuda.synchronize(stream)
assert alive.value == 0, alive
"""
    run(library, program)


def test_streams_are_ordered_where_it_is_said_and_nowhere_else(library: Path) -> None:
    program = """
cuda = open_cuda(implementation="cuda-bindings")
with cuda.current(), cuda.stream() as one, cuda.stream() as two, cuda.allocate(8) as memory, cuda.pinned(16) as pinned:
    data, target = pinned.data[:8], pinned.data[8:]
    data[:], target[:] = 1, 0
    cuda.copy_to_device(memory.address, data, one)
    cuda.copy_to_host(target, memory.address, two)
    cuda.synchronize(two)
    assert not (target == 1).any()  # it raced
    cuda.wait_for(two, one.handle)
    cuda.copy_to_host(target, memory.address, two)
    cuda.synchronize(two)
    assert (target == 1).all() and alive.value == 4  # no event is left
    cuda.wait_for(two, 1)  # the default stream
assert alive.value == 0, alive
"""
    run(library, program)


def test_memory_that_is_freed_under_queued_work_is_an_error(library: Path) -> None:
    """What the fake is for: a GPU might not show it, or only sometimes."""
    program = """
cuda = open_cuda(implementation="cuda-bindings")
with cuda.current():
    stream, memory, pinned = cuda.stream(), cuda.allocate(8), cuda.pinned(8)
    cuda.copy_to_device(memory.address, pinned.data, stream)
    memory.close()
    for call in (lambda: cuda.synchronize(stream), lambda: cuda.allocate(8)):  # the second: as on a GPU, for good
        try:
            call()
        except MachineError as err:
            print(err)
"""
    assert run(library, program).count("CUDA_ERROR_ILLEGAL_ADDRESS") == 2


def test_what_breaks_a_recording_on_a_gpu_breaks_it_here(library: Path) -> None:
    """The fake's own rules, which the runtime's streams and waits keep clear of."""
    program = """
from cuda.bindings import driver
cuda = open_cuda(implementation="cuda-bindings")
def status(name, *arguments):
    found, *given = getattr(driver, name)(*arguments)
    return (found.name.removeprefix("CUDA_ERROR_"), *given)
with cuda.current():
    legacy, event = driver.CUstream(1), status("cuEventCreate", 0)[1]
    for flag in (0, 1):  # blocking; non-blocking, as the runtime's are
        stream = status("cuStreamCreate", flag)[1]
        status("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        print(*status("cuEventRecord", event, legacy), status("cuStreamEndCapture", stream)[0])
    status("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    print(*status("cuCtxSynchronize"), status("cuStreamEndCapture", stream)[0])
    print(*status("cuStreamSynchronize", driver.CUstream(12345)))
"""
    assert run(library, program).splitlines() == [
        "STREAM_CAPTURE_IMPLICIT STREAM_CAPTURE_INVALIDATED",
        "CUDA_SUCCESS CUDA_SUCCESS",
        "STREAM_CAPTURE_UNSUPPORTED STREAM_CAPTURE_INVALIDATED",
        "INVALID_HANDLE",
    ]


def test_engines_and_the_device_path_hold_over_the_real_bindings(library: Path) -> None:
    """The same tests that elsewhere call the driver through a few lines of ctypes."""
    backends = [f"runtime/backends/test_tensorrt{part}.py" for part in ("", "_rtx", "_arrays")]
    files = [*backends, "runtime/pipeline/test_device_path.py", "export/engine/test_race.py"]
    variables = {**os.environ, "LD_LIBRARY_PATH": str(library), REAL: "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(REPO / "tests" / f) for f in files),
    ]
    # Without tests of machines that have no driver, and without those that export a bundle first.
    command += ["-k", "(tensorrt or race or engine or told or context) and not (without or real or fakes or missing)"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=REPO, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_drivers_refusals_are_told(library: Path) -> None:
    program = """
cuda = open_cuda(implementation="cuda-bindings")
with cuda.current(), cuda.stream() as stream:
    for size in (1 << 40, 1 << 35):
        try:
            cuda.allocate(size)
        except MachineError as err:
            print(err)
try:
    cuda.allocate(8)
except MachineError as err:
    print(err)
"""
    out = run(library, program)
    assert out.count("the GPU has too little free memory (cuMemAlloc)") == 2 and "smaller batches" in out
    assert "cuMemAlloc: CUDA_ERROR_INVALID_CONTEXT" in out

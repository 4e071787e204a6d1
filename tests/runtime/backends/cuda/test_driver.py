"""The CUDA layer over the real cuda-bindings, on a driver of C that works on host memory (``fake_driver.c``).

This shows what is called with which arguments, in a context, and given back; not that a GPU does it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake as libcuda.so.1."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_driver.c")
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
        str(source),
        "-o",
        str(folder / "libcuda.so.1"),
    ]
    subprocess.run([*command, "-ldl"], check=True)
    return folder


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
    assert out.strip() == "Device(name='Fake H100', capability=(9, 0), driver='13.2')"


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
    cuda.synchronize(stream)
    cuda.synchronize()
    assert (target == data).all()
    memory.close()
    assert alive.value == 2
assert alive.value == 0, alive
"""
    run(library, program)


def test_recorded_work_runs_when_it_is_launched_and_only_then(library: Path) -> None:
    program = """
cuda = open_cuda(implementation="cuda-bindings")
data, target = np.zeros(8, np.uint8), np.full(8, 9, np.uint8)
with cuda.current(), cuda.stream() as stream, cuda.allocate(8) as memory:
    def work():
        cuda.copy_to_device(memory.address, data, stream)
        cuda.copy_to_host(target, memory.address, stream)
    with cuda.capture(stream, work) as graph:
        assert (target == 9).all() and alive.value == 3  # the graph that it is made from is given back
        for number in (1, 2):
            data[:] = number
            graph.launch()
            assert (target == number).all()
    def fail():
        raise ValueError("in the middle")
    try:
        cuda.capture(stream, fail)
    except ValueError:
        cuda.synchronize(stream)  # the recording was ended
assert alive.value == 0, alive
"""
    run(library, program)


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

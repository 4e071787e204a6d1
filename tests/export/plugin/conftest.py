"""The kernels' own source, compiled by g++ and launched with the launch plan's numbers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.export.plugin import launch

HERE = Path(__file__).parent
SOURCE = Path(launch.__file__).with_name("kernels.cu")
GUARD = 64  # elements around each tensor; NaN around inputs, so that a read beyond the border shows


class Kernels:
    """Runs launches of the CPU build on numpy arrays."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def run(
        self,
        plan: launch.Launch,
        inputs: list[NDArray[np.generic] | None],
        shape: tuple[int, ...],
        dtype: type[np.generic],
    ) -> NDArray[np.generic]:
        """Launch, and return the output. None is an input that lends only its shape."""
        guarded = [None if a is None else _guarded(a) for a in inputs]
        output = _guarded(np.zeros(shape, dtype), fill=7)
        output[...] = 7
        pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in guarded]
        scalars = [ctypes.c_int(value) for value in plan.scalars]
        arguments = [*pointers, *scalars, ctypes.c_void_p(output.ctypes.data)]
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        getattr(self._library, f"launch_{plan.kernel}")(plan.grid, plan.block, addresses)
        buffer = output.base
        assert buffer is not None
        start = (output.ctypes.data - buffer.ctypes.data) // output.itemsize
        outside = np.concatenate([buffer[:start], buffer[start + output.size :]])
        assert (outside == 7).all(), f"{plan.kernel} wrote outside its output"
        return output


def _guarded(array: NDArray[np.generic], fill: float = np.nan) -> NDArray[np.generic]:
    """A copy at a multiple of 16 bytes, and of no higher power of two, within a buffer of ``fill``."""
    buffer = np.full(array.size + 2 * GUARD, fill, array.dtype)
    start = next(i for i in range(8, GUARD) if (buffer.ctypes.data + i * array.itemsize) % 32 == 16)
    # A plain slice keeps the whole buffer as its base; reshape of it does too.
    view = buffer[start : start + array.size].reshape(array.shape)
    view[...] = array
    return view


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    names = " ".join(f"LAUNCHER({name})" for name in launch.KERNELS)
    subprocess.run(
        [
            *(compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
            *("-fno-strict-aliasing", "-shared", "-fPIC", f"-I{SOURCE.parent}", f"-DKERNELS={names}"),
            *("-x", "c++", str(HERE / "cuda_on_cpu.h"), "-o", str(library)),
        ],
        check=True,
    )
    return Kernels(ctypes.CDLL(str(library)))

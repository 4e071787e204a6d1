"""The kernels' own source, compiled by g++ and launched with the launch plan's numbers."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.kernels.launch import Launch

POISON = 12345  # in the output before a launch: FP16 can hold it, and no test's result is as large


def compile_kernels(sources: Iterable[Path], names: Iterable[str], folder: Path) -> Kernels:
    """The kernels ``names`` of ``sources``, compiled for this processor; skips where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    files = (Path(__file__).with_name("cuda_on_cpu.h"), *sources)
    unit, library = folder / "kernels.cpp", folder / "kernels.so"
    unit.write_text(
        "".join(f'#include "{path}"\n' for path in files) + "".join(f"LAUNCHER({name})\n" for name in names)
    )
    subprocess.run(
        [
            *(compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
            *("-fno-strict-aliasing", "-shared", "-fPIC", str(unit), "-o", str(library)),
        ],
        check=True,
    )
    return Kernels(ctypes.CDLL(str(library)))


class Kernels:
    """Runs launches of the CPU build on numpy arrays."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def launch(self, plan: Launch, inputs: Sequence[int | None], output: int) -> None:
        """Launch on addresses. A tensor that only lends its shape is None."""
        arguments = [
            *(ctypes.c_void_p(address) for address in inputs),
            *(ctypes.c_int(value) for value in plan.scalars),
            ctypes.c_void_p(output),
        ]
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        getattr(self._library, f"launch_{plan.kernel}")(plan.grid, plan.block, addresses)

    def address(self, kernel: str) -> ctypes.c_void_p:
        """Of what launches a kernel: ``(grid, block, addresses of the arguments)``."""
        return ctypes.cast(getattr(self._library, f"launch_{kernel}"), ctypes.c_void_p)

    def run(
        self,
        plan: Launch,
        inputs: Sequence[NDArray[Any] | None],
        shape: tuple[int, ...],
        dtype: type[np.generic],
    ) -> NDArray[Any]:
        """Launch, and return the output. None is an input that lends only its shape.

        Every tensor touches a page that nobody may access, so reading or writing beyond its end stops the
        interpreter (pytest then prints where); a second launch does the same with what lies before its start.
        """
        results = []
        poison = POISON % (np.iinfo(dtype).max + 1) if np.issubdtype(dtype, np.integer) else POISON
        for at_end in (True, False):
            tensors = [None if a is None else _at_a_forbidden_page(a, at_end) for a in inputs]
            output = _at_a_forbidden_page(np.full(shape, poison, dtype), at_end)
            self.launch(plan, [None if a is None else a.ctypes.data for a in tensors], output.ctypes.data)
            results.append(output.copy())
        np.testing.assert_array_equal(results[0], results[1])
        return results[0]


def _at_a_forbidden_page(array: NDArray[Any], at_end: bool) -> NDArray[Any]:
    """A copy whose end, or start, is the border of a page without access rights."""
    page = mmap.PAGESIZE
    room = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (base, base + page + room):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) != 0:
            raise OSError("mprotect failed")
    start = page + (room - array.nbytes if at_end else 0)
    view = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    view[...] = array
    return view

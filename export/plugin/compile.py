"""Compiles kernels.cu to PTX with NVRTC, NVIDIA's run-time compiler, from its wheel; no CUDA toolkit, no GPU.

One PTX for compute capability 7.5 serves every GPU since Turing: the driver turns it into machine code when
an engine is loaded. NVRTC is pinned to 13.0, since a newer one writes a PTX version that drivers of CUDA 13.0
reject.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path

from denseport.runtime.errors import MachineError

__all__ = ["NVRTC_VERSION", "SOURCE", "compile_ptx", "single_kernel"]

SOURCE = Path(__file__).with_name("kernels.cu")
NVRTC_VERSION = (13, 0)
_OPTIONS = (b"--gpu-architecture=compute_75", b"--std=c++17")
_REMEDY = "pip install 'nvidia-cuda-nvrtc==13.0.*'"


@functools.cache
def compile_ptx(source: Path = SOURCE) -> bytes:
    """Return the PTX of every kernel in ``source``, as one text without the NUL that NVRTC puts at its end.

    Raises:
        MachineError: NVRTC 13.0 is not installed, or it rejects the source.
    """
    nvrtc = _Nvrtc()
    return nvrtc.compile(source.read_bytes(), source.name.encode())


def single_kernel(ptx: bytes, kernel: str) -> bytes:
    """Return ``ptx`` cut down to one entry point: an engine then holds 15 to 95 kB of it a layer, not 700.

    Raises:
        ValueError: ``ptx`` has no such entry point, or it calls a function outside of it.
    """
    text = ptx.decode("ascii")
    entries = list(re.finditer(r"^(?:\t?//.*\n)*\.visible \.entry (\w+)\((?:.*\n)*?^}\n", text, re.MULTILINE))
    wanted = [entry for entry in entries if entry[1] == kernel]
    if not wanted or ".func" in text:
        raise ValueError(f"no self-contained kernel {kernel} in the PTX: it has {[entry[1] for entry in entries]}")
    return (text[: entries[0].start()] + wanted[0][0]).encode("ascii")


class _Nvrtc:
    """The five calls of NVRTC's C interface that a compilation takes, through ctypes."""

    def __init__(self) -> None:
        library = _find_library()
        # NVRTC opens this one by its bare name, which works outside the library path if it is loaded already.
        self._builtins = ctypes.CDLL(str(library.with_name("libnvrtc-builtins.so.13.0")))
        self._library = ctypes.CDLL(str(library))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        if (major.value, minor.value) != NVRTC_VERSION:
            raise MachineError(f"NVRTC 13.0 is needed, found {major.value}.{minor.value}", _REMEDY)

    def compile(self, source: bytes, name: bytes) -> bytes:
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source, name, 0, None, None)
        try:
            options = (ctypes.c_char_p * len(_OPTIONS))(*_OPTIONS)
            try:
                self._call("nvrtcCompileProgram", program, len(_OPTIONS), options)
            except MachineError as error:
                log = self._text("nvrtcGetProgramLog", program).decode(errors="replace")
                raise MachineError(f"NVRTC rejects {name.decode()}:\n{log}") from error
            return self._text("nvrtcGetPTX", program)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, getter: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{getter}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(getter, program, buffer)
        return buffer.raw.rstrip(b"\0")

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise MachineError(f"{function} failed with status {status}")


def _find_library() -> Path:
    """The libnvrtc of the pinned wheel; never one that happens to lie on the machine's library path."""
    try:
        package = importlib.util.find_spec("nvidia.cu13")
    except ModuleNotFoundError:
        package = None
    for folder in (package.submodule_search_locations or []) if package else []:
        library = Path(folder) / "lib" / f"libnvrtc.so.{NVRTC_VERSION[0]}"
        if library.exists():
            return library
    raise MachineError("NVRTC, NVIDIA's run-time compiler, is not installed", _REMEDY)

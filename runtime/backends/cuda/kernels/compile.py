"""Compiles kernels to PTX with NVRTC, NVIDIA's run-time compiler, from its wheel; no CUDA toolkit, no GPU.

One PTX for compute capability 7.5 serves every GPU since Turing: the driver turns it into machine code when it is
loaded. NVRTC 13.0 marks its text as PTX 9.0, which only drivers of CUDA 13 take. The kernels need nothing that PTX 7.4
lacks, so the mark is lowered to that, and drivers since CUDA 11.4 take it. NVRTC is pinned, since another release may
write what the older language lacks.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import re
from contextlib import suppress
from pathlib import Path

from denseport.runtime.errors import MachineError, OutputError
from denseport.runtime.system.files import cache_folder, write_atomic

__all__ = [
    "COMMON",
    "IMAGE_SOURCES",
    "NVRTC_VERSION",
    "PTX_VERSION",
    "RESIZE_ARGMAX",
    "compile_ptx",
    "fingerprint",
    "image_ptx",
]

_HERE = Path(__file__).parent
COMMON, RESIZE_ARGMAX = _HERE / "common.cu", _HERE / "resize_argmax.cu"
IMAGE_SOURCES = (COMMON, RESIZE_ARGMAX, _HERE / "image.cu")
NVRTC_VERSION = (13, 0)
PTX_VERSION = b"7.4"
_OPTIONS = (b"--gpu-architecture=compute_75", b"--std=c++17")
_REMEDY = "pip install 'nvidia-cuda-nvrtc==13.0.*'"


def image_ptx() -> bytes:
    """The PTX of the kernels around the network, from the cache where this version was compiled before.

    A cache that cannot be read or written costs a compilation, half a second, and nothing else.

    Raises:
        MachineError: it was not compiled before, and NVRTC 13.0 is not installed.
    """
    try:
        path = cache_folder("kernels") / f"image-{fingerprint(IMAGE_SOURCES)}.ptx"
    except OutputError:
        return compile_ptx(IMAGE_SOURCES)
    with suppress(OSError):
        return path.read_bytes()
    ptx = compile_ptx(IMAGE_SOURCES)
    with suppress(OutputError):
        write_atomic(path, ptx)
    return ptx


@functools.cache
def compile_ptx(sources: tuple[Path, ...]) -> bytes:
    """The PTX 7.4 of every kernel in ``sources``, joined, as one text without the NUL that NVRTC puts at its end.

    Raises:
        MachineError: NVRTC 13.0 is not installed, or it rejects the source.
    """
    ptx = _Nvrtc().compile(_joined(sources), sources[-1].name.encode())
    return re.sub(rb"(?m)^\.version \d+\.\d+$", b".version " + PTX_VERSION, ptx, count=1)


def fingerprint(sources: tuple[Path, ...]) -> str:
    """64 hex digits that change with the sources, the options and the versions of compiler and PTX."""
    return hashlib.sha256(repr((NVRTC_VERSION, PTX_VERSION, _OPTIONS)).encode() + _joined(sources)).hexdigest()


def _joined(sources: tuple[Path, ...]) -> bytes:
    """With each file's name and lines kept for the compiler's messages."""
    return b"".join(b'#line 1 "%s"\n%s' % (path.name.encode(), path.read_bytes()) for path in sources)


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
                raise MachineError(f"NVRTC rejects {name.decode()}:\n{log}", _REMEDY) from error
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

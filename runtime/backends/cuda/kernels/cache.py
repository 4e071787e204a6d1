"""The kernels around the network as PTX, compiled once a user and kept."""

from __future__ import annotations

from contextlib import suppress

from denseport.runtime.backends.cuda.kernels.compile import compile_ptx, fingerprint
from denseport.runtime.backends.cuda.kernels.sources import PICTURE_SOURCES
from denseport.runtime.errors import OutputError
from denseport.runtime.system.files import cache_folder, write_atomic

__all__ = ["picture_ptx"]


def picture_ptx() -> bytes:
    """The PTX of picture.cu, from the cache where this version of it was compiled before.

    A cache that cannot be read or written costs a compilation, half a second, and nothing else.

    Raises:
        MachineError: it was not compiled before, and NVRTC 13.0 is not installed.
    """
    folder = cache_folder()
    if folder is None:
        return compile_ptx(PICTURE_SOURCES)
    path = folder / f"picture-{fingerprint(PICTURE_SOURCES)}.ptx"
    with suppress(OSError):
        return path.read_bytes()
    ptx = compile_ptx(PICTURE_SOURCES)
    with suppress(OutputError):
        write_atomic(path, ptx)
    return ptx

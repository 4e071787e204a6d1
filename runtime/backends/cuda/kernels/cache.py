"""The kernels around the network as PTX, compiled once a user and kept."""

from __future__ import annotations

from contextlib import suppress

from denseport.runtime.backends.cuda.kernels.compile import compile_ptx, fingerprint
from denseport.runtime.backends.cuda.kernels.sources import IMAGE_SOURCES
from denseport.runtime.errors import OutputError
from denseport.runtime.system.files import cache_folder, write_atomic

__all__ = ["image_ptx"]


def image_ptx() -> bytes:
    """The PTX of image.cu, from the cache where this version of it was compiled before.

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

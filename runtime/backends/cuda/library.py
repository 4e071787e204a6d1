"""The driver's own library, through ctypes, for what pycuda and the cuda-bindings do not both have.

Streams and contexts of pycuda, of the cuda-bindings and of torch are all the driver's: one call serves them.
"""

from __future__ import annotations

import ctypes
import functools

from denseport.runtime.errors import MachineError

__all__ = ["LEGACY", "call", "open_library", "order"]

LEGACY = 1  # CU_STREAM_LEGACY: the default stream of programs that are not compiled for one a thread
_LIBRARY = "libcuda.so.1"
_UNSUPPORTED_PTX = 222  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


def open_library() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        MachineError: there is no driver.
    """
    return _opened(_LIBRARY)


@functools.cache
def _opened(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as err:
        raise MachineError(f"this machine has no NVIDIA driver: {err}", "Install NVIDIA's driver.") from err


def call(name: str, *arguments: object) -> None:
    """Call a function of the driver that returns a status.

    Raises:
        MachineError: there is no driver, or the status is an error.
    """
    library = open_library()
    status = getattr(library, name)(*arguments)
    if status == _UNSUPPORTED_PTX:
        raise MachineError("NVIDIA's driver is too old for the kernels", "Install a driver of CUDA 11.4 or newer.")
    if status != 0:
        text = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(text))
        raise MachineError(f"{name}: {text.value.decode() if text.value else f'status {status}'}")


def order(first: int, second: int) -> None:
    """Let a stream wait for what is queued on another by now; no host waits.

    Args:
        first: the driver's handle of the stream that is waited for, or `LEGACY`.
        second: that of the stream that waits.
    """
    event = ctypes.c_void_p()
    call("cuEventCreate", ctypes.byref(event), _DISABLE_TIMING)
    try:
        call("cuEventRecord", event, ctypes.c_void_p(first))
        call("cuStreamWaitEvent", ctypes.c_void_p(second), event, 0)
    finally:
        call("cuEventDestroy_v2", event)  # freed once it has happened

"""Kernels from PTX, launched through the driver's own library in the calling thread's context.

Streams and contexts of pycuda, of the cuda-bindings and of torch are all the driver's: one launcher serves them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from denseport.runtime.backends.cuda.kernels.launch import Launch
from denseport.runtime.errors import MachineError

__all__ = ["Module"]

_UNSUPPORTED_PTX = 222  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
_LIBRARY = "libcuda.so.1"


class Module:
    """The kernels of one PTX, loaded into the current context. Safe to launch from several threads.

    Raises:
        MachineError: there is no driver, or it refuses the PTX.
    """

    def __init__(self, ptx: bytes) -> None:
        try:
            self._driver = ctypes.CDLL(_LIBRARY)
        except OSError as err:
            raise MachineError(f"this machine has no NVIDIA driver: {err}", "Install NVIDIA's driver.") from err
        self._module: ctypes.c_void_p | None = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(ptx))

    def launch(self, plan: Launch, inputs: Sequence[int | None], output: int, stream: int) -> None:
        """Queue a kernel on a stream.

        Args:
            inputs: addresses on the GPU; None for a tensor that only lends its shape.
            output: likewise.
            stream: the driver's handle, as a number.
        """
        arguments = [*map(ctypes.c_void_p, inputs), *map(ctypes.c_int, plan.scalars), ctypes.c_void_p(output)]
        # The driver reads the arguments before it returns.
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        grid, block = (plan.grid, 1, 1), (plan.block, 1, 1)
        function = self._functions.get(plan.kernel) or self._find(plan.kernel)
        self._call("cuLaunchKernel", function, *grid, *block, 0, ctypes.c_void_p(stream), addresses, None)

    def _find(self, kernel: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._module, kernel.encode())
        self._functions[kernel] = function
        return function

    def close(self) -> None:
        """Unload the kernels; nothing may be queued that uses them."""
        module, self._module = self._module, None
        if module is not None:
            self._call("cuModuleUnload", module)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status == _UNSUPPORTED_PTX:
            raise MachineError("NVIDIA's driver is too old for the kernels", "Install a driver of CUDA 13.0 or newer.")
        if status != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(text))
            raise MachineError(f"{name}: {text.value.decode() if text.value else f'status {status}'}")

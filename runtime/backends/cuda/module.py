"""Kernels from PTX, launched through the driver's own library in the calling thread's context."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from denseport.runtime.backends.cuda.kernels.launch import Launch
from denseport.runtime.backends.cuda.library import call

__all__ = ["Module"]


class Module:
    """The kernels of one PTX, loaded into the current context. Safe to launch from several threads.

    Raises:
        MachineError: there is no driver, or it refuses the PTX.
    """

    def __init__(self, ptx: bytes) -> None:
        self._module: ctypes.c_void_p | None = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}
        call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(ptx))

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
        call("cuLaunchKernel", function, *grid, *block, 0, ctypes.c_void_p(stream), addresses, None)

    def _find(self, kernel: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        call("cuModuleGetFunction", ctypes.byref(function), self._module, kernel.encode())
        self._functions[kernel] = function
        return function

    def close(self) -> None:
        """Unload the kernels; nothing may be queued that uses them."""
        module, self._module = self._module, None
        if module is not None:
            call("cuModuleUnload", module)

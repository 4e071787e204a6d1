"""Images and masks in memory that a Triton server on the same machine maps too, instead of in its messages."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory as Block
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.serving.triton.connections import Failure, Tritonclient, infer_input, understood

__all__ = ["SharedMemory"]

DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16)}
BYTES_OF_A_CLASS = 2  # at most


@dataclass(frozen=True)
class _Region:
    """A block of memory under the name by which the server knows it."""

    name: str
    block: Block

    def write(self, array: NDArray[Any]) -> None:
        np.ndarray(array.shape, array.dtype, self.block.buf)[...] = array

    def read(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        return np.ndarray(shape, dtype, self.block.buf).copy()


class SharedMemory:
    """A `denseport.runtime.serving.triton.connections.Connection` whose tensors go through shared memory.

    There is one region for each tensor, replaced by a larger one when it has to be.
    """

    def __init__(self, connection: Tritonclient) -> None:
        self._inner = connection
        self._regions: dict[str, _Region] = {}

    def infer(self, inputs: dict[str, NDArray[Any]], output: str, left: float) -> NDArray[Any]:
        try:
            return self._infer(inputs, output, left)
        except Failure as err:
            if "shared memory" not in str(err):
                raise
            self._forget()  # a server that was started again knows none of the regions
            return self._infer(inputs, output, left)

    def _infer(self, inputs: dict[str, NDArray[Any]], output: str, left: float) -> NDArray[Any]:
        library, tensors = self._inner.library, []
        for name, array in inputs.items():
            region = self._region(name, array.nbytes, left)
            region.write(array)
            tensors.append(infer_input(library, name, array))
            tensors[-1].set_shared_memory(region.name, array.nbytes)
        pixels = max(array.size // array.shape[-1] for array in inputs.values())
        target = self._region(output, BYTES_OF_A_CLASS * pixels, left)
        wanted = library.InferRequestedOutput(output)
        wanted.set_shared_memory(target.name, BYTES_OF_A_CLASS * pixels)
        result = self._inner.request(tensors, wanted, left)
        with understood():
            datatype, shape = self._inner.describe(result, output)
            return target.read(DTYPES[datatype], shape)

    def _region(self, tensor: str, size: int, left: float) -> _Region:
        region = self._regions.get(tensor)
        if region is not None and region.block.size >= size:
            return region
        if region is not None:
            self._discard(tensor)
        name = f"denseport_{tensor}_{os.getpid()}_{secrets.token_hex(8)}"
        region = _Region(name, Block(name, create=True, size=size))
        self._regions[tensor] = region
        with self._inner.failures(left):
            self._inner.client.register_system_shared_memory(name, f"/{name}", size, **self._inner.options(left))
        return region

    def _discard(self, tensor: str) -> None:
        region = self._regions.pop(tensor)
        with suppress(Failure), self._inner.failures(1.0):  # a server that is gone has forgotten it too
            self._inner.client.unregister_system_shared_memory(region.name, **self._inner.options(1.0))
        region.block.close()
        region.block.unlink()

    def _forget(self) -> None:
        for tensor in list(self._regions):
            self._discard(tensor)

    def parameters(self, left: float) -> dict[str, str]:
        return self._inner.parameters(left)

    def models(self, left: float) -> set[str]:
        return self._inner.models(left)

    def close(self) -> None:
        self._forget()
        self._inner.close()

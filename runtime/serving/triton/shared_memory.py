"""Images and masks in memory that a Triton server on the same machine maps too, instead of in its messages.

The memory is tritonclient's own: `multiprocessing.shared_memory` with a count of who uses a region.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.serving.triton.connections import Failure, Tritonclient, infer_input, understood

__all__ = ["SharedMemory"]

DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16)}
BYTES_OF_A_CLASS = 2  # at most


@dataclass(frozen=True)
class _Region:
    """Memory under the name by which the server knows it."""

    name: str
    size: int
    handle: Any  # tritonclient's


class SharedMemory:
    """A `denseport.runtime.serving.triton.connections.Connection` whose tensors go through shared memory.

    There is one region for each tensor, replaced by a larger one when it has to be.
    """

    def __init__(self, connection: Tritonclient) -> None:
        from tritonclient.utils import shared_memory

        self._library = shared_memory
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
            self._library.set_shared_memory_region(region.handle, [array])
            tensors.append(infer_input(library, name, array))
            tensors[-1].set_shared_memory(region.name, array.nbytes)
        pixels = max(array.size // array.shape[-1] for array in inputs.values())
        target = self._region(output, BYTES_OF_A_CLASS * pixels, left)
        wanted = library.InferRequestedOutput(output)
        wanted.set_shared_memory(target.name, BYTES_OF_A_CLASS * pixels)
        result = self._inner.request(tensors, wanted, left)
        with understood():
            datatype, shape = self._inner.describe(result, output)
            view: NDArray[Any] = self._library.get_contents_as_numpy(target.handle, DTYPES[datatype], shape)
            return view.copy()  # the next answer lies in the same place

    def _region(self, tensor: str, size: int, left: float) -> _Region:
        region = self._regions.get(tensor)
        if region is not None and region.size >= size:
            return region
        if region is not None:
            self._discard(tensor)
        name = f"denseport_{tensor}_{os.getpid()}_{secrets.token_hex(8)}"
        handle = self._library.create_shared_memory_region(name, name, size, create_only=True)
        region = self._regions[tensor] = _Region(name, size, handle)
        with self._inner.failures(left):
            self._inner.client.register_system_shared_memory(name, f"/{name}", size, **self._inner.options(left))
        return region

    def _discard(self, tensor: str) -> None:
        region = self._regions.pop(tensor)
        with suppress(Failure), self._inner.failures(1.0):  # a server that is gone has forgotten it too
            self._inner.client.unregister_system_shared_memory(region.name, **self._inner.options(1.0))
        self._library.destroy_shared_memory_region(region.handle)

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

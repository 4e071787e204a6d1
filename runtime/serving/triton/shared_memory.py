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

from denseport.runtime.serving.triton import IMAGE, MASK
from denseport.runtime.serving.triton.connections import Connection, Failure, understood

__all__ = ["SharedMemory"]

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name.lower()) for name in ("UINT8", "UINT16")}
DTYPES["FP32"] = np.dtype(np.float32)
BYTES = 4  # of a pixel's class or depth, at most


@dataclass(frozen=True)
class _Region:
    """Memory under the name by which the server knows it."""

    name: str
    size: int
    handle: Any  # tritonclient's


class SharedMemory:
    """A `Connection` whose tensors go through shared memory: a region for each, replaced when it is too small."""

    def __init__(self, connection: Connection) -> None:
        from tritonclient.utils import shared_memory

        self._library = shared_memory
        self._inner = connection
        self.parameters, self.models = connection.parameters, connection.models
        self._regions: dict[str, _Region] = {}  # by tensor

    def infer(self, images: NDArray[np.uint8], left: float, output: str = MASK) -> NDArray[Any]:
        """As `Connection.infer`."""
        try:
            return self._infer(images, left, output)
        except Failure as err:
            if "shared memory" not in str(err):
                raise
            self._forget()  # a server that was started again knows none of the regions
            return self._infer(images, left, output)

    def _infer(self, images: NDArray[np.uint8], left: float, output: str) -> NDArray[Any]:
        source = self._region(IMAGE, images.nbytes, left)
        self._library.set_shared_memory_region(source.handle, [images])
        tensor = self._inner.describe_input(images)
        tensor.set_shared_memory(source.name, images.nbytes)
        size = BYTES * images.size // images.shape[-1]
        target = self._region(output, size, left)
        wanted = self._inner.library.InferRequestedOutput(output)
        wanted.set_shared_memory(target.name, size)
        result = self._inner.request(tensor, wanted, left)
        with understood():
            datatype, shape = self._inner.describe(result, output)
            view: NDArray[Any] = self._library.get_contents_as_numpy(target.handle, DTYPES[datatype], shape)
            return view.copy()  # the next answer lies in the same place

    def _region(self, tensor: str, size: int, left: float) -> _Region:
        """The tensor's region, of ``size`` bytes at least."""
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

    def close(self) -> None:
        self._forget()
        self._inner.close()

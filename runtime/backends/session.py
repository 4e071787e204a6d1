"""The contract of a back end: an opened artifact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import MachineError

if TYPE_CHECKING:
    from denseport.runtime.backends.cuda.device import DeviceNetwork

__all__ = ["Session"]


class Session(ABC):
    """An opened artifact, arrays in, arrays out. Safe to call from several threads."""

    on_gpu: bool = False  # a GPU computes; else the CPU does

    @abstractmethod
    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32 and in host memory."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What runs where, for people: library, version, device, threads."""

    def largest_batch(self, height: int, width: int) -> int | None:
        """The images of one size, pixels, that one run accepts; None: any number."""
        return None

    def device_network(self) -> DeviceNetwork:
        """The network for tensors that are in the GPU's memory; close its slots before the session.

        Raises:
            MachineError: it takes arrays from host memory only.
        """
        raise MachineError(f"tensors of {self.description} are on the host")

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what it holds; it cannot be used again."""

"""What a back end offers to those whose tensors are on the GPU already, and stay there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from denseport.runtime.backends.cuda.driver import Cuda, Stream
from denseport.runtime.backends.cuda.zero_copy import View

__all__ = ["DeviceNetwork", "ExecutionSlot"]


class ExecutionSlot(Protocol):
    """One inference at a time, with a stream and memory of its own. All calls need the GPU's context."""

    stream: Stream

    def infer(self, image: View) -> View:
        """Queue the network behind what is on the stream.

        Args:
            image: (N, 3, H, W) float32.

        Returns:
            The output, in the slot's memory: what the stream does next may read it, until the next call.

        Raises:
            InputError: a shape or type that the network does not take.
        """
        ...

    def capturable(self) -> bool:
        """Whether a shape that was inferred once can be recorded as a CUDA graph now."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class DeviceNetwork:
    """An opened artifact, for use on the GPU."""

    cuda: Cuda
    slots: int  # that may exist at once
    graphs: bool  # record the work of each shape once and repeat it
    new_slot: Callable[[], ExecutionSlot]  # in the GPU's context

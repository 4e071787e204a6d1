"""Work of one shape that is recorded as a CUDA graph once it ran, and repeated from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

from denseport.runtime.backends.cuda.driver import Cuda, Graph, Stream
from denseport.runtime.errors import MachineError

__all__ = ["Replay"]


class Replay:
    """Runs work on a stream, over and over; for one user at a time, in the GPU's context.

    Args:
        graphs: record it; else it is queued anew each time.
    """

    def __init__(self, cuda: Cuda, stream: Stream, *, graphs: bool) -> None:
        self._cuda, self._stream, self._wanted = cuda, stream, graphs
        self._graph: Graph | None = None

    def run(self, work: Callable[[], None], capturable: Callable[[], bool]) -> None:
        """Do the work, and wait for it.

        The first run takes the memory, which may not happen while work is recorded. What cannot be recorded then has
        been done all the same: a warning says why, and the work is queued anew each time.

        Args:
            work: queues it; the same addresses and shapes each time.
            capturable: whether it can be recorded now.
        """
        if self._graph is not None:
            self._graph.launch()
        else:
            work()
        self._cuda.synchronize(self._stream)
        if self._wanted and self._graph is None and capturable():
            try:
                self._graph = self._cuda.capture(self._stream, work)
            except MachineError as err:
                self._wanted = False
                warnings.warn(f"no CUDA graph, work is queued anew each time: {err}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Wait for what is queued, and give the recording back."""
        with suppress(MachineError):  # of work that failed: whoever ran it was told
            self._cuda.synchronize(self._stream)
        if self._graph is not None:
            self._graph.close()

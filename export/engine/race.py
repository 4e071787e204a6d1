"""Time engines against each other on the GPU here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from denseport.runtime.backends.cuda.driver import Cuda, open_cuda
from denseport.runtime.backends.cuda.zero_copy import CUDA, DeviceArray
from denseport.runtime.backends.tensorrt import TensorRTSession
from denseport.runtime.benchmark.turns import in_turns
from denseport.runtime.bundle.engine_record import BuildRecord, Shape

__all__ = ["race"]

ROUNDS, RUNS = 9, 20  # a round times each engine once, by so many runs


def race(
    engines: Mapping[str, tuple[Path, BuildRecord]], shape: Shape, *, cuda: Cuda | None = None
) -> dict[str, float]:
    """Milliseconds of an inference of each engine, its median over interleaved rounds.

    Images and results stay on the GPU: copies are the same for all, and longer than the difference. A first round
    warms up and does not count.

    Args:
        shape: (N, 3, H, W) of the input.
        cuda: default: `open_cuda`.

    Raises:
        MachineError: an engine does not run here.
        InputError: an engine was not built for ``shape``.
    """
    cuda = cuda or open_cuda()
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(TensorRTSession(path, record, cuda=cuda))
            for name, (path, record) in engines.items()
        }
        stack.enter_context(cuda.current())
        memory, stream = stack.enter_context(cuda.allocate(image.nbytes)), stack.enter_context(cuda.stream())
        cuda.copy_to_device(memory.address, image, stream)
        cuda.synchronize(stream)
        # The block gives its memory back.
        source = DeviceArray(memory.address, shape, np.float32, lambda: None, device=(CUDA, cuda.device.index))
        results = {name: session.run_device(source) for name, session in sessions.items()}

        def seconds(name: str, number: int) -> float:
            started = time.perf_counter()
            for _ in range(RUNS):
                sessions[name].run_device(source, results[name])
            return (time.perf_counter() - started) / RUNS

        times = in_turns({name: partial(seconds, name) for name in engines}, ROUNDS + 1)
    return {name: round(1000 * statistics.median(each[1:]), 4) for name, each in times.items()}

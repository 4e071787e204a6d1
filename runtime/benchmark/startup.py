"""Start-up and memory of one artifact, in a process of its own: ``python -m denseport.runtime.benchmark.startup``.

Prints JSON: milliseconds to import the package, to open the artifact and to the first result; peak memory in MiB after
the first one and after a few more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["measure_startup"]


def measure_startup(bundle: Path, artifact: str, size: tuple[int, int], threads: int | None) -> dict[str, float]:
    """Run this module in a child process; the memory is left out where there is no /proc to tell it.

    Raises:
        DenseportError: the child failed; its words.
    """
    from denseport.runtime.errors import DenseportError

    command = [sys.executable, "-m", __name__, str(bundle), artifact, *map(str, size), str(threads or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise DenseportError(
            f"{artifact}: could not be started in a process of its own: {last[0]}",
            "Mend what it says. If memory was short, free some: for a moment the artifact is opened twice.",
        )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _main(bundle: str, artifact: str, height: str, width: str, threads: str) -> dict[str, Any]:
    times = [time.perf_counter()]
    from denseport.runtime.benchmark.speed import synthetic_image
    from denseport.runtime.segmenter.opening import open_predictor

    image = synthetic_image(int(height), int(width))
    times.append(time.perf_counter())
    with open_predictor(bundle, artifact=artifact, threads=int(threads) or None) as segment:
        times.append(time.perf_counter())
        segment(image)
        times.append(time.perf_counter())
        first = _peak_mib()
        for _ in range(4):
            segment(image)
    names = ("import_ms", "open_ms", "first_ms")
    stages = {name: 1000 * (b - a) for name, a, b in zip(names, times, times[1:], strict=False)}
    memory = {"first_peak_mib": first, "peak_mib": _peak_mib()}
    return {**stages, **{name: value for name, value in memory.items() if value is not None}}


def _peak_mib() -> float | None:
    """None where there is no /proc. Not from getrusage: a child starts there with its parent's peak."""
    from denseport.runtime.system.machine import proc_values

    return next((int(value.split()[0]) / 1024 for value in proc_values("self/status", "VmHWM")), None)


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))

"""Time and memory of `denseport.runtime.pipeline.reduce.decide` against torch's interpolate, interpolate, argmax.

    python scripts/bench/postprocess.py [--rounds 7] [--threads 2] [--json]

The case is DPT on a 1.3-megapixel image: logits 150 x 256 x 342, network input 512 x 683, image
986 x 1315. Two kinds of logits:

realistic   resemble a segmentation: each class is a smooth random field (8 x 11 noise, upsampled) plus an
            offset of its own, so that some classes are common and most are rare, plus 5 % pixel noise
noise       white noise: no class can be left out of any tile, the worst case

Rounds are interleaved, the figures are medians: of the wall time, and of the CPU time of all threads, which
says more on a shared machine. Extra memory is the growth of the peak resident set (ru_maxrss) over one call,
in a process of its own that has made the inputs and solved a small problem before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a child's peak memory begins at its parent's: the parent loads nothing
    import numpy as np
    from numpy.typing import NDArray

    Method = Callable[[NDArray[np.float32], tuple[int, int], tuple[int, int]], NDArray[np.integer[Any]]]

LOGITS, RESIZED, IMAGE = (150, 256, 342), (512, 683), (986, 1315)
KINDS = ("realistic", "noise")
METHODS = ("torch", "denseport")


def make_logits(kind: str) -> NDArray[np.float32]:
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    _, height, width = LOGITS
    logits = np.empty(LOGITS, np.float32)
    for plane in logits:  # one by one, so that making them does not raise the peak
        plane[:] = random.standard_normal((height, width), np.float32)
        if kind == "realistic":
            coarse = 2 * random.standard_normal((8, 11), np.float32) + 2 * random.standard_normal()
            plane *= 0.1
            plane += cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return logits


def load_method(name: str, threads: int) -> Method:
    import torch
    from torch.nn.functional import interpolate

    from denseport.runtime.pipeline.reduce import decide
    from denseport.runtime.pipeline.resample import Placement, whole_map

    torch.set_num_threads(threads)

    def torch_argmax(
        logits: NDArray[np.float32], resized: tuple[int, int], size: tuple[int, int]
    ) -> NDArray[np.integer[Any]]:
        values = interpolate(torch.from_numpy(logits)[None], size=resized, mode="bilinear")
        values = interpolate(values, size=size, mode="bilinear")
        return values.argmax(1)[0].numpy()

    if name == "torch":
        return torch_argmax
    return lambda logits, resized, size: decide([[whole_map(logits, Placement(resized, size))]], threads=threads).mask


def measure_time(kind: str, threads: int, rounds: int) -> dict[str, Any]:
    """Medians of the wall and CPU seconds of each method, and how many pixels differ."""
    logits = make_logits(kind)
    methods = {name: load_method(name, threads) for name in METHODS}
    wall: dict[str, list[float]] = {name: [] for name in METHODS}
    cpu: dict[str, list[float]] = {name: [] for name in METHODS}
    masks = {}
    for _ in range(rounds + 1):
        for name, method in methods.items():
            start = time.perf_counter(), time.process_time()
            masks[name] = method(logits, RESIZED, IMAGE)
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])
    return {
        "wall_s": {name: round(median(seconds[1:]), 4) for name, seconds in wall.items()},  # the first warms up
        "cpu_s": {name: round(median(seconds[1:]), 4) for name, seconds in cpu.items()},
        "pixels_differing": int((masks["torch"] != masks["denseport"]).sum()),
    }


def measure_memory(name: str, kind: str, threads: int) -> float:
    """Growth of the peak resident set over one call, in MB."""
    logits, method = make_logits(kind), load_method(name, threads)
    method(logits[:, :8, :16].copy(), (32, 48), (64, 96))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method(logits, RESIZED, IMAGE)
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)


def in_child(threads: int, *task: str) -> Any:
    """Run one measurement of this file in a fresh process, with every thread pool at the same size."""
    pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = [sys.executable, __file__, "--threads", str(threads), "--task", *task]
    done = subprocess.run(command, env={**os.environ, **pools}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def print_table(results: dict[str, Any], threads: int) -> None:
    print(f"logits {LOGITS} -> {RESIZED} -> {IMAGE}, {threads} threads, {platform.machine()}")
    print(f"{'logits':10} {'method':10} {'wall ms':>8} {'CPU ms':>8} {'extra MB':>9}   pixels that differ")
    for kind, result in results.items():
        for name in METHODS:
            wall, cpu = (1000 * result[clock][name] for clock in ("wall_s", "cpu_s"))
            differ = str(result["pixels_differing"]) if name == "denseport" else ""
            print(f"{kind:10} {name:10} {wall:8.0f} {cpu:8.0f} {result['extra_MB'][name]:9.1f}   {differ}")
        faster, thriftier = (result[key]["torch"] / result[key]["denseport"] for key in ("wall_s", "extra_MB"))
        print(f"{'':10} {faster:.1f} times faster, {thriftier:.1f} times less extra memory")


def main() -> None:
    parser = argparse.ArgumentParser(description="time and memory of the post-processing, against torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.task and args.task[0] == "time":
        print(json.dumps(measure_time(args.task[1], args.threads, int(args.task[2]))))
        return
    if args.task:
        print(json.dumps(measure_memory(args.task[1], args.task[2], args.threads)))
        return
    results = {}
    for kind in KINDS:
        results[kind] = in_child(args.threads, "time", kind, str(args.rounds))
        results[kind]["extra_MB"] = {name: in_child(args.threads, "memory", name, kind) for name in METHODS}
    if args.json:
        print(json.dumps({"threads": args.threads, "rounds": args.rounds, **results}, indent=2))
    else:
        print_table(results, args.threads)


if __name__ == "__main__":
    main()

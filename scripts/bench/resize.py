"""Time of `denseport.runtime.pipeline.pillow_resize` against Pillow itself, in turns.

    python scripts/bench/resize.py [--rounds 31] [--json]

Images of 1.3 and of 12 megapixels become what DPT, Depth Anything and SegFormer are given. Pillow's time has its copies
from and to arrays, which a pipeline needs too. Both run in one thread: the products are too small for more. The figures
are medians over the rounds, of the wall time and of the CPU time; the ratio is ours over Pillow's. Exit code 1: a ratio
of CPU times above 2, or a result that is not Pillow's (of two calls, one for each axis: Pillow 13 alone may begin with
the height).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from denseport.runtime.pipeline.pillow_resize import resize

# Width and height of an image, and of what it becomes.
CASES = (
    ((1315, 986), (686, 518), "bicubic"),
    ((1315, 986), (512, 512), "bilinear"),
    ((1315, 986), (384, 384), "bicubic"),
    ((640, 480), (686, 518), "bicubic"),
    ((4000, 3000), (686, 518), "bicubic"),
)
MOST = 2.0  # times Pillow's time


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows = [compare(*case, arguments.rounds) for case in CASES]
    if arguments.json:
        print(json.dumps({"pillow": PIL.__version__, "cases": rows}, indent=1))
    else:
        print(f"Pillow {PIL.__version__}, {arguments.rounds} rounds, one thread; ms, wall (CPU)")
        for row in rows:
            times = "   ".join(f"{who} {row[who][0]:6.1f} ({row[who][1]:6.1f})" for who in ("pillow", "denseport"))
            print(f"{row['case']:38} {times}   ratio {row['ratio'][0]:.2f} ({row['ratio'][1]:.2f})")
    return int(any(row["ratio"][1] > MOST or not row["equal"] for row in rows))


def compare(old: tuple[int, int], new: tuple[int, int], kind: str, rounds: int) -> dict[str, Any]:
    """Medians of milliseconds, wall and CPU, of both; their ratios; whether both results are equal."""
    coarse = np.random.default_rng(0).integers(0, 256, (old[1] // 8, old[0] // 8, 3), np.uint8)
    image: NDArray[Any] = cv2.resize(coarse, old, interpolation=cv2.INTER_CUBIC)
    way = Image.Resampling[kind.upper()]
    methods: dict[str, Callable[[], NDArray[Any]]] = {
        "pillow": lambda: np.asarray(Image.fromarray(image).resize(new, way)),
        "denseport": lambda: resize(image, new[::-1], kind),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name, method in methods.items():
            start = time.perf_counter(), time.process_time()
            method()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    found = {
        name: [round(1000 * median(each), 2) for each in zip(*taken[1:], strict=True)] for name, taken in times.items()
    }
    ratio = [round(ours / theirs, 3) for ours, theirs in zip(found["denseport"], found["pillow"], strict=True)]
    expected = np.asarray(Image.fromarray(image).resize((new[0], old[1]), way).resize(new, way))
    case = f"{old[0]} x {old[1]} to {new[0]} x {new[1]}, {kind}"
    return {"case": case, **found, "ratio": ratio, "equal": bool((methods["denseport"]() == expected).all())}


if __name__ == "__main__":
    sys.exit(main())

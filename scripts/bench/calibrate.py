"""What `denseport calibrate` takes: time and peak memory, on a model with random weights and images of noise.

    python scripts/bench/calibrate.py dpt_vit-b16_160k [--images 32] [--size 512x512] [--effort low]
        [--keep-float LAYER …] [--bundle DIR]

The memory is the peak of the calibrating process alone, from its resource usage. The budget is switched off (random
weights keep no class under any change), so one set of layers is measured; what it finds means nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from random_bundle import random_bundle


def make_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Images of smooth noise, (height, width)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i:03}.png"), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="denseport models lists them")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", default="512x512", help="width x height of the images; default: %(default)s")
    parser.add_argument("--effort", default="low", choices=("low", "medium", "high"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--keep-float", nargs="+", default=[], metavar="LAYER", help="fewer layers to try, for a short run"
    )
    parser.add_argument("--bundle", type=Path, help="take this one instead of exporting the preset")
    arguments = parser.parse_args()
    width, _, height = arguments.size.partition("x")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = arguments.bundle or random_bundle(arguments.preset, folder / "bundle")
        make_images(folder / "images", arguments.images, (int(height), int(width)))
        command = [
            sys.executable,
            "-m",
            "denseport.runtime.cli.main",
            "calibrate",
            bundle,
            "--images",
            folder / "images",
        ]
        command += ["--agreement", "0", "--effort", arguments.effort, "--threads", str(arguments.threads), "--json"]
        command += ["--keep-float", *arguments.keep_float] if arguments.keep_float else []
        start = time.perf_counter()
        with (folder / "result.json").open("wb") as output:
            process = subprocess.Popen(command, stdout=output)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            return os.waitstatus_to_exitcode(status)
        result = json.loads((folder / "result.json").read_text())
    figures = {
        "preset": arguments.preset,
        "images": arguments.images,
        "size": arguments.size,
        "effort": arguments.effort,
        "float": arguments.keep_float,
        "threads": arguments.threads,
        "seconds": round(seconds),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_GB": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "share_int8": result["share"],
        "speed_ratio": {name: round(each["speed_ratio"], 2) for name, each in result["verdicts"].items()},
    }
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

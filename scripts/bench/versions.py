"""One image and a stream of images in two versions of Denseport, in turns: how many times as fast the new one is.

    python scripts/bench/versions.py OLD_PYTHON OLD_BUNDLE NEW_PYTHON NEW_BUNDLE IMAGE [--rounds 15] [--threads 2]

Each version is the interpreter of an environment in which it is installed, with a bundle of the same checkpoint that it
exported itself. Both stay open in a process of their own. Every round times one image and a stream of 20 in one, then
in the other; which is first changes from round to round. The ratio is the median of the rounds' ratios. Exit code 1:
slower by more than 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from processes import Program

STREAM = 20  # images
SLOWER = 0.98  # times as fast: less is beyond the noise of a quiet machine
CHILD = """
import sys, time
from pathlib import Path
from denseport.runtime import Segmenter
bundle, image, threads, length = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with Segmenter(bundle, artifact="model.onnx", threads=threads) as segment:
    segment(image)
    for line in sys.stdin:
        begin = time.perf_counter(), time.process_time()
        if line.strip() == "image":
            segment(image)
        else:
            for _ in segment.stream([image] * length):
                pass
        print(time.perf_counter() - begin[0], time.process_time() - begin[1], flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for version in ("old", "new"):
        parser.add_argument(f"{version}_python", metavar=f"{version.upper()}_PYTHON")
        parser.add_argument(f"{version}_bundle", metavar=f"{version.upper()}_BUNDLE")
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    more = (str(arguments.image), str(arguments.threads), str(STREAM))
    versions = [
        Program([arguments.old_python, "-c", CHILD, arguments.old_bundle, *more]),
        Program([arguments.new_python, "-c", CHILD, arguments.new_bundle, *more]),
    ]
    result = {task: compare(versions, task, arguments.rounds) for task in ("image", "stream")}
    for version in versions:
        version.close()
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for task, row in result.items():
            print(f"{task}: old {row['old_ms']:.1f} ms, new {row['new_ms']:.1f} ms")
            print(f"  new is {row['ratio']:.3f} times as fast, {row['cpu_ratio']:.3f} times in processor time")
    return int(any(row["ratio"] < SLOWER for row in result.values()))


def compare(versions: list[Program], task: str, rounds: int) -> dict[str, float]:
    """Milliseconds of both, and the median ratios old / new of wall and processor time."""
    times: list[list[list[float]]] = [[], []]
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append(versions[which].ask(task))
    walls, cpus = ([[each[i] for each in version] for version in times] for i in (0, 1))
    return {
        "old_ms": 1000 * median(walls[0]),
        "new_ms": 1000 * median(walls[1]),
        "ratio": median(old / new for old, new in zip(*walls, strict=True)),
        "cpu_ratio": median(old / new for old, new in zip(*cpus, strict=True)),
    }


if __name__ == "__main__":
    sys.exit(main())

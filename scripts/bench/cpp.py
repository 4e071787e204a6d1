"""The C++ runtime beside Python's: time of an image, resident memory, start-up to a first mask.

    python scripts/bench/cpp.py BUNDLE IMAGE [--artifact NAME] [--rounds 31] [--threads 2] [--program FILE]
        [--cache FOLDER]

`bash scripts/cpp` builds the program, with ONNX Runtime where DENSEPORT_ONNXRUNTIME_INCLUDE names its headers. Both
runtimes run the same artifact in processes that stay open, in turns; which is first changes from round to round.
Ratios are medians of the rounds' ratios. What goes into the cache is made before anything is measured. The goal of
memory is for what is resident after opening, before the first image.
Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from processes import Program

CHILD = """
import resource, sys, time
from pathlib import Path
from denseport.runtime import Segmenter
bundle, image, artifact, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with Segmenter(bundle, artifact=artifact, threads=threads) as segment:
    for line in sys.stdin:
        begin = time.perf_counter()
        if line.strip() == "memory":
            print(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20, flush=True)
        else:
            segment(image)
            print(time.perf_counter() - begin, flush=True)
"""
FIRST = """
import sys
from denseport.runtime import Segmenter
with Segmenter(sys.argv[1], artifact=sys.argv[3], threads=int(sys.argv[4])) as segment:
    segment(sys.argv[2]).save(sys.argv[5])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("--artifact", default="model.onnx")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", type=Path, default=Path("out/cpp/release/denseport-cpp"))
    parser.add_argument("--cache", type=Path, help="of the C++ program, for ONNX Runtime's weights; default: none")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for program in programs_of(arguments):
        program.close()
    rows = [*opened(arguments), started(arguments)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            goal = f"  goal <= {row['goal']}: {'pass' if row['passed'] else 'FAIL'}" if row["goal"] else ""
            numbers = f"C++ {row['cpp']:8.3f}, Python {row['python']:8.3f} {row['unit']}, ratio {row['ratio']:.3f}"
            print(f"{row['name']:30} {numbers}{goal}")
    return int(any(row["passed"] is False for row in rows))


def row_of(name: str, unit: str, pairs: list[tuple[float, float]], goal: float | None) -> dict[str, Any]:
    """Of pairs of C++'s and Python's figure."""
    cpp, python = zip(*pairs, strict=True)
    ratio = median(a / b for a, b in pairs)
    passed = None if goal is None else ratio <= goal
    named = {"name": name, "unit": unit, "cpp": median(cpp), "python": median(python), "ratio": ratio}
    return {**named, "goal": goal, "passed": passed}


def cache_of(arguments: argparse.Namespace) -> list[str]:
    return [] if arguments.cache is None else ["--cache", str(arguments.cache)]


def programs_of(arguments: argparse.Namespace) -> tuple[Program, Program]:
    """C++'s and Python's, which have the bundle open and wait."""
    artifact, threads = ("--artifact", arguments.artifact), ("--threads", str(arguments.threads))
    command = [arguments.program, "bench", arguments.bundle, arguments.image, *artifact, *threads, *cache_of(arguments)]
    given = (arguments.bundle, arguments.image, arguments.artifact, arguments.threads)
    return Program(list(map(str, command))), Program([sys.executable, "-c", CHILD, *map(str, given)])


def opened(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Memory and time of processes that stay open. Python's memory differs by a fifth from one process to the next."""
    memory = []
    for _ in range(min(arguments.rounds, 7)):
        programs = programs_of(arguments)
        memory.append((programs[0].ask("memory")[0], programs[1].ask("memory")[0]))
        for program in programs:
            program.close()
    programs = programs_of(arguments)
    for program in programs:
        program.ask("image")
    pairs = []
    for round_ in range(arguments.rounds):
        seconds = {i: programs[i].ask("image")[0] for i in ((0, 1) if round_ % 2 else (1, 0))}
        pairs.append((1000 * seconds[0], 1000 * seconds[1]))
    later = tuple(program.ask("memory")[0] for program in programs)
    for program in programs:
        program.close()
    return [
        row_of("an image", "ms", pairs, 1.0),
        row_of("resident after opening", "MiB", memory, 0.6),
        row_of("resident after the images", "MiB", [(later[0], later[1])], None),
    ]


def started(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the start of a process to its first mask, written to a file."""
    with tempfile.TemporaryDirectory() as folder:
        mask, given = f"{folder}/mask.png", list(map(str, (arguments.bundle, arguments.image)))
        artifact, threads = arguments.artifact, str(arguments.threads)
        options = ["-o", mask, "--artifact", artifact, "--threads", threads, "--quiet"]
        commands = (
            [str(arguments.program), "run", *given, *options, *cache_of(arguments)],
            [sys.executable, "-c", FIRST, *given, artifact, threads, mask],
        )

        def seconds(command: list[str]) -> float:
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return time.perf_counter() - begin

        # The first warms the disk.
        pairs = [(seconds(commands[0]), seconds(commands[1])) for _ in range(min(arguments.rounds, 7) + 1)][1:]
    return row_of("start-up to the first mask", "s", pairs, None)


if __name__ == "__main__":
    sys.exit(main())

"""What the runtime adds to the bare session, and how its cost grows; the tables of docs/performance.md.

    python scripts/bench/runtime.py eager     BUNDLE [--rounds 7]       512 x 512: each artifact against PyTorch eager
    python scripts/bench/runtime.py outside   BUNDLE [--rounds 7]       1.3 megapixels: time outside the session
    python scripts/bench/runtime.py stream    BUNDLE [--images 200]   throughput against the bare session's
    python scripts/bench/runtime.py memory    BUNDLE [--images 2000]  memory along a stream
    python scripts/bench/runtime.py start     BUNDLE [--rounds 7]       import, open, first mask; against by hand
    python scripts/bench/runtime.py scaling   BUNDLE [--plot FILE.svg]  against pixels, batch and classes

scripts/bench/random_bundle.py makes a bundle to measure. Exit code 1: a row missed its goal. What is compared runs in
turns, so that drift hits both alike; figures are medians. ``--threads`` is for both sides. ``--json`` prints the rows
as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from denseport.runtime.backends.session import Session
from denseport.runtime.system.cpus import usable_cpus

Row = dict[str, Any]  # name, value, unit; goal ("<= 1.5" or "") and passed where there is one
LARGE = (986, 1315)  # height, width: 1.3 megapixels

BY_HAND = """
import json, sys, cv2, numpy as np, onnxruntime
manifest = json.load(open(sys.argv[1] + "/manifest.json"))
resize, normalise = manifest["preprocess"]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
image = cv2.imread(sys.argv[2])
h, w = image.shape[:2]
factor = min(max(resize["size"]) / max(h, w), min(resize["size"]) / min(h, w))
size = (int(w * factor + 0.5), int(h * factor + 0.5))
rgb = cv2.cvtColor(cv2.resize(image, size), cv2.COLOR_BGR2RGB)
mean, std = (np.float32(normalise[name]) for name in ("mean", "std"))
tensor = ((rgb.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None]
logits = session.run(["logits"], {"image": np.ascontiguousarray(tensor)})[0][0].transpose(1, 2, 0)
planes = [cv2.resize(cv2.resize(logits[..., c], size), (w, h)) for c in range(logits.shape[2])]
print(np.argmax(planes, 0).shape)
"""
OURS = """
import sys
from denseport.runtime import Segmenter
with Segmenter(sys.argv[1], threads=int(sys.argv[3])) as segment:
    print(segment(sys.argv[2]).mask.shape)
"""
SCALED = """
import json, sys, time, cv2, numpy as np
from denseport.runtime import Segmenter
from denseport.runtime.pipeline.reduce import decide
from denseport.runtime.pipeline.resample import Placement, whole_map
bundle, kind, amount, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
def peak():  # of this program alone: ru_maxrss begins at the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
rng = np.random.default_rng(0)
def synthetic(h, w):
    coarse = rng.integers(0, 256, (h // 50 + 1, w // 50 + 1, 3), np.uint8)
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_NEAREST)  # no larger peak than the image itself
if kind == "classes":
    low = np.repeat(np.repeat(rng.standard_normal((int(amount), 16, 16), np.float32), 8, 1), 8, 2)
    work = lambda: decide([[whole_map(low, Placement((512, 512), (1000, 1000)))]], threads=threads).mask
    decide([[whole_map(low[:, :16, :16].copy(), Placement((64, 64), (100, 100)))]], threads=threads)
else:
    segment = Segmenter(bundle, threads=threads, protocol="native:512:448" if kind == "megapixels" else "fixed:256x256")
    if kind == "megapixels":
        side = int(round((amount * 1e6) ** 0.5))
        image, small = synthetic(side, side), synthetic(512, 512)
        segment(small)
        work = lambda: segment(image)
    else:
        images = [synthetic(256, 256) for _ in range(int(amount))]
        segment(images[0])
        work = lambda: segment.batch(images, size=len(images))
before, seconds = peak(), []
for _ in range(1 if amount >= 16 and kind == "megapixels" else 3):
    start = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": min(seconds), "extra_MiB": peak() - before}))
"""


def row(name: str, value: float, unit: str = "", goal: str = "") -> Row:
    passed = None
    if goal:
        sign, _, limit = goal.partition(" ")
        passed = value <= float(limit) if sign == "<=" else value >= float(limit)
    return {"name": name, "value": value, "unit": unit, "goal": goal, "passed": passed}


class Timed(Session):
    """A session that adds up the wall time and the processor time of its runs."""

    def __init__(self, session: Any) -> None:
        self._session, self.seconds, self.cpu = session, 0.0, 0.0

    @property
    def description(self) -> str:
        return str(self._session.description)

    def run(self, image: Any) -> Any:
        start = time.perf_counter(), time.process_time()
        logits = self._session.run(image)
        self.seconds += time.perf_counter() - start[0]
        self.cpu += time.process_time() - start[1]
        return logits

    def largest_batch(self, height: int, width: int) -> int | None:
        return self._session.largest_batch(height, width)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._session.close()


def open_timed(arguments: argparse.Namespace) -> tuple[Any, Timed]:
    from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.protocol import parse_protocol
    from denseport.runtime.segmenter import Segmenter

    bundle = Bundle(arguments.bundle)
    session = Timed(OnnxRuntimeSession(bundle.verified("model.onnx"), threads=arguments.threads))
    protocol = parse_protocol("reference", bundle.manifest)
    return Segmenter(
        bundle, artifact="model.onnx", protocol=protocol, session=session, threads=arguments.threads
    ), session


def synthetic(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Coloured patches with noise: neither flat nor all noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (size[0] // 60 + 1, size[1] // 60 + 1, 3)).repeat(60, 0).repeat(60, 1)
    noisy = coarse[: size[0], : size[1]] + rng.integers(-20, 21, (*size, 3))
    return np.asarray(noisy.clip(0, 255), np.uint8)


def eager(arguments: argparse.Namespace) -> list[Row]:
    goals = {"model.onnx": ">= 1.15", "int8.cpu.onnx": ">= 1.6"}
    # No batches and no callers at once: the latency of the sessions is what is asked.
    options = ["--baseline", "torch", "--rounds", arguments.rounds, "--threads", arguments.threads, "--seconds", 1]
    options += ["--batches", "--concurrency", "--no-record", "--json"]
    command = [sys.executable, "-m", "denseport.runtime.cli.main", "bench", arguments.bundle, *options]
    report = json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE).stdout)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for each in report["rows"]:
        if "torch" in each["no_ratio"]:
            print(f"warning: {each['artifact']}: no ratio to torch: {each['no_ratio']['torch']}", file=sys.stderr)
    ratios = {each["artifact"]: each["times_as_fast_as"].get("torch") for each in report["rows"]}
    times = [row(f"{each['artifact']}, session", each["session_ms"]["p50"], "ms") for each in report["rows"]]
    wholes = {each["artifact"]: each["whole_ms"]["p50"] for each in report["rows"]}
    times += [row(f"{name}, image to result", whole, "ms") for name, whole in wholes.items()]
    fast, torch = "times as fast as PyTorch eager", wholes.pop("torch")
    sessions = [
        row(f"{name}, {fast}", ratio, "", goals.get(name, "")) for name, ratio in ratios.items() if ratio is not None
    ]
    return [*times, *sessions, *(row(f"{name}, to result, {fast}", torch / whole) for name, whole in wholes.items())]


def outside(arguments: argparse.Namespace) -> list[Row]:
    segment, session = open_timed(arguments)
    image = synthetic(LARGE)
    segment(image)
    shares, cpu_shares, inside, before, behind = [], [], [], [], []
    for _ in range(arguments.rounds):
        session.seconds = session.cpu = 0.0
        start = time.perf_counter(), time.process_time()
        timings = segment(image).timings
        shares.append((time.perf_counter() - start[0]) / session.seconds - 1)
        cpu_shares.append((time.process_time() - start[1]) / session.cpu - 1)
        inside.append(1000 * session.seconds)
        before.append(timings.preprocess)
        behind.append(timings.postprocess)
    return [
        row("session", median(inside), "ms"),
        row("pre-processing", median(before), "ms"),
        row("post-processing", median(behind), "ms"),
        # Processor time says more on a busy machine, with --threads 1: idle threads of the session spin.
        row("the same in processor time", median(cpu_shares)),
        row("time outside the session / session", median(shares), "", "<= 0.08"),
    ]


def stream(arguments: argparse.Namespace) -> list[Row]:
    segment, session = open_timed(arguments)
    steps, chunk = segment._steps, 20
    images = [synthetic((480, 640), seed) for seed in range(chunk)]
    tensors = [steps.prepare(image).inputs[0] for image in images]
    segment(images[0])
    alone, streamed, cpu = [], [], []
    for _ in range(max(1, arguments.images // chunk)):
        marks = [(time.perf_counter(), time.process_time())]
        for tensor in tensors:
            session.run(tensor)
        marks.append((time.perf_counter(), time.process_time()))
        for _ in segment.stream(images):
            pass
        marks.append((time.perf_counter(), time.process_time()))
        (a, a_cpu), (b, b_cpu), (c, c_cpu) = marks
        alone.append(b - a)
        streamed.append(c - b)
        cpu.append((b_cpu - a_cpu) / (c_cpu - b_cpu))
    ratios = [a / s for a, s in zip(alone, streamed, strict=True)]
    return [
        row("bare session", chunk / median(alone), "images/s"),
        row("stream", chunk / median(streamed), "images/s"),
        row("bare session / stream, processor time", median(cpu)),
        row("stream / bare session", median(ratios), "", ">= 0.95"),
    ]


def memory(arguments: argparse.Namespace) -> list[Row]:
    segment, _ = open_timed(arguments)
    image, quarter = synthetic((120, 160)), arguments.images // 4
    marks: dict[int, float] = {}

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    endless: Iterator[np.ndarray] = (image for _ in range(arguments.images))
    for done, _ in enumerate(segment.stream(endless), start=1):
        if done % quarter == 0:
            marks[done] = resident()
    # The first half is for allocators to settle: what is asked is whether memory grows with the images.
    return [
        *(row(f"after {done}", found, "MiB") for done, found in marks.items()),
        row("growth in the second half", marks[4 * quarter] / marks[2 * quarter], "", "<= 1.02"),
    ]


def start(arguments: argparse.Namespace) -> list[Row]:
    import tempfile

    import cv2

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.png"
        cv2.imwrite(path, synthetic((360, 480)))

        def once(code: str) -> float:
            begin = time.perf_counter()
            command = [sys.executable, "-c", code, str(arguments.bundle), path, str(arguments.threads)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - begin

        pairs = [(once(OURS), once(BY_HAND)) for _ in range(arguments.rounds + 1)][1:]  # the first warms the disk
    ours, hand = zip(*pairs, strict=True)
    return [
        row("import, open, first mask", median(ours), "s"),
        row("by hand with onnxruntime and cv2", median(hand), "s"),
        row("ratio", median(a / b for a, b in pairs), "", "<= 1.5"),
    ]


def scaling(arguments: argparse.Namespace) -> list[Row]:
    amounts: dict[str, Sequence[float]] = {
        "megapixels": [amount for amount in (0.25, 1, 4, 16, 36, 100) if amount <= arguments.up_to],
        "batch": (1, 2, 4, 8, 16),
        "classes": (2, 10, 50, 150, 500, 1000),
    }
    series: dict[str, list[tuple[float, float, float]]] = {}
    rows = []
    for kind, values in amounts.items():
        for amount in values:
            command = [sys.executable, "-c", SCALED, str(arguments.bundle), kind, str(amount), str(arguments.threads)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(f"{amount:g} {kind}: {found}", file=sys.stderr)
            series.setdefault(kind, []).append((amount, found["seconds"], found["extra_MiB"]))
            rows.append(row(f"{amount:g} {kind}", found["seconds"], "s"))
            rows.append(row(f"{amount:g} {kind}, memory", found["extra_MiB"], "MiB"))
    (low, first, _), (high, last, _) = series["megapixels"][1], series["megapixels"][-1]
    rows.append(row(f"time a pixel, {high:g} megapixels / 1", (last / high) / (first / low), "", "<= 1.5"))
    if arguments.plot:
        from plot_scaling import plot

        arguments.plot.write_text(plot(series), encoding="utf-8")
    return rows


TASKS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "eager": eager,
    "outside": outside,
    "stream": stream,
    "memory": memory,
    "start": start,
    "scaling": scaling,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--up-to", type=float, default=100, metavar="MEGAPIXELS", help="of scaling")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.images is None:
        arguments.images = {"stream": 200, "memory": 2000}.get(arguments.task)
    rows = TASKS[arguments.task](arguments)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        for each in rows:
            verdict = f"  goal {each['goal']}: {'pass' if each['passed'] else 'FAIL'}" if each["goal"] else ""
            print(f"{each['name']:40} {each['value']:10.3f} {each['unit']}{verdict}")
    return 1 if any(each["passed"] is False for each in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

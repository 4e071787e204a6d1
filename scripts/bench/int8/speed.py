"""Time a model's INT8 form for ONNX Runtime's CPU back end beside FP32, in turn, and print errors and operators.

::

    python scripts/bench/int8/speed.py MODEL.onnx [--size 512 512] [--attention] [--all-layers] [--rounds 5]

Thresholds are the largest magnitudes on one random image: enough for speed, not for accuracy. Ratios are of the
least CPU time, which other processes disturb less than the wall's, and of the least wall time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from denseport.calibration.observe.collect import collect
from denseport.calibration.observe.observers import Histogram, threshold
from denseport.calibration.quantize.cpu import lower_for_cpu
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.unpack import unpack_projections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="FP32 model.onnx")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--attention", action="store_true", help="INT8 for attention's products too")
    parser.add_argument("--all-layers", action="store_true", help="and for the last convolutions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    image = np.random.default_rng(0).standard_normal((1, 3, *arguments.size[::-1])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        portable, cpu = Path(folder) / "int8.onnx", Path(folder) / "int8.cpu.onnx"
        write(arguments, image, portable, cpu)
        exact = session(portable, arguments.threads, optimized=False).run(None, {"image": image})[0]
        sessions = {name: session(path, arguments.threads) for name, path in (("fp32", arguments.model), ("int8", cpu))}
        logits = {name: each.run(None, {"image": image})[0] for name, each in sessions.items()}
        for name, reference in (("portable INT8", exact), ("FP32", logits["fp32"])):
            error = np.linalg.norm(logits["int8"] - reference) / np.linalg.norm(reference)
            same = (logits["int8"].argmax(1) == reference.argmax(1)).mean()
            print(f"against {name}: relative error {error:.4f}, {100 * same:.2f} % of pixels of one class", flush=True)
        print(operators(cpu, Path(folder) / "optimized.onnx"), flush=True)
        race(sessions, image, arguments.rounds)


def write(arguments: argparse.Namespace, image: Any, portable: Path, cpu: Path) -> None:
    model = read_model(arguments.model)
    unpack_projections(model)
    groups = find_groups(model, tuple(arguments.size[::-1]))
    attention = arguments.attention
    chosen = [g for g in groups if g.possible and (g.kind != "attention" or attention)]
    chosen = [g for g in chosen if g.float_reason is None or (arguments.all_layers and "last" in g.float_reason)]
    histograms = {name: Histogram() for name in activations(model, chosen)}
    collect(model, [image], {name: [each] for name, each in histograms.items()}, threads=arguments.threads)
    limits = {name: threshold(each, "minmax") for name, each in histograms.items()}
    quantized = model.clone()
    record = quantize(quantized, limits, groups, [group.name for group in chosen])
    portable.write_bytes(serialise(quantized))
    lowered = lower_for_cpu(quantized, model, limits)
    cpu.write_bytes(serialise(quantized))
    words = f"{len(lowered.integer)} integer layers, float: {lowered.floats}"
    print(f"{100 * record.share:.1f} % of multiply-adds in INT8, {words}", flush=True)


def session(path: Path, threads: int, *, optimized: bool = True, save: Path | None = None) -> Any:
    import onnxruntime  # after Denseport, which switches its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else waiting counts as CPU time
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def operators(path: Path, optimized: Path) -> str:
    session(path, 1, save=optimized)
    nodes = onnx.load(optimized, load_external_data=False).graph.node
    return ", ".join(f"{count} {kind}" for kind, count in Counter(node.op_type for node in nodes).most_common(12))


def race(sessions: dict[str, Any], image: Any, rounds: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, each in sessions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            each.run(None, {"image": image})
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    least = {name: np.min(found, axis=0) for name, found in times.items()}
    for name, (wall, cpu) in least.items():
        ratios = least["fp32"] / least[name]
        print(f"{name}: {wall:.3f} s, {cpu:.3f} s of CPU; {ratios[0]:.2f} and {ratios[1]:.2f} times as fast as FP32")


if __name__ == "__main__":
    main()

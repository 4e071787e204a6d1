"""What INT8 loses on a labelled set, step by step; the table of docs/int8.md.

    python scripts/bench/int8/steps.py BUNDLE --images DIR --data ROOT [--limit N] [--rows NAME …] [--work DIR] [--json]

Rows: ONNX Runtime's own static quantization with its defaults (``ort-minmax``), then the product's, each observer with
every candidate layer in INT8, the same with smoothing, without attention's products, with weights rounded for the
layers' outputs, and the set that the search chose.
Calibration sees DIR only. Files are opened with ``session.x64quantprecision``, so that the losses are the models' and
not the processor's. Statistics are kept in the work folder, and a row measured there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from denseport.calibration.observe.collect import collect
from denseport.calibration.observe.images import ImageStatistics
from denseport.calibration.observe.observers import METHODS, ChannelMaximum, Histogram, RowSample, threshold
from denseport.calibration.options import AGREEMENT
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.rounding import round_weights
from denseport.calibration.quantize.smoothing import linear_inputs, smooth
from denseport.calibration.search.search import Budget, search
from denseport.calibration.search.sensitivity import Reference, sensitivities
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.bundle.artifact import ANY, FOR_TENSORRT, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced, sample_evenly
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.cpus import usable_cpus
from denseport.runtime.system.files import sha256_of

ROWS = (
    "fp32",
    "ort-minmax",
    *METHODS,
    *(f"{method}+smooth" for method in METHODS),
    "minmax-attention",
    "minmax+smooth-attention",
    "minmax+smooth+round-attention",
    "percentile+smooth-attention",
    "search",
)


def unpacked(path: Path) -> ir.Model:
    """A model with its packed projections parted."""
    model = read_model(path)
    unpack_projections(model)
    return model


class Bench:
    """Models, statistics and measured rows of one bundle, in a work folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.threads: int = arguments.threads
        self.budget = Budget(agreement=arguments.agreement)
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / "bundle").exists():
            shutil.copytree(arguments.bundle, self.work / "bundle")
        self.bundle = Bundle(self.work / "bundle")
        paths = sample_evenly([str(arguments.images)], arguments.calibration_limit)
        self.images = NetworkInputs.of_bundle(paths, self.bundle.manifest)
        dataset = open_dataset(arguments.data)
        self.dataset = replace(dataset, samples=tuple(evenly_spaced(dataset.samples, arguments.limit or len(dataset))))
        self.size = self.images[0].shape[2:]

    def model(self, smoothed: bool) -> ir.Model:
        if not smoothed:
            return unpacked(self.bundle.verified("model.onnx"))
        path = self.work / "smoothed.onnx"
        if not path.exists():
            model = self.model(False)
            tensors = linear_inputs(model)
            maxima = {name: ChannelMaximum() for name in tensors}
            rows = self.rows(tensors)
            collect(model, self.images, {n: [maxima[n], rows[n]] for n in tensors}, threads=self.threads, progress=said)
            record = smooth(model, maxima, rows)
            path.write_bytes(serialise(model))
            for row in record.tensors:
                print(
                    f"  {row.tensor}: {row.strength}, error {row.error_before:.4f} -> {row.error:.4f}", file=sys.stderr
                )
        return unpacked(path)

    def observed(self, model: ir.Model, smoothed: bool) -> tuple[dict[str, Histogram], dict[str, RowSample]]:
        """A histogram of each tensor, and rows of what linear layers read."""
        path = self.work / f"tensors{'-smoothed' if smoothed else ''}.pickle"
        if path.exists():
            known: tuple[dict[str, Histogram], dict[str, RowSample]] = pickle.loads(path.read_bytes())
            return known
        names = activations(model, [g for g in find_groups(model, self.size) if g.possible])
        histograms, rows = {name: Histogram() for name in names}, self.rows(linear_inputs(model))
        statistics = ImageStatistics()
        observers: dict[str, list[Any]] = {name: [histogram] for name, histogram in histograms.items()}
        for name, sample in rows.items():
            observers.setdefault(name, []).append(sample)
        observers.setdefault("image", []).append(statistics)
        collect(model, self.images, observers, threads=self.threads, progress=said)
        for warning in statistics.warnings():
            print(f"  warning: {warning}", file=sys.stderr)
        path.write_bytes(pickle.dumps((histograms, rows)))
        return histograms, rows

    def rows(self, names: Iterable[str]) -> dict[str, RowSample]:
        return {name: RowSample(per_image=max(1, 1024 // len(self.images)), capacity=1024) for name in names}

    def quantized(self, row: str) -> tuple[bytes, float]:
        """The model of a row and the share of its multiply-adds in INT8."""
        smoothed = "+smooth" in row or row == "search"
        method = next((m for m in METHODS if row.startswith(m)), "minmax")
        model = self.model(smoothed)
        histograms, rows = self.observed(model, smoothed)
        limits = {name: threshold(histogram, method) for name, histogram in histograms.items()}
        rounded = round_weights(model, rows, limits) if "+round" in row or row == "search" else {}
        groups = find_groups(model, self.size)
        if row == "search":
            reference = Reference(model, evenly_spaced(self.images, 8), threads=self.threads)
            alone = partial(sensitivities, reference, model, limits, groups, rounded=rounded, progress=said)
            result, found = search(reference, model, limits, groups, self.budget, alone, rounded=rounded)
            (self.work / "search.json").write_text(json.dumps(found.to_dict(), indent=1))
            return serialise(result), found.quantization.share
        chosen = [g for g in groups if g.float_reason is None and not (g.kind == "attention" and "-attention" in row)]
        record = quantize(model, limits, groups, [g.name for g in chosen], rounded=rounded)
        return serialise(model), record.share

    def plain(self) -> bytes:
        """ONNX Runtime's quantize_static with its defaults, in a process of its own for its memory."""
        source, target = self.bundle.verified("model.onnx"), self.work / "plain.onnx"
        if target.exists():
            return target.read_bytes()
        arrays = self.work / "arrays"
        arrays.mkdir(exist_ok=True)
        for i in range(len(self.images)):
            np.save(arrays / f"{i:04}.npy", self.images[i])
        script = (
            "import sys, numpy as np; from pathlib import Path\n"
            "from onnxruntime.quantization import CalibrationDataReader, quantize_static\n"
            "class Reader(CalibrationDataReader):\n"
            "    files = iter(sorted(Path(sys.argv[3]).glob('*.npy')))\n"
            "    def get_next(self):\n"
            "        file = next(self.files, None)\n"
            "        return None if file is None else {'image': np.load(file)}\n"
            "quantize_static(sys.argv[1], sys.argv[2], Reader())\n"
        )
        subprocess.run([sys.executable, "-c", script, source, target, arrays], check=True)
        shutil.rmtree(arrays)
        return target.read_bytes()

    def measure(self, row: str) -> dict[str, Any]:
        stored = self.work / f"{row}.json"
        if stored.exists():
            known: dict[str, Any] = json.loads(stored.read_text())
            return known
        name, share = "model.onnx", None
        if row != "fp32":
            name = f"{row}.onnx"
            data, share = (self.plain(), None) if row == "ort-minmax" else self.quantized(row)
            (self.bundle.path / name).write_bytes(data)
            artifact = Artifact(
                kind="onnx",
                precision="int8",
                float_precision="fp32",
                # ONNX Runtime cannot open what its quantizer made of this model when it optimizes it ("Attempt to
                # replace the existing tensor").
                target=FOR_TENSORRT if row == "ort-minmax" else ANY,
                output="logits",
                fused=False,
                made_of=self.bundle.manifest.source,
                main=name,
                files={name: sha256_of(self.bundle.path / name)},
            )
            self.bundle.add(name, artifact)
        segmenter = Segmenter(self.bundle, artifact=name, threads=self.threads)
        evaluation = measure_dataset(self.dataset, segmenter, workers=1)
        scores = evaluation.scores(segmenter.manifest.classes)
        result = {
            "row": row,
            "share": share,
            "mIoU": scores.mIoU,
            "aAcc": scores.aAcc,
            "seconds": evaluation.session_seconds / len(self.dataset),
            "megabytes": (self.bundle.path / name).stat().st_size / 1e6,
        }
        stored.write_text(json.dumps(result))
        return result


def said(done: int, total: int) -> None:
    if done == total or done % 20 == 0:
        print(f"  {done} of {total}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of calibration images")
    parser.add_argument("--data", type=Path, required=True, help="labelled set to measure on")
    parser.add_argument("--limit", type=int, help="of the labelled images, spread evenly")
    parser.add_argument("--calibration-limit", type=int, default=10**6, metavar="N", help="of the calibration images")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--agreement", type=float, default=AGREEMENT, help="budget of the search; default: %(default)s")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep models and results in")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    start = time.perf_counter()
    results = [bench.measure(row) for row in arguments.rows]
    if arguments.json:
        print(json.dumps(results, indent=1))
        return 0
    fp32 = next((r["mIoU"] for r in results if r["row"] == "fp32"), None)
    print(f"{len(bench.images)} images to calibrate, {len(bench.dataset)} to measure; {bench.size} first image")
    print(f"{'row':30} {'INT8':>6} {'mIoU':>7} {'lost':>6} {'aAcc':>7} {'s/image':>8} {'MB':>6}")
    for r in results:
        lost = "" if fp32 is None else f"{fp32 - r['mIoU']:6.2f}"
        share = "" if r["share"] is None else f"{100 * r['share']:.1f} %"
        print(
            f"{r['row']:30} {share:>6} {r['mIoU']:7.2f} {lost:>6} {r['aAcc']:7.2f} {r['seconds']:8.3f} "
            f"{r['megabytes']:6.1f}"
        )
    print(f"{time.perf_counter() - start:.0f} s in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

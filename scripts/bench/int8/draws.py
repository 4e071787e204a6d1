"""Whether the promise of INT8 holds: mIoU of both variants over random draws of calibration images.

    python scripts/bench/int8/draws.py BUNDLE --images street/images/training --data street --work DIR
        [--draws 20] [--count 32]

Each draw takes COUNT of the images at random (its number is the seed) and calibrates as `denseport calibrate` does by
default: smoothing, largest magnitudes, rounded weights, attention float, all other candidates in INT8. The search is
not run: its first set is taken, and the column "agreement" says what it measures of that set on 8 images of the draw
(the default limit is 98 %). The network sees every calibration image once, whatever the draws. Statistics and results
are kept in the work folder, and an interrupted run goes on there.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from denseport.calibration.observe.observers import ChannelMaximum, RowSample
from denseport.calibration.quantize.cpu import lower_for_cpu
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.rounding import round_weights
from denseport.calibration.quantize.smoothing import linear_inputs, linear_weight, smooth
from denseport.calibration.search.sensitivity import Reference
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.probe import Probe
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.bundle.artifact import ANY, FOR_CPU, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.pipeline.network_input import NetworkInputs, sample_evenly
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.cpus import usable_cpus
from denseport.runtime.system.files import sha256_of

ROWS = 1024  # of each tensor, all images of a draw together, as calibration takes them
KEPT = 32  # rows of each image
AGREEING = 8  # images of a draw that the agreement is measured on
VARIANTS = {"int8.onnx": ANY, "int8.cpu.onnx": FOR_CPU}


class Bench:
    """A bundle, what each calibration image showed, and the results so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.threads: int = arguments.threads
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / "bundle").exists():
            shutil.copytree(arguments.bundle, self.work / "bundle")
        self.bundle = Bundle(self.work / "bundle")
        paths = sample_evenly([str(arguments.images)], 10**6)
        self.images = NetworkInputs.of_bundle(paths, self.bundle.manifest)
        self.dataset = open_dataset(arguments.data)
        self.groups = find_groups(self.model(), self.images[0].shape[2:])
        self.chosen = [g for g in self.groups if g.is_candidate and g.kind != "attention"]
        self.statistics = self.observe()

    def model(self) -> ir.Model:
        model = read_model(self.bundle.verified(self.bundle.manifest.source))
        unpack_projections(model)
        return model

    def linears(self, model: ir.Model) -> dict[str, list[ir.Node]]:
        """The tensors that chosen linear layers read."""
        names = {name for group in self.chosen for name in group.nodes}
        found = linear_inputs(model)
        return {name: nodes for name, nodes in found.items() if any(node.name in names for node in nodes)}

    def observe(self) -> list[dict[str, Any]]:
        """By image and tensor: the channels' largest magnitudes and some rows, or the largest magnitude of all."""
        path = self.work / "statistics.pickle"
        if path.exists():
            known: list[dict[str, Any]] = pickle.loads(path.read_bytes())
            return known
        model, found = self.model(), []
        linears, names = self.linears(model), activations(model, self.chosen)
        probe = Probe(model, names, threads=self.threads)
        for number, image in enumerate(self.images, start=1):
            seen: dict[str, Any] = {}
            for name, values in zip(names, probe.run(image), strict=True):
                if name not in linears:
                    seen[name] = float(np.abs(values).max())
                    continue
                maximum, rows = ChannelMaximum(), RowSample(KEPT)
                maximum.update(values)
                rows.update(values)
                seen[name] = (maximum.maximum, rows.rows.astype(np.float16))
            found.append(seen)
            print(f"observed {number} of {len(self.images)}", file=sys.stderr)
        path.write_bytes(pickle.dumps(found))
        return found

    def calibrated(self, draw: list[int]) -> dict[str, ir.Model]:
        """Both variants, from the images of a draw."""
        model, seen = self.model(), [self.statistics[i] for i in draw]
        before = self.linears(model)
        weights = {node.name: linear_weight(node) for nodes in before.values() for node in nodes}
        limits = {name: max(each[name] for each in seen) for name in seen[0] if name not in before}
        maxima, rows = {}, {}
        for name in before:
            maxima[name], rows[name] = ChannelMaximum(), RowSample(max(1, ROWS // len(draw)), ROWS)
            for each in seen:
                maxima[name].update(each[name][0][None])
                rows[name].update(each[name][1].astype(np.float32))
        smooth(model, maxima, rows)
        smoothed = {}
        # The layers keep their names: the rows of their weights tell what the channels were divided by.
        for old, (name, nodes) in zip(before, self.linears(model).items(), strict=True):
            weight, changed = weights[nodes[0].name], linear_weight(nodes[0])
            largest = np.abs(weight).argmax(axis=1)[:, None]
            factors = np.take_along_axis(changed, largest, 1)[:, 0] / np.take_along_axis(weight, largest, 1)[:, 0]
            limits[name] = float((maxima[old].maximum / factors).max())
            smoothed[name] = RowSample(1)
            smoothed[name].rows = rows[old].rows / factors
        portable = model.clone()
        names = [group.name for group in self.chosen]
        self.share = quantize(
            portable, limits, self.groups, names, rounded=round_weights(model, smoothed, limits)
        ).share
        lowered = portable.clone()
        lower_for_cpu(lowered, model, limits)
        return {"int8.onnx": portable, "int8.cpu.onnx": lowered}

    def measure(self, draw: list[int]) -> dict[str, Any]:
        """mIoU and agreement of both variants."""
        some = draw[:: max(1, len(draw) // AGREEING)][:AGREEING]
        reference = Reference(self.model(), [self.images[i] for i in some], threads=self.threads)
        result: dict[str, Any] = {}
        for name, model in self.calibrated(draw).items():
            (self.bundle.path / name).write_bytes(serialise(model))
            result |= {"share": self.share, name: {"agreement": reference.measure(model).agreement}}
            result[name]["mIoU"] = self.miou(name)
        return result

    def miou(self, name: str) -> float:
        source = self.bundle.manifest.source
        if name != source:
            artifact = Artifact(
                kind="onnx",
                precision="int8",
                float_precision="fp32",
                target=VARIANTS[name],
                output="logits",
                fused=False,
                made_of=source,
                main=name,
                files={name: sha256_of(self.bundle.path / name)},
            )
            self.bundle.add(name, artifact)
        with Segmenter(self.bundle, artifact=name, threads=self.threads) as segmenter:
            found = measure_dataset(self.dataset, segmenter, workers=1)
        return float(found.scores(self.bundle.manifest.classes).mIoU)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of calibration images to draw from")
    parser.add_argument("--data", type=Path, required=True, help="labelled set to measure on")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--count", type=int, default=32, help="images of a draw; default: %(default)s")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep statistics and results in")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    arguments = parser.parse_args()
    bench = Bench(arguments)
    file = bench.work / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if "fp32" not in results:
        results["fp32"] = bench.miou(bench.bundle.manifest.source)
        file.write_text(json.dumps(results, indent=1))
    print(f"FP32: mIoU {results['fp32']:.2f} on {len(bench.dataset)} images")
    print(f"{'draw':>4}  {'in INT8':>7}" + "".join(f"  {name:>14}  {'lost':>5}  agreement" for name in VARIANTS))
    lost: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in range(arguments.draws):
        key = f"{arguments.count} images, draw {seed}"
        if key not in results:
            indices = range(len(bench.images))
            results[key] = bench.measure(
                sorted(random.Random(seed).sample(indices, min(arguments.count, len(indices))))
            )
            file.write_text(json.dumps(results, indent=1))
        row, line = results[key], f"{seed:4}  {100 * results[key]['share']:5.1f} %"
        for name in VARIANTS:
            lost[name].append(results["fp32"] - row[name]["mIoU"])
            line += f"  {row[name]['mIoU']:14.2f}  {lost[name][-1]:5.2f}  {100 * row[name]['agreement']:7.2f} %"
        print(line, flush=True)
    for name, each in lost.items():
        print(
            f"{name}: at most 0.5 lost in {sum(points <= 0.5 for points in each)} of {len(each)} draws; lost "
            f"{min(each):.2f} to {max(each):.2f}, mean {np.mean(each):.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

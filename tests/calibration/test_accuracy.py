"""INT8 of the sample DPT DeiT-S on labelled images it was not calibrated with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundles import onnx_artifact

from denseport.calibration.observe.collect import collect
from denseport.calibration.observe.observers import ChannelMaximum, Histogram, RowSample, threshold
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.rounding import round_weights
from denseport.calibration.quantize.smoothing import linear_inputs, smooth
from denseport.export.graph.model import read_model, serialise
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.pipeline.network_input import NetworkInputs, sample_evenly
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.files import sha256_of


@pytest.mark.slow
def test_the_sample_keeps_its_accuracy(shared: Path, tmp_path: Path) -> None:
    from denseport.export.bundle import export_bundle

    bundle = export_bundle(shared / "data/checkpoints/dpt_deit-s16_street.pth", tmp_path / "bundle")
    paths = sample_evenly([str(shared / "data/street/images/training")], 40)
    images = NetworkInputs.of_bundle(paths, bundle.manifest)
    model = read_model(bundle.verified("model.onnx"))
    assert len(unpack_projections(model).projections) == 12

    tensors = linear_inputs(model)
    maxima = {name: ChannelMaximum() for name in tensors}
    rows = {name: RowSample(per_image=20) for name in tensors}
    collect(model, images, {name: [maxima[name], rows[name]] for name in tensors})
    smooth(model, maxima, rows)

    groups = find_groups(model, (240, 320))
    chosen = [group for group in groups if group.float_reason is None and group.kind != "attention"]
    histograms = {name: Histogram() for name in activations(model, chosen)}
    rows = {name: RowSample(per_image=25, capacity=1024) for name in linear_inputs(model) if name in histograms}
    observers = {name: [histogram, *([rows[name]] if name in rows else [])] for name, histogram in histograms.items()}
    collect(model, images, observers)
    limits = {name: threshold(histogram, "minmax") for name, histogram in histograms.items()}
    rounded = round_weights(model, rows, limits)
    record = quantize(model, limits, groups, [group.name for group in chosen], rounded=rounded)
    assert record.share >= 0.8

    (bundle.path / "int8.onnx").write_bytes(serialise(model))
    bundle.add("int8.onnx", onnx_artifact({"int8.onnx": sha256_of(bundle.path / "int8.onnx")}, "int8"))
    dataset = open_dataset(shared / "data/street")
    dataset = replace(dataset, samples=dataset.samples[::2])
    scores = []
    for name in ("model.onnx", "int8.onnx"):
        segmenter = Segmenter(bundle, artifact=name)
        scores.append(measure_dataset(dataset, segmenter).scores(segmenter.manifest.classes).mIoU)
    assert scores[0] - scores[1] <= 0.5

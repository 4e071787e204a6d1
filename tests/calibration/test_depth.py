"""A depth network is quantized within a budget on how far its depths stay FP32's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from progress_told import Told
from quantizing import shorten_races
from support import small_images

from denseport.calibration.calibrate import calibrate
from denseport.calibration.errors import CalibrationError
from denseport.calibration.options import CalibrationOptions
from denseport.calibration.search.sensitivity import Reference
from denseport.export.graph.model import read_model
from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError


def test_depths_stay_within_the_budget(depth_sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_races(monkeypatch)
    bundle, told = Bundle(shutil.copytree(depth_sample.path, tmp_path / "copy")), Told()
    photos = small_images(tmp_path / "photos")
    options = CalibrationOptions(effort="low", agreement=0.9, work=tmp_path / "w", threads=1)
    found = calibrate(bundle, [tmp_path / "photos"], options, report=tmp_path / "int8.html", progress=told)
    assert found.within_budget and found.verdicts.keys() == {"int8.onnx", "int8.cpu.onnx"}
    assert any("depths differ from FP32's by" in line for line in told.lines)
    page = (tmp_path / "int8.html").read_text()
    assert "FP32&#39;s depths kept, %" in page and "Depths differ, %" in page and "Classes change" not in page
    # The figure of the verdict, from the images themselves: in the estimator's own sizes, so near to it only.
    artifact = Bundle(bundle.path).artifact("int8.onnx")
    assert artifact.output == "depth"
    with DepthEstimator(bundle.path) as fp32, DepthEstimator(bundle.path, artifact="int8.onnx") as int8:
        pairs = [(fp32(photo).depth, int8(photo).depth) for photo in photos]
    changes = [float(np.abs(a - b).mean() / np.abs(a).mean()) for a, b in pairs]
    assert 1 - np.mean(changes) == pytest.approx(found.verdicts["int8.onnx"].agreement, abs=0.02)
    assert max(changes) > 0, "INT8 changes something"


def test_labels_of_classes_are_none_of_a_depth_network(depth_sample: Bundle) -> None:
    model = read_model(depth_sample.verified("model.onnx"))
    image = np.zeros((1, 3, 64, 96), np.float32)
    with pytest.raises(CalibrationError, match="depths have no classes to label"):
        Reference(model, [image], [np.zeros((64, 96), np.uint8)])


def test_a_budget_of_classes_is_refused(depth_sample: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--budget: points of mIoU") as caught:
        calibrate(depth_sample, [tmp_path], CalibrationOptions(budget=1.0))
    assert "--agreement" in str(caught.value) and "--data" not in str(caught.value)

"""The trained depth sample: what its depths are worth, in FP32 and in INT8."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from exports import export_once, shelf
from quantizing import shorten_races
from support import ASSETS, REPO

from denseport.calibration.calibrate import calibrate
from denseport.calibration.options import CalibrationOptions
from denseport.runtime import DepthEstimator, evaluate_depth
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.evaluation.depth.dataset import DepthReading

DATA = ASSETS / "depth"
MILLIMETRES = DepthReading(scale=1000.0)
# AbsRel of transformers 5.24.0's own class and processor on the four images, once by hand (tests/assets/README.md).
ABS_REL = 0.13445
TOLERANCE = 2e-4  # depths differ by 0.03 mm; another Pillow's JPEG may change a grey level here and there


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_once(DATA / "network", shelf(tmp_path_factory), tmp_path_factory.mktemp("trained") / "bundle")


def test_depths_are_as_good_as_transformers_finds_them(bundle: Bundle) -> None:
    errors, of_constants = [], []  # each image's; of each constant in turn
    with DepthEstimator(bundle, threads=1) as estimate:
        for path in sorted((DATA / "images").iterdir()):
            stored = cv2.imread(str(DATA / f"depths/{path.stem}.png"), cv2.IMREAD_UNCHANGED)
            measured, found = stored > 0, estimate(path)
            assert (found.unit, found.larger_is) == ("metres", "farther")
            truth = stored[measured] / 1000
            errors.append((np.abs(found.depth[measured] - truth) / truth).mean())
            of_constants.append([(np.abs(guess - truth) / truth).mean() for guess in np.arange(0.5, 20, 0.1)])
    assert len(errors) == 4 and np.mean(errors) == pytest.approx(ABS_REL, abs=TOLERANCE)
    assert np.mean(errors) < 0.6 * np.mean(of_constants, axis=0).min(), "a constant is nearly as good"
    found = evaluate_depth(bundle, DATA, settings=MILLIMETRES, threads=1)
    assert found.metrics["AbsRel"] == pytest.approx(np.mean(errors), abs=1e-6)


@pytest.fixture
def rendered(tmp_path: Path) -> Iterator[Path]:
    """16 scenes to calibrate on, 8 others to measure on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "scripts/doc_images/depth_sample")
        renderer = importlib.import_module("render")
        for number in range(24):
            renderer.write(tmp_path / ("test" if number < 8 else "shown"), 3_000_000 + number, str(number), 320, 240)
        yield tmp_path


@pytest.mark.slow
def test_int8_keeps_the_depths(bundle: Bundle, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_races(monkeypatch)
    copy = Bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
    options = CalibrationOptions(effort="low", threads=1)
    assert calibrate(copy, rendered / "shown" / "images", options, limit=16).within_budget
    for name in ("int8.onnx", "int8.cpu.onnx"):
        found = evaluate_depth(
            copy, rendered / "test", artifact=name, gate="model.onnx", settings=MILLIMETRES, threads=1
        )
        assert found.gate is not None and found.gate.passed and found.fp32 is not None
        assert 0 < abs(found.metrics["AbsRel"] / found.fp32["AbsRel"] - 1) <= 0.02

"""What is built of a depth bundle is compared by its depths, and what has no meaning for depth is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused
from support import small_images

from denseport.export.audit import _compare
from denseport.runtime import DepthEstimator
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle


@pytest.fixture
def bundle(depth_sample: Bundle, tmp_path: Path) -> Bundle:
    return Bundle(shutil.copytree(depth_sample.path, tmp_path / "copy"))


def test_fp16_is_audited_by_its_depths(call: Callable[..., Any], bundle: Bundle, tmp_path: Path) -> None:
    photos = small_images(tmp_path / "photos")
    code, out, err = call("build", bundle.path, "--precision", "fp16", "--images", tmp_path / "photos")
    assert code == 0 and "depths differ from FP32's by 0.0" in out, err
    artifact = Bundle(bundle.path).artifact("fp16.onnx")
    assert artifact.output == "depth" and artifact.record["audit"]["output"] == "depth"
    with DepthEstimator(bundle.path) as fp32, DepthEstimator(bundle.path, artifact="fp16.onnx") as fp16:
        found, want = (each(photos[0]).depth for each in (fp16, fp32))
    np.testing.assert_allclose(found, want, atol=0.05)
    code, out, _ = call("inspect", bundle.path)
    assert code == 0 and "depths differ from FP32's by 0.0" in out and "depths differ by" in out


class Given(Session):
    """A session that gives an array."""

    description = "given"

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.astype(np.float32)

    def run(self, image: np.ndarray) -> np.ndarray:
        return self.array


@pytest.mark.parametrize(("factor", "agreement"), [(1.0, 1.0), (1.02, 0.98), (3.0, 0.0), (np.nan, 0.0)])
def test_an_audit_measures_the_change_of_depths(factor: float, agreement: float) -> None:
    depth = np.arange(1.0, 11).reshape(1, 1, 2, 5)
    inputs: Any = [np.zeros((1, 3, 4, 10), np.float32)]
    found = _compare(Given(depth), Given(depth * factor), inputs, "fp16", "depth")
    assert found.agreement == pytest.approx(agreement)
    assert found.passed == (agreement == 1) and found.output == "depth"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["calibrate", "--images", "photos", "--data", "photos"], "a depth network is calibrated against FP32"),
        (["build", "--output", "mask", "--precision", "fp32", "--images", "photos"], "gives no classes"),
    ],
    ids=str,
)
def test_what_depth_does_not_have_is_refused(
    call: Callable[..., Any], bundle: Bundle, tmp_path: Path, command: list[str], words: str
) -> None:
    small_images(tmp_path / "photos")
    arguments = [str(tmp_path / each) if each == "photos" else each for each in command[1:]]
    refused(call(command[0], bundle.path, *arguments), words)
    assert Bundle(bundle.path).manifest.artifacts.keys() == {"model.onnx"}


def test_bench_measures_depth_too(call: Callable[..., Any], bundle: Bundle) -> None:
    options = ("--rounds", "1", "--seconds", "0.01", "--concurrency", "1", "--batch", "1")
    code, out, err = call("bench", bundle.path, *options)
    assert code == 0 and "model.onnx" in out, err

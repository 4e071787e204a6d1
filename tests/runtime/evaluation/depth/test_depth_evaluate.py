"""`denseport eval` on depth: the means of the metrics, the gate against FP32, collapse detectors, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from command_line import refused
from onnx import numpy_helper

from denseport.runtime import DepthEstimator, evaluate, evaluate_depth
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.errors import DatasetError, InputError
from denseport.runtime.evaluation.depth.dataset import DepthReading, open_depth_dataset
from denseport.runtime.evaluation.gate import Gate
from denseport.runtime.system.files import sha256_of

IMAGES = 4


@pytest.fixture(scope="module")
def data(depth_sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, and for the truth 1.1 times what the network says of it; a tenth of each image is not measured."""
    root, rng = tmp_path_factory.mktemp("depths"), np.random.default_rng(0)
    for folder in ("images", "depths"):
        (root / folder).mkdir()
    with DepthEstimator(depth_sample) as estimate:
        for i in range(IMAGES):
            image = cv2.resize(rng.integers(0, 256, (8, 12, 3), np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / f"images/{i}.png"), image)
            truth = 1.1 * np.maximum(estimate(image).depth, 0.01)
            truth[rng.random(truth.shape) < 0.1] = 0
            np.save(root / f"depths/{i}.npy", truth.astype(np.float32))
    return root


def changed(
    bundle: Bundle, folder: Path, change: Callable[[np.ndarray], np.ndarray], precision: str = "int8"
) -> Bundle:
    """A copy of a bundle with an artifact ``other.onnx``, said to be INT8: the source, its last weight changed."""

    copy = Bundle(shutil.copytree(bundle.path, folder / "copy"))
    model = onnx.load(copy.path / "model.onnx")
    weight = max((each for each in model.graph.initializer if len(each.dims) == 4), key=lambda each: each.dims[1])
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)).astype(np.float32), weight.name))
    onnx.save(model, folder / "other.onnx")
    files = {"other.onnx": sha256_of(folder / "other.onnx")}
    source = copy.artifact("model.onnx")
    other = replace(
        source, precision=precision, made_of="model.onnx", main="other.onnx", files=files, proof=(), record={}
    )
    copy.add("other.onnx", other, [folder / "other.onnx"])
    return copy


def test_the_means_of_the_images(call: Callable[..., Any], depth_sample: Bundle, data: Path) -> None:
    """The truth is 1.1 times the prediction: every error follows from that."""
    code, out, err = call("eval", depth_sample.path, "--data", data, "--max-depth", "11", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["AbsRel"] == pytest.approx(1 - 1 / 1.1, abs=1e-4) and found["d1"] == pytest.approx(1, abs=1e-3)
    assert found["RMSElog"] == pytest.approx(np.log(1.1), abs=1e-3) == found["log10"] * np.log(10)
    assert found["SILog"] == pytest.approx(np.log(1.1) * np.sqrt(0.5), abs=1e-3)
    assert (found["images"], found["max_depth"], found["min_depth"]) == (IMAGES, 11, 0.001)
    assert 0.85 < found["pixels"] / (IMAGES * 96 * 64) < 0.95 and not found["aligned"] and found["gate"] is None
    code, out, _ = call("eval", depth_sample.path, "--data", data, "--crop", "garg", "--limit", "2")
    assert code == 0 and "the crop garg" in out and "2 images" in out and "up to" not in out
    assert "depths from 0.001 to 10 m" in out  # the network's limit


def test_a_relative_network_is_aligned(depth_sample: Bundle, data: Path) -> None:
    bundle = Bundle(depth_sample.path)
    bundle.manifest = replace(bundle.manifest, depth=DepthOutput("relative", "farther", None, "bicubic"))
    with pytest.raises(InputError, match="Give --max-depth"):
        evaluate_depth(bundle, data)
    with pytest.raises(InputError, match="settings: applies to a path"):
        evaluate_depth(bundle, open_depth_dataset(data), settings=DepthReading(most=11.0))
    found = evaluate_depth(bundle, data, settings=DepthReading(most=11.0), threads=1)
    assert found.aligned and found.metrics["AbsRel"] < 1e-3  # 1.1 is a scale


def test_the_gate_passes_what_is_fp32(
    call: Callable[..., Any], depth_sample: Bundle, data: Path, tmp_path: Path
) -> None:
    bundle = changed(depth_sample, tmp_path, lambda weight: weight)
    command = ("eval", bundle.path, "--data", data, "--max-depth", "11", "--artifact", "other.onnx")
    code, out, err = call(*command, "--gate", "model.onnx", "--record")
    assert code == 0 and "PASS: against FP32 on the same 4 images" in out, err
    kept = Bundle(bundle.path).manifest.artifacts
    assert kept["other.onnx"].record["accuracy"]["gate"]["passed"]
    assert kept["model.onnx"].record["accuracy"]["AbsRel"] == pytest.approx(1 - 1 / 1.1, abs=1e-4)
    code, out, _ = call("inspect", bundle.path)
    assert code == 0 and "AbsRel 0.0909" in out and "metres, up to 10, larger is farther" in out


def test_the_gate_fails_what_grows_beyond_the_budget(depth_sample: Bundle, data: Path, tmp_path: Path) -> None:
    bundle = changed(depth_sample, tmp_path, lambda weight: 1.3 * weight)
    limits = DepthReading(most=11.0)
    found = evaluate_depth(bundle, data, artifact="other.onnx", gate="model.onnx", settings=limits)
    assert found.gate is not None and not found.gate.passed and found.fp32 is not None
    grown = 100 * (found.metrics["AbsRel"] / found.fp32["AbsRel"] - 1)
    assert found.gate.delta == pytest.approx(-grown) and grown > 2 == found.gate.budget
    assert "% above FP32" in found.gate.reasons[0] and found.gate.interval is not None
    assert found.gate.interval[0] <= found.gate.delta <= found.gate.interval[1]
    own = Gate(found.metrics["AbsRel"] / 1.05, budget=6.0)
    assert evaluate_depth(bundle, data, artifact="other.onnx", gate=own, settings=limits).gate.passed  # type: ignore[union-attr]
    strict = replace(own, budget=4.0)
    assert not evaluate_depth(bundle, data, artifact="other.onnx", gate=strict, settings=limits).gate.passed  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.zeros_like, "the depths of 4 of 4 images are constant, where FP32's are not"),
        (lambda weight: np.abs(weight) * 1e4, "of all pixels are at the network's limit"),
        (lambda weight: weight * np.nan, "the depths of 4 of 4 images are not finite"),
    ],
    ids=["constant", "saturated", "nan"],
)
def test_a_collapse_fails_whatever_the_budget(
    depth_sample: Bundle, data: Path, tmp_path: Path, change: Any, words: str
) -> None:
    bundle = changed(depth_sample, tmp_path, change)
    settings, gate = DepthReading(most=11.0), Gate("model.onnx", budget=100.0)
    found = evaluate_depth(bundle, data, artifact="other.onnx", gate=gate, settings=settings)
    assert found.gate is not None and not found.gate.passed
    assert words in " ".join(found.gate.reasons)
    alone = evaluate_depth(bundle, data, artifact="other.onnx", settings=settings)
    assert words.partition(",")[0].partition(" (")[0] in " ".join(alone.warnings)


def test_images_without_a_measured_pixel_are_left_out(depth_sample: Bundle, data: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(data / "images/0.png"))
    (tmp_path / "images").mkdir()
    (tmp_path / "depths").mkdir()
    for name, depth in (("a", 1), ("b", 0)):
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), image)
        np.save(tmp_path / f"depths/{name}.npy", np.full((64, 96), depth, np.float32))
    found = evaluate_depth(depth_sample, tmp_path)
    assert np.isfinite(found.metrics["AbsRel"]) and "1 of 2 images have no pixel" in " ".join(found.warnings)
    with pytest.raises(DatasetError, match=r"no pixel counts: none has a measured depth of 2 to 10 metres"):
        evaluate_depth(depth_sample, tmp_path, settings=DepthReading(least=2.0))


def test_depths_of_another_size_than_their_image_are_refused(depth_sample: Bundle, data: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(data / "images/0.png"))
    (tmp_path / "images").mkdir()
    (tmp_path / "depths").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), image[:, :40])
    np.save(tmp_path / "depths/a.npy", np.ones((64, 96), np.float32))
    with pytest.raises(DatasetError, match=r"is 96 x 64, its image .* is 40 x 64"):
        evaluate_depth(depth_sample, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--masks", "."], "--masks is not for a network of depth"),
        (["--ray", "local"], "--ray is not for a network of depth"),
        (["--state", "s.npz"], "--state is not for a network of depth"),
        (["--gate", "model.onnx", "--agreement", "0.9"], "--agreement is not for a network of depth"),
        (["--gate", "reference"], "--gate reference: the bundle is not recognised as a published model"),
        (["--gate", "int8.onnx"], "--gate int8.onnx: depths are compared with FP32, with a published AbsRel"),
        (["--gate", "model.onnx"], "cannot be compared with itself"),
        (["--protocol", "ms-flip"], "ms-flip is of segmentation"),
        (["--max-depth", "0.0001"], "do not go together"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(
    call: Callable[..., Any], depth_sample: Bundle, data: Path, options: list[str], words: str
) -> None:
    refused(call("eval", depth_sample.path, "--data", data, *options), words)


def test_each_task_has_its_own(call: Callable[..., Any], sample: Bundle, depth_sample: Bundle, data: Path) -> None:
    refused(call("eval", sample.path, "--data", data, "--max-depth", "10"), "--max-depth is not for a network of seg")
    with pytest.raises(InputError, match="evaluate_depth"):
        evaluate(depth_sample, data)
    with pytest.raises(InputError, match=r"denseport\.runtime\.evaluate"):
        evaluate_depth(sample, data)

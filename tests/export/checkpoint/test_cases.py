"""Checkpoints as users have them, against what the real mmsegmentation 1.2.2 makes of them (shared/cases)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import postprocess
import pytest
from quantizing import shorten_races

from denseport.calibration.calibrate import calibrate
from denseport.export.build import build
from denseport.export.bundle import export_bundle
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.triton.variants import Options, served_models

# Most cases differ in their configuration alone, and have one network.
pytestmark = pytest.mark.usefixtures("each_network_once")
CASES = Path("cases/mmseg")


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / CASES / "cases.json").read_text())
    return found


NAMES = (
    *("plain", "pipeline_inline", "pipeline_conflict", "no_resize", "no_resize_slide", "scale_factor", "to_multiple"),
    *("pad", "preprocessor_pad", "shortest_edge", "not_keep_ratio", "scale_int", "bicubic", "pillow_resize"),
    *("to_float32", "ignore_orientation", "turned", "binary", "binary_one_name", "neck_default", "full_type_names"),
    *("scoped_type_names", "ema_keys", "no_num_batches", "loss_buffer", "no_mean", "bgr", "align_corners"),
    "one_channel",
)


def test_every_case_is_tried(facts: dict[str, Any]) -> None:
    assert {*NAMES, "label_map"} == set(facts)  # label_map has its test in tests/runtime/evaluation


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_mmsegmentations_mask(
    shared: Path, facts: dict[str, Any], tmp_path: Path, name: str
) -> None:
    folder, golden = shared / CASES, np.load(shared / CASES / "cases.npz")
    bundle = export_bundle(folder / f"{name}.pth", tmp_path / name)
    image = folder / facts[name]["image"]
    with Segmenter(bundle, threads=2) as segmenter:
        mask = segmenter(image).mask
        (maps,) = segmenter.predict(segmenter.read(image))
    sure, expected = golden[f"{name}_sure"], golden[f"{name}_logits"]
    np.testing.assert_array_equal(mask[sure], golden[f"{name}_mask"][sure])
    logits = postprocess.logits(maps)[-len(expected) :, ::6, ::6]  # of a binary head the second is upstream's
    if len(expected) == 1:
        logits = 1 / (1 + np.exp(-logits))  # mmsegmentation keeps the probability
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)


def test_a_network_of_one_channel_goes_all_the_way(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed, quantized and served like any other; engines have three channels so far, and say so."""
    bundle = export_bundle(shared / CASES / "one_channel.pth", tmp_path / "bundle")
    images = [tmp_path / f"{i}.png" for i in range(4)]
    for image in images:
        shutil.copy(shared / CASES / "image.png", image)
    built = build(bundle, images=images)
    assert built.passed
    shorten_races(monkeypatch)
    assert calibrate(bundle.path, images, limit=4).verdicts.keys() == {"int8.onnx", "int8.cpu.onnx"}
    artifacts = Bundle(bundle.path).manifest.artifacts
    assert artifacts.keys() == {"model.onnx", "fp16.onnx", "int8.onnx", "int8.cpu.onnx"}
    assert [proof.figures for proof in artifacts["fp16.onnx"].proof] == ["audit"]
    with Segmenter(bundle.path, artifact="int8.cpu.onnx", threads=2) as segmenter:
        assert segmenter(images[0]).mask.shape == (121, 160)
    (network, _) = served_models(Bundle(bundle.path), Options(backend="onnxruntime"))
    assert list(network.config.input[0].dims) == [1, -1, -1]
    with pytest.raises(InputError, match="takes 1 channel; engines are built for three"):
        build(bundle.path, engine="tensorrt_rtx", images=images)

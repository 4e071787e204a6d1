"""A network of grey images goes the whole way: FP16 with an audit, and INT8."""

from __future__ import annotations

from pathlib import Path

from denseport.calibration.calibrate import calibrate
from denseport.export.build import build
from denseport.export.bundle import export_bundle
from denseport.runtime.bundle.bundle import Bundle


def test_a_network_of_one_channel_is_built_and_calibrated(shared: Path, tmp_path: Path) -> None:
    cases = shared / "cases/mmseg"
    path = export_bundle(cases / "one_channel.pth", tmp_path / "grey").path
    build(path, precision="fp16", images=[cases / "image.png"])
    calibrate(path, [cases / "image.png"])
    artifacts = Bundle(path).manifest.artifacts
    assert {"fp16.onnx", "int8.onnx"} <= artifacts.keys()
    assert [proof.figures for proof in artifacts["fp16.onnx"].proof] == ["audit"]

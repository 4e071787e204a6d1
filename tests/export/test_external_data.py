"""A bundle whose FP32 model keeps its weights in a second file, as a model beyond 2 GB must: every command takes it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import onnx
import pytest
from bundles import onnx_artifact
from support import ASSETS

from denseport.export.graph.model import read_model, serialise
from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.external_data import external_files
from denseport.runtime.cli.main import main
from denseport.runtime.system.files import sha256_of

STREET = ASSETS / "street"
PHOTO = sorted(STREET.rglob("*.jpg"))[0]
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


@pytest.fixture
def bundle(sample_copy: Bundle) -> Bundle:
    model = sample_copy.path / "model.onnx"
    onnx.save_model(
        onnx.load(model), model, save_as_external_data=True, location="model.onnx.data", size_threshold=1024
    )
    assert model.stat().st_size < 200_000 < model.with_name("model.onnx.data").stat().st_size
    files = {name: sha256_of(model.with_name(name)) for name in ("model.onnx", "model.onnx.data")}
    old = sample_copy.manifest.artifacts["model.onnx"]
    artifacts = {"model.onnx": onnx_artifact(files, record=old.record)}
    (sample_copy.path / MANIFEST).write_text(dataclasses.replace(sample_copy.manifest, artifacts=artifacts).to_json())
    return Bundle(sample_copy.path)


def whole(bundle: Bundle, *names: str) -> bool:
    """Whether the artifacts are what the manifest says and none needs a file of another one."""
    bundle = Bundle(bundle.path)
    return all(external_files(bundle.verified(name)) <= bundle.artifact(name).files.keys() - {name} for name in names)


def test_it_is_run_and_measured(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(bundle.path), str(PHOTO), "-o", str(tmp_path / "out")]) == 0
    assert main(["inspect", str(bundle.path), "--verify"]) == 0
    capsys.readouterr()
    assert main(["eval", str(bundle.path), "--data", str(STREET), "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_its_graphs_are_typed_fused_and_audited(bundle: Bundle, tmp_path: Path) -> None:
    build = ["build", str(bundle.path), "--images", str(PHOTO)]
    assert main(build) == 0
    assert main([*build, "--output", "mask", "--plugin", "on"]) == 0
    assert main([*build, "--precision", "fp32", "--output", "mask"]) == 0
    assert whole(bundle, "model.onnx", "fp16.onnx", "fp16.mask.fused.onnx", "fp32.mask.onnx")
    run = ["run", str(bundle.path), str(PHOTO), "-o", str(tmp_path / "out"), "--artifact", "fp16.onnx"]
    assert main(run) == 0


def test_calibration_reads_it_whole(bundle: Bundle, tmp_path: Path) -> None:
    """The one place where a calibration reads its model."""
    (tmp_path / "one.onnx").write_bytes(serialise(read_model(bundle.verified("model.onnx"))))
    assert not external_files(tmp_path / "one.onnx")


@needs_rtx
@pytest.mark.parametrize("options", [["--profile", "fixed:96x64"], ["--output", "mask"], ["--precision", "fp32"]])
def test_engines_are_built_of_it(bundle: Bundle, options: list[str]) -> None:
    assert main(["build", str(bundle.path), "--engine", "tensorrt_rtx", "--target", "sm_86", *options]) == 0
    assert any(artifact.kind == "engine" for artifact in Bundle(bundle.path).manifest.artifacts.values())

"""`denseport build` through the command line: typed graphs, their audit, engines by the real RTX builder."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from planting import overflow, with_graph
from support import ASSETS

from denseport.export.audit import audit_graph
from denseport.runtime.bundle import Bundle
from denseport.runtime.cli import main
from denseport.runtime.feed import spread

PICTURES = str(ASSETS / "street/images")
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


@pytest.fixture
def bundle(sample: Bundle, tmp_path: Path) -> Bundle:
    return Bundle(shutil.copytree(sample.path, tmp_path / "bundle"))


def test_fp16_is_written_audited_and_shown(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(bundle.path), "--images", PICTURES, "--explain-precision"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "PASS" in out and "LayerNormalization" in out and "31 casts" in out
    artifact = Bundle(bundle.path).artifact("fp16.onnx")
    assert artifact.precision == "fp16" and artifact.record["audit"]["agreement"] > 0.998
    assert artifact.record["precision"]["observed_images"] == 4
    assert (bundle.path / "fp16.onnx").stat().st_size < 0.6 * (bundle.path / "model.onnx").stat().st_size
    assert main(["inspect", str(bundle.path), "--verify"]) == 0
    assert "audited on 4 pictures" in capsys.readouterr().out
    assert not list(bundle.path.glob(".*")), "nothing half-made stays behind"


def test_an_audit_fails_what_collapses(bundle: Bundle) -> None:
    with_graph(bundle, lambda graph: overflow(graph, "backbone.layers.2.ln1.weight"), "planted.onnx", "fp16")
    result = audit_graph(bundle, bundle.path / "planted.onnx", "fp16", spread([PICTURES], 2), lambda text: None)
    assert not result.passed and not result.finite
    assert result.worst_layer is not None and "backbone.layers.2.ln1/LayerNormalization" in result.worst_layer


def test_without_pictures_nothing_is_claimed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(bundle.path), "--precision", "bf16"]) == 0
    assert "not audited" in capsys.readouterr().out
    assert "audit" not in Bundle(bundle.path).artifact("bf16.onnx").record


@needs_rtx
def test_an_engine_is_built_recorded_and_refused_here(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "build",
        str(bundle.path),
        "--engine",
        "tensorrt_rtx",
        "--target",
        "sm_86",
        "--profile",
        "fixed:160x224",
    ]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    name = "fp16.rtx.sm_86.160x224.engine"
    assert result["engine"] == name and result["record"]["targets"] == ["sm_86"]
    assert result["record"]["types_asked"]["fp16"] > 100 and result["record"]["folded"]
    assert main(["inspect", str(bundle.path), "--verify"]) == 0
    assert "for sm_86" in capsys.readouterr().out
    photo = str(ASSETS / "street/images/validation/camvid_Seq05VD_f05100.jpg")
    with (bundle.path / name).open("r+b") as file:  # an engine is native code: altered, it is never opened
        file.seek(100)
        file.write(b"altered")
    assert main(["run", str(bundle.path), photo, "-o", str(bundle.path.parent / "out"), "--artifact", name]) == 2
    assert "altered since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp32"], "is the FP32 graph already"),
        (["--limit", "0"], "--limit 0"),
        (["--images", "/nowhere/*.jpg"], "/nowhere"),
        (["--engine", "tensorrt_rtx", "--profile", "huge"], "no profile 'huge'"),
        (["--engine", "tensorrt_rtx", "--min", "64x64"], "--min, --opt and --max go together"),
        (["--engine", "tensorrt", "--target", "sm_86"], "takes no targets"),
    ],
)
def test_bad_arguments(bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["build", str(bundle.path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]


def test_tensorrt_that_is_not_installed_is_named(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    assert main(["build", str(bundle.path), "--precision", "fp32", "--engine", "tensorrt"]) == 3
    assert "pip install" in capsys.readouterr().err

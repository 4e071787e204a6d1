"""`denseport.export.build.build`: what the command prints, as values, with the command's errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command_line import returned_by
from progress_told import Told
from support import ASSETS

from denseport.export import build as module
from denseport.export.build import EngineSettings, build
from denseport.export.engine.profile import parse_shape
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DenseportError, InputError
from denseport.runtime.evaluation.gate import AGREEMENTS

IMAGES = str(ASSETS / "street/images")


def test_the_command_prints_what_the_function_returns(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    returned = returned_by(monkeypatch, module, "build")
    arguments = ["--images", IMAGES, "--limit", "1", "--output", "mask", "--explain-precision", "--json"]
    assert main(["build", str(sample_copy.path), *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    (built,) = returned
    assert "LayerNormalization" in printed.pop("table"), "asked for by --explain-precision alone"
    assert printed == json.loads(json.dumps(built.to_dict(), allow_nan=False))
    assert built.passed and built.artifacts == ["fp16.onnx", "fp16.mask.onnx"]
    assert built.precision is not None and built.precision.nodes["fp16"] > 100


def test_a_failed_audit_is_a_result_and_nothing_is_kept(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(AGREEMENTS, "fp16", 1.1)  # more than all pixels
    told = Told()
    built = build(sample_copy, output="mask", images=[IMAGES], limit=1, progress=told)
    assert capsys.readouterr() == ("", "") and told.lines
    assert not built.passed and built.artifacts == ["fp16.onnx"], "the mask is not tried"
    assert built.details["audit"]["agreement"] > 0.99
    assert main(["build", str(sample_copy.path), "--images", IMAGES, "--limit", "1"]) == 1
    assert sorted(path.name for path in sample_copy.path.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--precision", "fp32"], {"precision": "fp32"}),
        (["--precision", "int8"], {"precision": "int8"}),
        (["--float-precision", "fp16"], {"float_precision": "fp16"}),
        (["--images", "/nowhere/*.jpg"], {"images": ["/nowhere/*.jpg"]}),
        (
            ["--engine", "tensorrt_rtx", "--profile", "huge"],
            {"engine": "tensorrt_rtx", "settings": EngineSettings(profile="huge")},
        ),
        (
            ["--engine", "tensorrt", "--target", "sm_86"],
            {"engine": "tensorrt", "settings": EngineSettings(targets=("sm_86",))},
        ),
        (
            ["--engine", "tensorrt", "--min", "64x64", "--opt", "32x32", "--max", "96x96"],
            {
                "engine": "tensorrt",
                "settings": EngineSettings(profile=(parse_shape("64x64"), parse_shape("32x32"), parse_shape("96x96"))),
            },
        ),
    ],
)
def test_bad_arguments_raise_what_the_command_prints(
    sample_copy: Bundle, capsys: pytest.CaptureFixture[str], options: list[str], arguments: dict[str, Any]
) -> None:
    with pytest.raises(DenseportError) as caught:
        build(sample_copy.path, **arguments)
    assert main(["build", str(sample_copy.path), *options]) == caught.value.exit_code == 2
    assert capsys.readouterr().err == f"denseport: error: {caught.value}\n"
    assert sorted(path.name for path in sample_copy.path.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize("name", ["precision", "float_precision", "engine", "output", "plugin"])
def test_a_choice_that_is_none_is_refused(sample: Bundle, name: str) -> None:
    with pytest.raises(InputError, match=f"{name.replace('_', ' ')} 'best' is unknown"):
        build(sample, **{name: "best"})  # type: ignore[arg-type]


def test_a_limit_below_one_is_refused(sample_copy: Bundle) -> None:
    with pytest.raises(InputError, match="limit cannot be -1"):
        build(sample_copy, images=IMAGES, limit=-1)

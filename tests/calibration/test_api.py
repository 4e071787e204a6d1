"""`denseport.calibration.calibrate.calibrate`: the verdict comes back, is recorded, and nothing is printed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from progress_told import Told
from quantizing import shorten_races
from support import ASSETS

from denseport.calibration.calibrate import calibrate, judge_again
from denseport.calibration.options import CalibrationOptions
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DenseportError

IMAGES = str(ASSETS / "street/images/validation")
FEW_LAYERS = ("backbone", "decode_head.fusion_blocks")  # stay float, so that it is quick


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_races(monkeypatch)


def test_a_calibration_returns_and_records_its_verdicts(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    options = CalibrationOptions(effort="low", float_layers=FEW_LAYERS, agreement=0.5, work=tmp_path / "w", threads=1)
    found = calibrate(sample_copy, IMAGES, options, limit=2, report=tmp_path / "int8.html", progress=told)
    assert capsys.readouterr() == ("", "") and "observing tensors" in told.phases
    assert found.within_budget and set(found.verdicts) == {"int8.onnx", "int8.cpu.onnx"}
    for name, each in found.verdicts.items():
        assert Bundle(sample_copy.path).artifact(name).record["verdict"] == asdict(each)
    assert found.record.budget.agreement == 0.5 and found.record.budget.miou is None
    assert found.report == tmp_path / "int8.html" and found.report.is_file()
    assert (tmp_path / "w/tensors.npz").is_file(), "a named folder for statistics stays"

    again = judge_again(sample_copy.path, "int8.onnx", [IMAGES], limit=2, threads=1)
    assert again.agreement == found.verdicts["int8.onnx"].agreement
    assert Bundle(sample_copy.path).artifact("int8.onnx").record["verdict"] == asdict(again)


def test_nothing_within_the_budget_is_a_result(sample_copy: Bundle, tmp_path: Path) -> None:
    options = CalibrationOptions(effort="low", float_layers=FEW_LAYERS, agreement=1, work=tmp_path / "w", threads=1)
    found = calibrate(sample_copy, [IMAGES], options, limit=1)
    assert found.verdicts == {} and not found.within_budget and not found.to_dict()["within_budget"]
    assert sorted(path.name for path in sample_copy.path.iterdir()) == ["manifest.json", "model.onnx"]


BAD: list[tuple[list[str], dict[str, Any], dict[str, Any]]] = [
    (["--budget", "0.5"], {"budget": 0.5}, {}),
    (["--keep-float", "decode_head.projekt"], {"float_layers": ("decode_head.projekt",)}, {}),
    (["--masks", IMAGES], {}, {"masks": IMAGES}),
    (["--data", "/nowhere"], {}, {"data": "/nowhere"}),
    (["--report", "model.onnx"], {}, {"report": "model.onnx"}),
]


@pytest.mark.parametrize(("words", "options", "arguments"), BAD, ids=[words[0] for words, *_ in BAD])
def test_bad_arguments_raise_what_the_command_prints(
    sample_copy: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(DenseportError) as caught:
        calibrate(sample_copy, IMAGES, CalibrationOptions(work=tmp_path / "w", **options), limit=1, **arguments)
    command = ["calibrate", str(sample_copy.path), "--images", IMAGES, "--limit", "1", "--work", str(tmp_path / "w")]
    assert main([*command, *words]) == caught.value.exit_code == 2
    assert capsys.readouterr().err.endswith(f"denseport: error: {caught.value}\n")

"""Artifacts for OpenVINO: made of the source's file, audited by running them, chosen by measurement."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import ASSETS

from denseport.export import build as build_module
from denseport.export.build import build, build_for_this_machine
from denseport.runtime.benchmark import race as race_module
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import MachineError
from denseport.runtime.evaluation.gate import AGREEMENTS
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system import machine
from denseport.runtime.system.cpus import has_bf16

IMAGES, MASKS = str(ASSETS / "street/images"), str(ASSETS / "street/annotations")
HERE = ("fp32", "bf16")[: 1 + has_bf16()]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("precision", HERE)
def test_an_artifact_shares_the_sources_file_and_is_audited_as_it_runs(
    sample_copy: Bundle, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    name, path = f"{precision}.openvino", str(sample_copy.path)
    arguments = ["--precision", precision, "--engine", "openvino", "--images", IMAGES]
    assert main(["build", path, *arguments]) == 0
    assert f"{name}: OpenVINO computes the source's file" in capsys.readouterr().out
    bundle = Bundle(sample_copy.path)
    artifact, source = bundle.artifact(name), bundle.artifact("model.onnx")
    assert (artifact.main, artifact.files, artifact.made_of) == (source.main, source.files, "model.onnx")
    assert (artifact.target, artifact.precision) == ("openvino", precision)
    assert sorted(each.name for each in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]
    (proof,) = artifact.proof
    assert (proof.against, proof.arithmetic, proof.figures) == ("fp32", precision, "audit")
    assert proof.machine == machine.inspect_machine().processor and artifact.is_compared
    error = artifact.record["audit"]["logit_error"]
    assert 1e-4 < error < 0.1 if precision == "bf16" else error < 1e-5
    gate = ["--data", IMAGES, "--masks", MASKS, "--gate", "model.onnx", "--record", "--artifact", name]
    assert main(["eval", path, *gate]) == 0
    printed = capsys.readouterr().out
    assert "PASS" in printed and "ONNX Runtime computes" not in printed
    # Audited again, it keeps what else was found about it.
    assert main(["build", path, *arguments]) == 0
    artifact = Bundle(sample_copy.path).artifact(name)
    assert [(each.figures, each.arithmetic) for each in artifact.proof] == [
        ("accuracy", precision),
        ("audit", precision),
    ]
    copied = Bundle(shutil.copytree(sample_copy.path, sample_copy.path.with_name("copy")))
    assert copied.verified(name) == copied.path / "model.onnx"


def test_a_failed_audit_is_not_kept(sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGREEMENTS, "fp32", 1.1)
    built = build(sample_copy, precision="fp32", engine="openvino", images=IMAGES)
    assert not built.passed and list(Bundle(sample_copy.path).manifest.artifacts) == ["model.onnx"]
    assert build_for_this_machine(sample_copy, images=IMAGES).details["audits"]["fp32.openvino"]["passed"] is False
    assert "fp32.openvino" not in Bundle(sample_copy.path).manifest.artifacts


def test_what_fails_a_later_audit_is_no_longer_chosen(sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "race", lambda sessions, _: {name: [1 / len(name)] for name in sessions})
    assert build_for_this_machine(sample_copy, images=IMAGES).details["chosen"].endswith(".openvino")
    for precision in HERE:
        monkeypatch.setitem(AGREEMENTS, precision, 1.1)
    assert build_for_this_machine(sample_copy, images=IMAGES).details["chosen"] == "model.onnx"
    with Segmenter(sample_copy.path) as segmenter:
        assert segmenter.selection.others["fp32.openvino"] == "failed its audit"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "openvino"], "OpenVINO computes a bundle in fp32 or bf16, not in fp16"),
        (["--engine", "openvino", "--precision", "int8"], "fp32 or bf16, not in int8"),
        (["--engine", "openvino", "--precision", "fp32", "--output", "mask"], "--output mask does not go with"),
        (["--engine", "openvino", "--precision", "fp32", "--plugin", "on"], "--plugin on does not go with"),
        (["--engine", "openvino", "--precision", "fp32", "--level", "5"], "is a setting of TensorRT engines"),
        (["--engine", "openvino", "--precision", "bf16", "--float-precision", "fp16"], "--float-precision belongs to"),
        (["--for-this-machine"], "what is chosen was compared with FP32 before"),
        (["--for-this-machine", "--engine", "openvino"], "--for-this-machine does not go with --engine"),
        (["--for-this-machine", "--force"], "--for-this-machine does not go with --force"),
    ],
)
def test_what_does_not_go_together_is_refused(
    sample: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["build", str(sample.path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_machine_that_cannot_is_refused(sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from denseport.runtime.backends import openvino

    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    with pytest.raises(MachineError, match="this processor has no BF16 arithmetic"):
        build(sample_copy, precision="bf16", engine="openvino", images=IMAGES)
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    monkeypatch.setitem(machine.DISTRIBUTIONS, "openvino", ("no-such-package",))
    for make in (
        lambda: build(sample_copy, precision="fp32", engine="openvino"),
        lambda: build_for_this_machine(sample_copy, images=IMAGES),
    ):
        with pytest.raises(MachineError, match="OpenVINO is not installed") as caught:
            make()
        assert caught.value.remedy == "pip install 'denseport[openvino]'"
    assert list(Bundle(sample_copy.path).manifest.artifacts) == ["model.onnx"]


def test_the_fastest_that_passed_is_taken_and_says_why(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"model.onnx": 1.0, "fp32.openvino": 0.8, "bf16.openvino": 0.5}
    raced: list[Sequence[str]] = []

    def race(sessions: dict[str, object], images: Sequence[object]) -> dict[str, list[float]]:
        raced.append(list(sessions))
        return {name: [seconds[name]] * 7 for name in sessions}

    monkeypatch.setattr(race_module, "race", race)
    assert main(["build", str(sample_copy.path), "--for-this-machine", "--images", IMAGES, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    made = [f"{precision}.openvino" for precision in HERE]
    assert raced == [["model.onnx", *made]]
    best = made[-1]
    ratio = 1 / seconds[best]
    why = f"{ratio:.2f} times as fast as model.onnx on ONNX Runtime, and passed its audit; OpenVINO on the CPU"
    assert (printed["chosen"], printed["why"]) == (best, why)
    with Segmenter(sample_copy.path) as segmenter:
        assert segmenter.artifact == best and segmenter.selection.why == why
        assert segmenter.description.startswith(f"{best} on OpenVINO")
        assert "was measured as faster here" in segmenter.selection.others["model.onnx"]
    with Segmenter(sample_copy.path, artifact="model.onnx") as segmenter:
        assert "ONNX Runtime" in segmenter.description


def test_without_bf16_only_fp32_is_made(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    monkeypatch.setattr(build_module, "judge_audited", lambda *_: {})
    assert main(["build", str(sample_copy.path), "--for-this-machine", "--images", IMAGES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bf16.openvino: not made: this processor has no BF16 arithmetic")
    assert lines[1].startswith("fp32.openvino: PASS")
    assert lines[-1] == "On such processors runs model.onnx: ONNX Runtime on the CPU"


def test_counts_of_another_artifact_of_the_same_file_are_not_taken_up(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(sample_copy, precision="fp32", engine="openvino", images=IMAGES)
    command, state = ["eval", str(sample_copy.path), "--data", IMAGES, "--masks", MASKS], str(tmp_path / "state.npz")
    assert main([*command, "--state", state, "--shard", "1/1"]) == 0
    assert main([*command, "--merge", state]) == 0
    assert main([*command, "--merge", state, "--artifact", "fp32.openvino"]) == 2
    assert "state.npz" in capsys.readouterr().err

"""Artifacts for OpenVINO: made of the source's file, audited by running them, chosen by measurement."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from bundles import onnx_artifact
from quantizing import shorten_races, write_quantized
from support import ASSETS

from denseport.export import build as build_module
from denseport.export.build import build, build_for_this_machine
from denseport.export.graph.compare import quantized
from denseport.export.graph.compare.quantized import quantized_layers, release
from denseport.export.graph.model import read_model, serialise
from denseport.runtime.benchmark import race as race_module
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import MachineError
from denseport.runtime.evaluation.gate import AGREEMENTS
from denseport.runtime.pipeline.network_input import NetworkInputs
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system import machine
from denseport.runtime.system.cpus import has_bf16, has_vnni
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.machine import install_command

IMAGES, MASKS = str(ASSETS / "street/images"), str(ASSETS / "street/annotations")
HERE = ("fp32", "bf16")[: 1 + has_bf16()]
needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this processor has no VNNI")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shorten_races(monkeypatch)


@pytest.mark.parametrize("precision", HERE)
def test_an_artifact_shares_the_sources_file_and_is_audited_as_it_runs(
    sample_copy: Bundle, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    name, path = f"{precision}.openvino", str(sample_copy.path)
    arguments = ["--precision", precision, "--engine", "openvino", "--images", IMAGES]
    assert main(["build", path, *arguments]) == 0
    assert f"{name}: OpenVINO computes model.onnx" in capsys.readouterr().out
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
        (["--engine", "openvino"], "OpenVINO computes a bundle in fp32, bf16 or int8, not in fp16"),
        (["--engine", "openvino", "--precision", "fp8"], "fp32, bf16 or int8, not in fp8"),
        (["--engine", "openvino", "--precision", "int8"], "has no int8 graph"),
        (["--engine", "openvino", "--precision", "int8", "--float-precision", "fp16"], "in fp32 or bf16, not in fp16"),
        (["--precision", "int8", "--float-precision", "bf16"], "--float-precision bf16 goes with --engine openvino"),
        (["--engine", "openvino", "--precision", "fp32", "--output", "mask"], "--output mask does not go with"),
        (["--engine", "openvino", "--precision", "fp32", "--plugin", "on"], "--plugin on does not go with"),
        (["--engine", "openvino", "--precision", "fp32", "--level", "5"], "is a setting of TensorRT engines"),
        (["--engine", "openvino", "--precision", "bf16", "--float-precision", "fp16"], "--float-precision belongs to"),
        (["--for-this-machine"], "compares what it makes with FP32 on images, and none were given"),
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
        assert caught.value.remedy == install_command("openvino")
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


@pytest.fixture
def calibrated(sample_copy: Bundle) -> Bundle:
    """The sample with an INT8 graph, of ranges of one image."""
    image = next(iter(NetworkInputs.of_bundle([next((ASSETS / "street/images").rglob("*.jpg"))], sample_copy.manifest)))
    path = sample_copy.path / "int8.onnx"
    write_quantized(sample_copy.verified("model.onnx"), path, image)
    sample_copy.add("int8.onnx", onnx_artifact({"int8.onnx": sha256_of(path)}, "int8"))
    return sample_copy


@needs_vnni
def test_int8_shares_the_quantized_graph_where_each_layer_is_as_qdq_says(
    calibrated: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_module, "race", lambda sessions, _: {name: [1 / len(name)] for name in sessions})
    monkeypatch.setattr(build_module, "OPENVINO", build_module.OPENVINO[2:])
    monkeypatch.setattr(quantized, "TOGETHER", 24)  # in fewer groups
    assert main(["build", str(calibrated.path), "--for-this-machine", "--images", IMAGES, "--limit", "2"]) == 0
    printed, bundle = capsys.readouterr().out, Bundle(calibrated.path)
    names = ["int8.openvino", "int8.bf16.openvino"][: len(HERE)]
    for name in names:
        artifact = bundle.artifact(name)
        assert (artifact.main, artifact.files) == ("int8.onnx", bundle.artifact("int8.onnx").files)
        assert (artifact.made_of, artifact.precision, artifact.target) == ("int8.onnx", "int8", "openvino")
        layers = artifact.record["layers"]
        assert layers["layers"] > 40 and not layers["floats"] and layers["error"] < layers["allowed"] < 0.2
        assert artifact.record["audit"]["passed"] and artifact.record["verdict"]["accepted"]
        assert f"{name}: PASS" in printed
    assert f"{layers['layers']} of {layers['layers']} INT8 layers computed as Q/DQ says" in printed
    with Segmenter(bundle) as segmenter:
        assert segmenter.artifact == names[-1]
        assert f"CPU, INT8 and {HERE[-1].upper()}" in segmenter.description
    # What shares a file goes with it when it is replaced.
    made = calibrated.path / "made.onnx"
    made.write_bytes(bundle.verified("model.onnx").read_bytes())
    bundle.add(
        "int8.onnx", onnx_artifact({"int8.onnx": sha256_of(made)}, "int8"), [made.replace(made.parent / "int8.onnx")]
    )
    assert [each for each in bundle.manifest.artifacts if each.startswith("int8")] == ["int8.onnx"]


@needs_vnni
def test_a_layer_that_openvino_computes_otherwise_is_named_and_stays_float(
    calibrated: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """An INT8 graph as Denseport wrote it before, in which OpenVINO computes one convolution wrongly."""
    path = calibrated.path / "int8.onnx"
    model = read_model(path)
    for node in model.graph:
        if node.op_type == "Conv" and node.inputs[-1].name.endswith(".no_bias"):  # type: ignore[union-attr]
            node.resize_inputs(2)
    release(model, [layer for layer in quantized_layers(model) if not layer.startswith("decode_head.convs.")])
    path.write_bytes(serialise(model))
    calibrated.add("int8.onnx", onnx_artifact({"int8.onnx": sha256_of(path)}, "int8"))
    wrong, arguments = "decode_head.convs.3.conv/Conv", ["--engine", "openvino", "--images", IMAGES, "--limit", "2"]
    assert main(["build", str(calibrated.path), "--precision", "int8", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "int8.openvino: OpenVINO computes int8.openvino.onnx" in printed and f"stays float: {wrong}: " in printed
    bundle = Bundle(calibrated.path)
    artifact = bundle.artifact("int8.openvino")
    assert list(artifact.record["layers"]["floats"]) == [wrong]
    assert artifact.files == {"int8.openvino.onnx": sha256_of(bundle.verified("int8.openvino"))}
    left = quantized_layers(read_model(bundle.verified("int8.openvino")))
    assert sorted([*left, wrong]) == sorted(quantized_layers(model)) and len(left) == 3


def test_int8_needs_vnni(
    calibrated: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it, OpenVINO's sums of products saturate in 16 bits."""
    from denseport.runtime.backends import openvino

    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    monkeypatch.setattr(machine, "has_vnni", lambda: False)
    with pytest.raises(MachineError, match="computes in INT8, and this processor has no VNNI"):
        build(calibrated, precision="int8", engine="openvino", images=IMAGES)
    assert list(Bundle(calibrated.path).manifest.artifacts) == ["model.onnx", "int8.onnx"]
    monkeypatch.setattr(build_module, "judge_audited", lambda *_: {})
    assert main(["build", str(calibrated.path), "--for-this-machine", "--images", IMAGES]) == 0
    assert "int8.openvino: not made: this processor has no VNNI" in capsys.readouterr().out


def test_without_bf16_only_fp32_is_made(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    monkeypatch.setattr(build_module, "judge_audited", lambda *_: {})
    assert main(["build", str(sample_copy.path), "--for-this-machine", "--images", IMAGES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bf16.openvino: not made: this processor has no BF16 arithmetic")
    assert lines[1].startswith("int8.openvino: not made: ") and lines[2].startswith("int8.bf16.openvino: not made: ")
    assert lines[3].startswith("fp32.openvino: PASS")
    assert lines[-1] == "On such processors model.onnx runs: ONNX Runtime on the CPU"


def test_counts_of_another_artifact_of_the_same_file_are_not_taken_up(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(sample_copy, precision="fp32", engine="openvino", images=IMAGES)
    command, state = ["eval", str(sample_copy.path), "--data", IMAGES, "--masks", MASKS], str(tmp_path / "state.npz")
    assert main([*command, "--state", state, "--shard", "1/1"]) == 0
    assert main([*command, "--merge", state]) == 0
    assert main([*command, "--merge", state, "--artifact", "fp32.openvino"]) == 2
    assert "state.npz" in capsys.readouterr().err

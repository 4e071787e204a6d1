"""Proof is of an arithmetic: what a CPU computes for FP16 in FP32 proves nothing of it. No rebuild loses a proof."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bundles import engine_artifact, proof
from fake_tensorrt import RECORD
from foreign import MEAN, STD, segmenting
from support import ASSETS

from denseport.export import artifacts as build_module
from denseport.export import build as whole_module
from denseport.export.build import build
from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import import_bundle
from denseport.runtime import evaluate
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import InputError

IMAGES = str(ASSETS / "street/images")


@pytest.fixture
def bundle(sample_copy: Bundle) -> Bundle:
    return sample_copy


def test_a_gate_on_a_cpu_leaves_the_caution_about_fp16(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """In what is printed too: nothing says that FP16 was compared."""
    assert main(["build", str(bundle.path)]) == 0
    data = ["--data", str(ASSETS / "street"), "--limit", "2", "--gate", "model.onnx", "--record"]
    assert main(["eval", str(bundle.path), "--artifact", "fp16.onnx", *data]) == 0
    assert "PASS" in (out := capsys.readouterr().out) and "no comparison in FP16" in out
    assert main(["inspect", str(bundle.path)]) == 0
    out = capsys.readouterr().out
    assert ", passed, computed in FP32\n" in out and "not audited in FP16; this does it: denseport build" in out
    photo = str(ASSETS / "street/images/validation/camvid_Seq05VD_f05100.jpg")
    assert main(["run", str(bundle.path), photo, "-o", str(bundle.path / "out"), "--artifact", "fp16.onnx"]) == 0
    assert "warning: fp16.onnx was never compared with FP32 in FP16" in capsys.readouterr().err


def test_a_cpus_fp32_does_not_replace_what_was_measured_in_fp16(bundle: Bundle) -> None:
    build(bundle)
    of_a_gpu = dataclasses.replace(proof("fp16", "accuracy"), machine="NVIDIA A40")
    bundle.note("fp16.onnx", {"accuracy": {"gate": {"passed": False, "reasons": ["5 points lost"]}}}, of_a_gpu)
    found = evaluate(bundle, ASSETS / "street", artifact="fp16.onnx", limit=1, record=True)
    assert any(text.startswith("not recorded: ") and "in FP16 on NVIDIA A40" in text for text in found.warnings)
    artifact = Bundle(bundle.path).artifact("fp16.onnx")
    assert artifact.proof == (of_a_gpu,) and not artifact.record["accuracy"]["gate"]["passed"]


def test_an_audited_artifact_is_not_replaced_by_one_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = segmenting().save(tmp_path / "network.onnx")  # a small one: it is built ten times
    bundle = import_bundle(network, tmp_path / "bundle", Declared(classes=4, mean=MEAN, std=STD, size=(96, 64)))
    path, images = str(bundle.path), ["--images", IMAGES, "--limit", "1"]
    for name, more in (("fp16.onnx", []), ("fp16.mask.onnx", ["--output", "mask"])):
        assert main(["build", path, *more, *images]) == 0
        before, files = Bundle(path).artifact(name), sorted(bundle.path.iterdir())
        capsys.readouterr()
        assert main(["build", path, *more]) == 2
        text = capsys.readouterr().err
        assert f"{name}: was compared already" in text and "audit against fp32 in FP16 (emulated)" in text
        assert "or --force, to lose it" in text
        assert (Bundle(path).artifact(name), sorted(bundle.path.iterdir())) == (before, files)
        assert main(["build", path, *more, *images]) == 0, "the new one is audited too"
        assert f"{name} will be replaced, and what was found about it is lost" in capsys.readouterr().err
        assert Bundle(path).artifact(name).is_compared
        assert main(["build", path, *more, "--force"]) == 0
        assert f"{name} will be replaced" in capsys.readouterr().err
        assert not Bundle(path).artifact(name).is_compared
        assert main(["build", path, *more]) == 0, "nothing is lost any more"


def test_an_engine_that_was_compared_is_not_replaced_before_the_build(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_module, "check_builder", lambda options: None)
    monkeypatch.setattr(build_module, "capability_here", lambda: "sm_86")
    monkeypatch.setattr(build_module, "build_engine", lambda *_, **__: pytest.fail("it was built"))
    there = engine_artifact("absent", RECORD)
    record = {**there.record, "accuracy": {}}
    there = dataclasses.replace(there, proof=(proof("fp16", "accuracy"),), record=record)
    for name, engine in (("fp32.trt.sm_86.engine", "tensorrt"), ("fp32.rtx.any.engine", "tensorrt_rtx")):
        bundle.add(name, there)
        with pytest.raises(InputError, match=f"{name}: was compared already"):
            build(bundle, precision="fp32", engine=engine, plugin="off")

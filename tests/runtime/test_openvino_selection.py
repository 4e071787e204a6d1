"""When artifacts for OpenVINO run unasked; machines are made up, the rules are the real ones."""

from __future__ import annotations

import dataclasses

import pytest
from bundles import verdict

from denseport.runtime import selection
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.system.machine import DISTRIBUTIONS, Gpu, Machine, install_command


@pytest.fixture
def bundle(sample: Bundle) -> Bundle:
    return Bundle(sample.path)


def with_openvino(bundle: Bundle, **ratios: float) -> None:
    """Add artifacts for OpenVINO: how many times as fast as FP32 on ``a processor``, each in a run of its own.

    Args:
        ratios: by precision; "int8_bf16" is INT8 with the rest in BF16.
    """
    artifacts = dict(bundle.manifest.artifacts)
    for kind, ratio in ratios.items():
        precision, _, floats = kind.partition("_")
        name, seconds = f"{kind.replace('_', '.')}.openvino", 7.0 / ratio
        what = {"accepted": ratio > 1, "speed_ratio": ratio, "seconds": {"model.onnx": seconds * ratio, name: seconds}}
        record = {"verdict": verdict(**what, reason=f"{ratio:g} times as fast as model.onnx")}
        floats = floats or ("fp32" if precision == "int8" else precision)
        made = {"precision": precision, "float_precision": floats, "target": "openvino", "made_of": "model.onnx"}
        artifacts[name] = dataclasses.replace(bundle.artifact("model.onnx"), **made, proof=(), record=record)
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)


def cpu(openvino: str | None = "2026.4.1", *, bf16: bool = True, vnni: bool = True) -> Machine:
    packages = {**dict.fromkeys(DISTRIBUTIONS), "openvino": openvino}
    return Machine("Linux", "a processor", 2, 24.0, (), packages, ("CPUExecutionProvider",), bf16, vnni)


GPU = dataclasses.replace(
    cpu(), gpus=(Gpu("NVIDIA A40", "8.6", 46068, "580.0"),), providers=("CUDAExecutionProvider", "CPUExecutionProvider")
)


@pytest.mark.parametrize(
    ("here", "ratios", "chosen", "reasons"),
    [
        (cpu(), {"fp32": 1.2, "bf16": 1.9}, "bf16.openvino", {"fp32.openvino": "bf16.openvino was measured as faster"}),
        (cpu(), {"fp32": 1.2, "bf16": 0.9}, "fp32.openvino", {"bf16.openvino": "not used by itself on this CPU: 0.9"}),
        (cpu(bf16=False), {"fp32": 1.2, "bf16": 1.9}, "fp32.openvino", {"bf16.openvino": "has no BF16 arithmetic"}),
        (cpu(), {"bf16": 1.9, "int8": 1.7, "int8_bf16": 2.3}, "int8.bf16.openvino", {"int8.openvino": "measured as"}),
        (cpu(bf16=False), {"int8": 1.7, "int8_bf16": 2.3}, "int8.openvino", {"int8.bf16.openvino": "has no BF16"}),
        (cpu(vnni=False), {"bf16": 1.9, "int8_bf16": 2.3}, "bf16.openvino", {"int8.bf16.openvino": "has no VNNI"}),
        (cpu(None), {"bf16": 1.9}, "model.onnx", {"bf16.openvino": "OpenVINO is not installed"}),
        (cpu("2024.6.0"), {"bf16": 1.9}, "model.onnx", {"bf16.openvino": "OpenVINO 2024.6.0 is too old"}),
        (
            dataclasses.replace(cpu(), processor="another"),
            {"bf16": 1.9},
            "model.onnx",
            {"bf16.openvino": "measured on a processor, not on another; denseport build --for-this-machine does so"},
        ),
        (
            GPU,
            {"bf16": 1.9},
            "model.onnx",
            {"bf16.openvino": "is made for CPUs, and this machine has a GPU"},
        ),
    ],
)
def test_openvino_runs_unasked_where_it_was_measured_as_faster(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    here: Machine,
    ratios: dict[str, float],
    chosen: str,
    reasons: dict[str, str],
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: here)
    with_openvino(bundle, **ratios)
    found = selection.select_artifact(bundle)
    assert found.name == chosen
    if chosen.endswith("openvino"):
        precision = chosen.removesuffix(".openvino").replace(".", "_")
        assert found.why == f"{ratios[precision]:g} times as fast as model.onnx; OpenVINO on the CPU"
        assert found.providers == ()
    for name, reason in reasons.items():
        assert reason in found.others[name]


def test_openvino_without_a_verdict_is_left_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: cpu())
    with_openvino(bundle, fp32=2.0)
    fast = bundle.manifest.artifacts["fp32.openvino"]
    bundle.manifest.artifacts["fp32.openvino"] = dataclasses.replace(fast, record={})
    found = selection.select_artifact(bundle)
    assert found.name == "model.onnx"
    assert found.others["fp32.openvino"].startswith("OpenVINO runs only when it is asked for: it was not measured")
    assert selection.select_artifact(bundle, "fp32.openvino").name == "fp32.openvino"


TELLS = "denseport build BUNDLE --for-this-machine --images IMAGES"


@pytest.mark.parametrize(
    ("here", "hint"),
    [
        (cpu(), f"OpenVINO, in BF16 too, may be faster here; to find out: {TELLS}"),
        (cpu(bf16=False), f"OpenVINO may be faster here; to find out: {TELLS}"),
        (
            cpu(None),
            f"OpenVINO, in BF16 too, may be faster here; to find out: {install_command('openvino')}, then {TELLS}",
        ),
        (cpu(None, bf16=False), ""),
        (GPU, ""),
    ],
)
def test_a_hint_tells_what_was_not_tried(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, here: Machine, hint: str
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: here)
    assert selection.select_artifact(bundle).hint == hint
    with_openvino(bundle, fp32=0.5)
    assert not selection.select_artifact(bundle).hint, "it was tried on such a processor"
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: dataclasses.replace(here, processor="another"))
    assert selection.select_artifact(bundle).hint == hint


def test_doctor_gives_the_hint_until_it_was_tried(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("denseport.runtime.system.machine.inspect_machine", lambda: cpu(bf16=False))
    assert main(["doctor", str(sample_copy.path)]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"may be faster here; to find out: {TELLS.replace('BUNDLE', str(sample_copy.path))}\n")
    assert "yes  run ONNX models with OpenVINO" in out
    assert "no   compute in BF16 on the CPU: no BF16 arithmetic in this processor" in out
    assert "yes  compute in INT8 with OpenVINO" in out
    with_openvino(sample_copy, fp32=1.2, bf16=1.9)
    for name, artifact in sample_copy.manifest.artifacts.items():
        sample_copy.add(name, artifact)
    assert main(["doctor", str(sample_copy.path)]) == 0
    out = capsys.readouterr().out
    assert "may be faster" not in out and "yes  fp32.openvino (onnx, fp32)" in out
    assert "no   bf16.openvino (onnx, bf16): this processor has no BF16 arithmetic" in out

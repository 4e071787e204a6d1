"""Which artifact runs where; machines are made up, the rules are the real ones."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import pytest
from build_records import build_record
from bundles import engine_artifact, onnx_artifact, proof, verdict

from denseport.runtime import selection
from denseport.runtime.backends.tensorrt_library import load_library
from denseport.runtime.bundle.artifact import Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import Profile
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.cli.main import main
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.system.machine import DISTRIBUTIONS, Gpu, Machine, inspect_machine

H200 = Gpu("NVIDIA H200", "9.0", 143771, "580.0")
A40 = Gpu("NVIDIA A40", "8.6", 46068, "580.0")


def machine(gpu: Gpu | None = None, *, cuda: bool = False, **packages: str) -> Machine:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider") if cuda else ("CPUExecutionProvider",)
    known = dict.fromkeys(("tensorrt", "tensorrt_rtx", "pycuda", "onnxruntime"))
    return Machine("Linux", "a processor", 2, 24.0, (gpu,) if gpu else (), {**known, **packages}, providers)


ANY_SIZE = Profile((1, 3, 32, 32), (1, 3, 512, 683), (1, 3, 2048, 2048))


def engine(version: str = "11.4.0", capability: str = "sm_86", profile: Profile = ANY_SIZE) -> Artifact:
    record = build_record(version=version, gpu="NVIDIA A40", compute_capability=capability, profiles=(profile,))
    return engine_artifact("fp16.engine", record)


@pytest.fixture
def bundle(sample: Bundle) -> Bundle:
    """The sample with an FP16 graph, an INT8 graph and an engine on its list; nothing is opened here."""
    bundle = Bundle(sample.path)
    fp32 = bundle.artifact("model.onnx")
    artifacts = {
        "model.onnx": fp32,
        "fp16.onnx": dataclasses.replace(fp32, precision="fp16", float_precision="fp16", made_of="model.onnx"),
        "int8.onnx": dataclasses.replace(fp32, precision="int8", made_of="model.onnx"),
        "fp16.engine": engine(),
    }
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    return bundle


@pytest.mark.parametrize(
    ("here", "name", "reason"),
    [
        (machine(), "model.onnx", "this machine has no NVIDIA GPU"),
        (machine(A40, tensorrt="11.4.0"), "fp16.engine", None),
        (
            machine(A40, tensorrt="11.2.0"),
            "model.onnx",
            "built with TensorRT 11.4.0 for sm_86; here is 11.2.0 on sm_86",
        ),
        (machine(H200, tensorrt="11.4.0"), "model.onnx", "here is 11.4.0 on sm_90"),
        (machine(H200, cuda=True), "fp16.onnx", "needs tensorrt, which is not installed"),
    ],
)
def test_the_best_artifact_is_taken_and_the_others_have_reasons(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, here: Machine, name: str, reason: str | None
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: here)
    chosen = selection.select_artifact(bundle)
    assert chosen.name == name
    assert set(chosen.others) == set(bundle.manifest.artifacts) - {name}
    assert chosen.others["int8.onnx"].startswith("int8 runs only when it is asked for: it was not measured")
    if reason is not None:
        assert reason in chosen.others["fp16.engine"]
    assert ("an engine that fits this machine" in chosen.why) == name.endswith(".engine")
    on_cuda = name.endswith("onnx") and bool(here.gpus) and len(here.providers) == 2
    assert ("CUDAExecutionProvider" in chosen.providers) == on_cuda


def test_an_engine_that_does_not_take_the_images_is_passed_over(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine(A40, tensorrt="11.4.0"))
    artifacts = bundle.manifest.artifacts
    artifacts["fp16.engine"] = engine(profile=Profile(*[(1, 3, 512, 512)] * 3))
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "model.onnx"
    assert chosen.others["fp16.engine"] == (
        "takes inputs of (1, 3, 512, 512), and images of 4:3 and 3:4 become (1, 3, 160, 213) "
        "under the protocol reference"
    )
    square = parse_protocol("fixed:512x512", bundle.manifest)
    assert selection.select_artifact(bundle, protocol=square).name == "fp16.engine"
    assert selection.select_artifact(bundle, protocol=parse_protocol("native", bundle.manifest)).name == "fp16.engine"
    assert selection.select_artifact(bundle, "fp16.engine").name == "fp16.engine", "asked for by name it is taken"
    # A portrait too must fit.
    artifacts["fp16.engine"] = engine(profile=Profile((1, 3, 160, 160), (1, 3, 160, 213), (1, 3, 160, 1024)))
    assert "become (1, 3, 213, 160)" in selection.select_artifact(bundle).others["fp16.engine"]


def test_what_nothing_compares_with_fp32_is_chosen_with_a_caution(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine(A40, tensorrt="11.4.0"))
    artifacts = bundle.manifest.artifacts
    assert (
        "denseport eval BUNDLE --artifact fp16.engine --data ROOT --gate model.onnx"
        in selection.select_artifact(bundle).caution
    )
    assert (
        selection.select_artifact(bundle, "fp16.engine").caution
        and not selection.select_artifact(bundle, "model.onnx").caution
    )
    plain = artifacts["fp16.engine"]
    artifacts["fp16.engine"] = dataclasses.replace(plain, proof=(proof("fp16"),), record=plain.record | {"audit": {}})
    assert not selection.select_artifact(bundle).caution
    gate = {"passed": False, "reasons": ["3 points below"]}
    artifacts["fp16.engine"] = dataclasses.replace(plain, record=plain.record | {"accuracy": {"gate": gate}})
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "model.onnx" and chosen.others["fp16.engine"] == "failed its gate: 3 points below"


def with_verdict(bundle: Bundle, **values: Any) -> None:
    """Give int8.onnx the record of a verdict in which it won, but for ``values``."""
    reason = "int8.onnx was measured 1.25 times as fast as FP32 here, within its budget"
    seconds = {"model.onnx": 0.5, "int8.onnx": 0.4}
    record = {"verdict": verdict(**{"seconds": seconds, "reason": reason, **values})}
    artifacts = dict(bundle.manifest.artifacts)
    artifacts["int8.onnx"] = dataclasses.replace(artifacts["int8.onnx"], record=artifacts["int8.onnx"].record | record)
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)


def test_int8_is_taken_unasked_where_it_was_measured_as_faster(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine())
    with_verdict(bundle)
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "int8.onnx" and chosen.providers == ("CPUExecutionProvider",)
    assert "1.25 times as fast as FP32 here" in chosen.why
    assert chosen.others["model.onnx"] == "int8.onnx was measured as faster here"
    assert set(chosen.others) == {"model.onnx", "fp16.onnx", "fp16.engine"}


MADE = "made for TensorRT and other ONNX tools"
SLOWER = {"model.onnx": 0.4, "int8.onnx": 0.5}
SLOW = f"0.93 times as fast as FP32; {MADE}"


@pytest.mark.parametrize(
    ("here", "values", "reason"),
    [
        (machine(), {"accepted": False, "reason": SLOW}, f"not used by itself on this CPU: {SLOW}"),
        (machine(), {"machine": "another processor"}, "it was measured on another processor, not on a processor"),
        (
            machine(),
            {"seconds": SLOWER},
            f"CPU: 0.80 times as fast as model.onnx; {MADE}",
        ),
        (machine(), {"seconds": {}}, "was not measured beside model.onnx"),
        # On a GPU there is FP16 to beat, and the processor's verdict says nothing.
        (machine(A40, cuda=True), {}, "it was measured on a processor, not on NVIDIA A40"),
        (machine(A40, cuda=True), {"machine": "NVIDIA A40"}, "was not measured beside fp16.onnx"),
    ],
)
def test_int8_is_passed_over_with_the_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, here: Machine, values: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: here)
    with_verdict(bundle, **values)
    chosen = selection.select_artifact(bundle)
    assert chosen.name == ("fp16.onnx" if here.gpus else "model.onnx")
    assert reason in chosen.others["int8.onnx"]
    assert selection.select_artifact(bundle, "int8.onnx").name == "int8.onnx", "asked for by name it runs"


def test_int8_that_failed_its_gate_is_passed_over(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine())
    with_verdict(bundle)
    artifacts = dict(bundle.manifest.artifacts)
    int8 = artifacts["int8.onnx"]
    gate = {"passed": False, "reasons": ["mIoU 40.00 is 1.920 points below FP32"]}
    artifacts["int8.onnx"] = dataclasses.replace(int8, record={**int8.record, "accuracy": {"gate": gate}})
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "model.onnx"
    assert chosen.others["int8.onnx"] == "failed its gate: mIoU 40.00 is 1.920 points below FP32"


def test_what_was_asked_for_is_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine())
    assert selection.select_artifact(bundle, "fp16.onnx").name == "fp16.onnx"


def test_an_artifact_that_gives_masks_is_refused_by_name(sample_copy: Bundle) -> None:
    sample_copy.add("fp16.mask.onnx", onnx_artifact({"absent": "0" * 64}, "fp16", output="mask"))
    with pytest.raises(InputError, match=r"fp16.mask.onnx gives masks of the network's input") as caught:
        selection.select_artifact(sample_copy, "fp16.mask.onnx")
    assert "an artifact that gives logits" in str(caught.value.remedy)


def test_doctor_says_which_artifacts_no_segmenter_can_run(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = dataclasses.replace(inspect_machine(look_for_gpus=False), gpus=())
    monkeypatch.setattr("denseport.runtime.system.machine.inspect_machine", lambda: here)
    sample_copy.add("fp16.mask.onnx", onnx_artifact({"absent": "0" * 64}, "fp16", output="mask"))
    sample_copy.add("bf16.onnx", onnx_artifact({"absent": "0" * 64}, "bf16"))
    assert main(["doctor", str(sample_copy.path)]) == 0
    out = capsys.readouterr().out
    assert "no   fp16.mask.onnx (onnx, fp16): gives masks" in out and "an artifact that gives logits" in out
    assert "no   bf16.onnx (onnx, bf16): ONNX Runtime has no BF16 operators for CPUs" in out
    assert "yes  model.onnx (onnx, fp32)" in out


def test_bf16_runs_where_a_gpu_is() -> None:
    bf16 = onnx_artifact({"absent": "0" * 64}, "bf16")
    assert selection.why_unsupported(bf16, machine(A40, cuda=True)) == ("", "")
    assert selection.why_unsupported(bf16, machine(cuda=True))[0] and selection.why_unsupported(bf16, machine(A40))[0]


def test_doctor_says_what_is_there_and_how_to_get_the_rest(sample: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(sample.path)]) == 0
    out = capsys.readouterr().out
    assert "yes  run ONNX models on the CPU" in out and "yes  model.onnx (onnx, fp32)" in out
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["cpus"] >= 1
    for ability in found["abilities"]:
        assert not ability["missing"] or "pip install" in ability["remedy"]


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_doctor_and_the_engines_give_one_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    """The extra, which brings what reaches CUDA too, and not TensorRT's package alone."""
    bare = machine(A40, **dict.fromkeys(DISTRIBUTIONS))  # type: ignore[arg-type]  # a GPU, and nothing installed
    monkeypatch.setattr("denseport.runtime.system.machine.inspect_machine", lambda: bare)
    assert main(["doctor", "--json"]) == 0
    abilities = json.loads(capsys.readouterr().out)["abilities"]
    advice = {row["remedy"] for row in abilities if f"no {flavour}" in row["missing"].split(", ")}
    monkeypatch.setitem(sys.modules, flavour, None)
    with pytest.raises(MachineError) as caught:
        load_library.__wrapped__(flavour)  # past its cache
    assert advice == {str(caught.value.remedy).partition(" (")[0]}


def test_of_several_that_were_measured_as_faster_the_fastest_is_taken(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine())
    with_verdict(bundle)
    other = dataclasses.replace(bundle.artifact("int8.onnx"))
    for name, seconds in {"a.int8.onnx": 0.45, "b.int8.onnx": 0.3, "c.int8.onnx": 0.35}.items():
        record = json.loads(json.dumps(other.record))
        text = json.dumps(record).replace("int8.onnx", name).replace("0.4", str(seconds), 1)
        bundle.manifest.artifacts[name] = dataclasses.replace(other, record=json.loads(text))
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "b.int8.onnx"
    assert {chosen.others[name] for name in ("model.onnx", "int8.onnx", "a.int8.onnx", "c.int8.onnx")} == {
        "b.int8.onnx was measured as faster here"
    }


@pytest.mark.parametrize("cuda", [False, True])
def test_an_engine_of_fp16_comes_before_one_of_fp32(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    """With and without CUDA in ONNX Runtime, whose graphs run in another order on a CPU."""
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine(A40, cuda=cuda, tensorrt="11.4.0"))
    wide = dataclasses.replace(engine(), precision="fp32", float_precision="fp32")
    artifacts = {"fp32.engine": wide, **bundle.manifest.artifacts}
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "fp16.engine" and chosen.others["fp32.engine"] == "another one is better"


@pytest.mark.parametrize(("names", "looked"), [(("model.onnx", "fp16.engine"), True), (("model.onnx",), None)])
def test_gpus_are_looked_for_where_any_artifact_is_an_engine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], looked: bool | None
) -> None:
    asked: list[bool | None] = []

    def inspect(*, look_for_gpus: bool | None) -> Machine:
        asked.append(look_for_gpus)
        return machine()

    monkeypatch.setattr(selection, "inspect_machine", inspect)
    artifacts = {name: bundle.manifest.artifacts[name] for name in names}
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    assert selection.select_artifact(bundle).name == "model.onnx" and asked == [looked]


def test_only_the_graph_in_fp32_runs_though_it_failed_its_gate(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is closer to the checkpoint than it; an engine in FP32 is something else."""
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine(A40, tensorrt="11.4.0"))
    failed = {"accuracy": {"gate": {"passed": False, "reasons": ["3 points below"]}}}
    graph = bundle.artifact("model.onnx")
    wide = dataclasses.replace(engine(), precision="fp32", float_precision="fp32")
    artifacts = {
        "model.onnx": dataclasses.replace(graph, record=graph.record | failed),
        "fp32.engine": dataclasses.replace(wide, record=wide.record | failed),
    }
    bundle.manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    chosen = selection.select_artifact(bundle)
    assert chosen.name == "model.onnx" and chosen.others["fp32.engine"] == "failed its gate: 3 points below"

"""Each rule of the selection by itself, on the smallest bundles and machines that can tell it from its neighbours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from build_records import build_record
from bundles import engine_artifact, onnx_artifact, proof, verdict
from hostile import tiny_bundle

from denseport.runtime import selection
from denseport.runtime.bundle.artifact import Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import Profile
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.selection import CPU, CUDA, select_artifact, too_narrow, untried, why_unsupported
from denseport.runtime.system.machine import Gpu, Machine, install_command

A40 = Gpu("NVIDIA A40", "8.6", 46068, "580.0")
H200 = Gpu("NVIDIA H200", "9.0", 143771, "580.0")
SIZES = Profile((1, 3, 32, 32), (1, 3, 32, 43), (1, 3, 64, 64))  # the tiny bundle sees 43 x 32 and 32 x 43
FILE = {"absent": "0" * 64}


def here(*gpus: Gpu, cuda: bool = False, bf16: bool = False, **packages: str) -> Machine:
    known = dict.fromkeys(("tensorrt", "tensorrt_rtx", "openvino"))
    providers = (CUDA, CPU) if cuda else (CPU,)
    return Machine("Linux", "a processor", 2, 24.0, gpus, {**known, **packages}, providers, bf16)


def engine(precision: str = "fp16", profiles: tuple[Profile, ...] = (SIZES,), **fields: Any) -> Artifact:
    record = build_record(version="11.4.0", compute_capability="sm_86", profiles=profiles)
    return replace(engine_artifact("e", record), precision=precision, float_precision=precision, **fields)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny")


def select(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Machine, wanted: str | None = None, **artifacts: Artifact
) -> selection.Selection:
    """The choice where the bundle has these beside its model.onnx; an underscore stands for a point."""
    monkeypatch.setattr(selection, "inspect_machine", lambda **_: machine)
    bundle.manifest.artifacts.update({name.replace("_", "."): each for name, each in artifacts.items()})
    return select_artifact(bundle, wanted)


# What comes first


GPU = here(A40, cuda=True, tensorrt="11.4.0")
FP16, BF16, FP32 = (onnx_artifact(FILE, precision) for precision in ("fp16", "bf16", "fp32"))
FUSED = onnx_artifact(FILE, "fp16", fused=True)


@pytest.mark.parametrize(
    ("machine", "artifacts", "name"),
    [
        (GPU, {"a": FP16, "b": BF16, "c": engine("fp32")}, "c"),  # any engine before any graph
        (GPU, {"c": engine("bf16"), "b": engine("fp32"), "d": engine("fp16")}, "d"),
        (GPU, {"a": engine("fp32"), "d": engine("bf16")}, "d"),
        (GPU, {"a": BF16, "b": FP16}, "b"),
        (GPU, {"a": BF16}, "a"),
        (GPU, {"a": FUSED, "b": FP16}, "b"),  # without the project's kernels
        (GPU, {"b": FP16, "a": FP16}, "a"),  # by name
        (here(), {"a": FP16}, "model.onnx"),
        (here(), {"a": FP32}, "model.onnx"),  # of equals the source
        (here(cuda=True), {"a": FP16}, "model.onnx"),  # ONNX Runtime for GPUs, and no GPU
        (here(A40), {"a": FP16}, "model.onnx"),  # a GPU, and ONNX Runtime for CPUs
    ],
)
def test_what_comes_first(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Machine, artifacts: dict[str, Artifact], name: str
) -> None:
    found = select(bundle, monkeypatch, machine, **artifacts)
    assert found.name == name
    assert found.others.keys() == bundle.manifest.artifacts.keys() - {name}
    on_cuda = machine.gpus and CUDA in machine.providers
    words = {
        "engine": "an engine that fits this machine",
        "onnx": f"ONNX Runtime {'with CUDA' if on_cuda else 'on the CPU'}",
    }
    assert found.why == words[bundle.artifact(name).kind]


@pytest.mark.parametrize(
    ("machine", "artifact", "providers"),
    [
        (GPU, FP32, (CUDA, CPU)),
        (here(), FP32, (CPU,)),
        (here(A40), FP32, (CPU,)),
        (GPU, onnx_artifact(FILE, "int8", target="onnxruntime-cpu"), (CPU,)),
        (here(), onnx_artifact(FILE, "int8", target="onnxruntime-cpu"), (CPU,)),
        (here(), onnx_artifact(FILE, "fp32", target="openvino", made_of="model.onnx"), ()),
        (GPU, engine(), ()),
    ],
)
def test_what_runs_an_artifact_that_was_asked_for(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    artifact: Artifact,
    providers: tuple[str, ...],
) -> None:
    found = select(bundle, monkeypatch, machine, "a", a=artifact)
    assert (found.name, found.providers, found.why, found.others) == ("a", providers, "asked for", {})


# Why the others are passed over


def failed(*reasons: str) -> dict[str, Any]:
    """The record of a gate; without reasons it was passed."""
    return {"accuracy": {"gate": {"passed": not reasons, "reasons": list(reasons)}}}


@pytest.mark.parametrize(
    ("machine", "artifact", "reason"),
    [
        (GPU, onnx_artifact(FILE, "fp16", output="mask"), "gives masks of the network's input, not logits"),
        (here(), BF16, "ONNX Runtime has no BF16 operators for CPUs"),
        (
            GPU,
            onnx_artifact(FILE, "fp32", target="tensorrt"),
            "is made for TensorRT; ONNX Runtime runs it only when it is asked for",
        ),
        (here(), FP16, "not used by itself on a CPU, where it is not faster; made for GPUs"),
        (here(), FP32, "another one is better"),
        (GPU, BF16, "another one is better"),
        (here(A40, tensorrt="11.4.0"), engine("fp32"), "another one is better"),  # no graph, whatever runs graphs
        (GPU, onnx_artifact(FILE, "fp32", target="onnxruntime-cpu"), "is made for CPUs, and this machine has a GPU"),
        (here(A40), onnx_artifact(FILE, "fp32", target="onnxruntime-cpu"), "another one is better"),
        (GPU, onnx_artifact(FILE, "fp16", record={"audit": {"passed": False}}), "failed its audit"),
        (GPU, onnx_artifact(FILE, "fp32", record={"audit": {"passed": True}}), "another one is better"),
        (GPU, onnx_artifact(FILE, "fp16", record=failed("low", "far")), "failed its gate: low; far"),
        (GPU, onnx_artifact(FILE, "fp32", record=failed("low")), "another one is better"),  # nothing is closer
        (GPU, replace(engine("fp32"), record=engine().record | failed("low")), "failed its gate: low"),
        (GPU, onnx_artifact(FILE, "fp16", record=failed()), "another one is better"),
        (GPU, onnx_artifact(FILE, "fp8"), "fp8 runs only when it is asked for: it was not measured on this machine"),
        (GPU, engine("fp32", output="mask"), "gives masks of the network's input, not logits"),
        (
            GPU,
            engine("fp32", (Profile(*[(1, 3, 32, 32)] * 3), Profile(*[(1, 3, 32, 43)] * 3))),
            "takes inputs of (1, 3, 32, 32) or (1, 3, 32, 43), and images of 4:3 and 3:4 become (1, 3, 43, 32) under "
            "the protocol reference",
        ),
    ],
)
def test_why_another_is_passed_over(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Machine, artifact: Artifact, reason: str
) -> None:
    best = engine() if machine.gpus and machine.packages["tensorrt"] else FP16
    found = select(bundle, monkeypatch, machine, a=artifact, best=best)
    assert found.name == ("best" if machine.gpus and best.kind == "engine" else "model.onnx")
    assert found.others["a"].startswith(reason)


def test_one_of_several_profiles_is_enough(bundle: Bundle) -> None:
    protocol = parse_protocol("reference", bundle.manifest)
    landscape, portrait = (Profile(*[(1, 3, *size)] * 3) for size in ((32, 43), (43, 32)))
    assert too_narrow([landscape, portrait], protocol) == ""
    assert too_narrow([portrait], protocol).endswith("become (1, 3, 32, 43) under the protocol reference")
    assert too_narrow([Profile((2, 3, 32, 32), *[(2, 3, 64, 64)] * 2)], protocol)


def test_the_source_is_named_where_nothing_fits(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.manifest.artifacts["model.onnx"] = onnx_artifact(FILE, record={"audit": {"passed": False}})
    assert select(bundle, monkeypatch, here(), a=onnx_artifact(FILE, "int8")).name == "model.onnx"


# Verdicts


def quantized(seconds: dict[str, float], machine: str = "a processor", **values: Any) -> Artifact:
    told = verdict(machine=machine, **{"accepted": True, "reason": "because", **values}, seconds=seconds)
    return onnx_artifact(FILE, "int8", record={"verdict": told})


def test_equally_fast_is_not_faster(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = select(bundle, monkeypatch, here(), a=quantized({"a": 0.5, "model.onnx": 0.5}))
    assert found.name == "model.onnx"
    reason = "not used by itself on this CPU: 1.00 times as fast as model.onnx; made for TensorRT and other ONNX tools"
    assert found.others["a"] == reason
    found = select(bundle, monkeypatch, here(), a=quantized({"a": 0.5, "model.onnx": 0.51, "b": 0.1}))
    assert (found.name, found.why) == ("a", "because; ONNX Runtime on the CPU")


@pytest.mark.parametrize("seconds", [{"a": 0.5}, {"model.onnx": 1.0}, {"b": 0.1}])
def test_both_must_have_been_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]
) -> None:
    found = select(bundle, monkeypatch, here(), a=quantized(seconds))
    assert found.others["a"] == "was not measured beside model.onnx"


def test_a_verdict_is_of_one_kind_of_machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"a": 0.5, "model.onnx": 1.0}
    told = "it was measured on {}, not on {}; denseport calibrate --measure a does so"
    found = select(bundle, monkeypatch, GPU, a=quantized(both))
    assert found.others["a"] == "int8 runs only when it is asked for: " + told.format("a processor", "NVIDIA A40")
    found = select(bundle, monkeypatch, GPU, a=quantized(both, "NVIDIA A40", accepted=False))
    assert found.others["a"] == "not used by itself on this GPU: because"
    found = select(bundle, monkeypatch, GPU, a=quantized(both, "NVIDIA A40"))
    assert (found.name, found.why) == ("a", "because; ONNX Runtime with CUDA")
    # The processor's name counts where the GPU does not compute.
    assert select(bundle, monkeypatch, here(A40), a=quantized(both, "NVIDIA A40")).name == "model.onnx"
    assert select(bundle, monkeypatch, here(A40), a=quantized(both)).name == "a"


def test_the_more_of_its_rivals_time_is_saved_the_better(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in runs of their own, in which the rival took 1 and 4 seconds."""
    slow, fast = quantized({"a": 0.5, "model.onnx": 1.0}), quantized({"b": 1.0, "model.onnx": 4.0})
    assert select(bundle, monkeypatch, here(), a=slow, b=fast).name == "b"


# Cautions and hints


@pytest.mark.parametrize(
    ("artifact", "caution"),
    [
        (FP16, "a was never compared with FP32; this does it: denseport build BUNDLE --precision fp16"),
        (
            onnx_artifact(FILE, "fp16", proof=(proof("fp32"),), record={"audit": {}}),
            "a was never compared with FP32 in FP16; this does it: denseport build BUNDLE --precision fp16",
        ),
        (onnx_artifact(FILE, "fp16", proof=(proof("fp16"),), record={"audit": {}}), ""),
    ],
)
def test_a_caution_says_what_was_never_compared(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, artifact: Artifact, caution: str
) -> None:
    for wanted in ("a", None):
        found = select(bundle, monkeypatch, GPU, wanted, a=artifact).caution
        assert found.startswith(caution) and bool(found) == bool(caution)


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (here(openvino="2026.4.1"), True),
        (here(bf16=True), True),
        (here(), False),
        (here(A40, openvino="2026.4.1"), True),  # which ONNX Runtime does not use
        (here(cuda=True, openvino="2026.4.1"), True),
        (here(A40, cuda=True, openvino="2026.4.1"), False),
    ],
)
def test_a_hint_is_for_machines_that_compute_on_their_processor(bundle: Bundle, machine: Machine, told: bool) -> None:
    artifacts = bundle.manifest.artifacts
    assert bool(untried(bundle.manifest, machine)) is told
    artifacts["int8.onnx"] = quantized({})  # says nothing of OpenVINO
    artifacts["a"] = onnx_artifact(FILE, "fp32", target="openvino", made_of="model.onnx")  # nothing was measured
    assert bool(untried(bundle.manifest, machine)) is told
    record = {"verdict": verdict(machine="another processor")}
    artifacts["b"] = onnx_artifact(FILE, "fp32", target="openvino", made_of="model.onnx", record=record)
    assert bool(untried(bundle.manifest, machine)) is told
    record = json.loads(json.dumps(record).replace("another processor", "a processor"))
    artifacts["b"] = onnx_artifact(FILE, "fp32", target="openvino", made_of="model.onnx", record=record)
    assert not untried(bundle.manifest, machine)


# What a machine cannot run


NEEDED = {"target": "openvino", "made_of": "model.onnx"}
REBUILD = "Build one for this machine: denseport build BUNDLE --precision fp16 --engine tensorrt"


@pytest.mark.parametrize(
    ("artifact", "machine", "reason", "remedy"),
    [
        (FP32, here(), "", ""),
        (FP16, here(), "", ""),
        (BF16, here(A40, cuda=True), "", ""),
        (BF16, here(A40), "ONNX Runtime has no BF16 operators for CPUs", "Run another artifact"),
        (BF16, here(cuda=True), "ONNX Runtime has no BF16 operators for CPUs", "Run another artifact"),
        (onnx_artifact(FILE, "int8", float_precision="bf16"), here(), "ONNX Runtime has no BF16", "Run another"),
        (onnx_artifact(FILE, "bf16", **NEEDED), here(openvino="2026.4.1", bf16=True), "", ""),
        (onnx_artifact(FILE, "fp32", **NEEDED), here(openvino="2026.4.1"), "", ""),
        (onnx_artifact(FILE, "fp32", **NEEDED), here(), "OpenVINO is not installed", "pip install"),
        (onnx_artifact(FILE, "bf16", **NEEDED), here(openvino="2026.4.1"), "this processor has no BF16", "Run another"),
        (onnx_artifact(FILE, "fp32", **NEEDED), here(bf16=True), "OpenVINO is not installed", "pip install"),
        (engine(), here(A40, tensorrt="11.4.0"), "", ""),
        (engine(), here(A40, H200, tensorrt="11.4.0"), "", ""),  # the first GPU computes
        (
            engine(),
            here(H200, A40, tensorrt="11.4.0"),
            "built with TensorRT 11.4.0 for sm_86; here is 11.4.0 on",
            REBUILD,
        ),
        (engine(), here(A40), "needs tensorrt, which is not installed", "See denseport doctor."),
        (engine(), here(tensorrt="11.4.0"), "built with TensorRT 11.4.0 for sm_86; this machine has no", "Run it on"),
    ],
)
def test_what_a_machine_does_not_run(artifact: Artifact, machine: Machine, reason: str, remedy: str) -> None:
    found = why_unsupported(artifact, machine)
    assert [bool(text) for text in found] == [bool(reason)] * 2
    assert found[0].startswith(reason) and found[1].startswith(remedy)


def test_without_onnx_runtime_no_graph_runs() -> None:
    bare = Machine("Linux", "a processor", 2, 24.0, (A40,), {"tensorrt": "11.4.0"}, ())
    assert why_unsupported(FP32, bare) == ("ONNX Runtime is not installed", install_command("onnxruntime"))
    assert why_unsupported(engine(), bare) == ("", "")

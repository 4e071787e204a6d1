"""Which artifact of a bundle runs on this machine, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass

from denseport.runtime.build_record import BuildRecord, mismatch
from denseport.runtime.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.machine import Machine, inspect_machine
from denseport.runtime.manifest import Artifact

__all__ = ["CPU", "CUDA", "Choice", "choose", "obstacle"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FP32 = "model.onnx"
# Among artifacts that run equally well: the narrower the faster, on a GPU. INT8 and FP8 are never taken unasked: they
# are not always faster, and cost accuracy.
ORDER = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Choice:
    """The artifact to run."""

    name: str
    providers: tuple[str, ...]  # of ONNX Runtime; empty for an engine
    why: str
    others: dict[str, str]  # name and reason of each artifact that was passed over


def choose(bundle: Bundle, wanted: str | None = None) -> Choice:
    """The best artifact for this machine: an engine that fits, else ONNX on CUDA, else FP32 on the CPU.

    Args:
        wanted: the artifact that was asked for by name; only how it runs is then left to choose.

    Raises:
        BundleError: there is no such artifact, or an engine's record is damaged.
        InputError: the artifact that was asked for gives masks.
    """
    artifacts = bundle.manifest.artifacts
    engines = any(artifact.kind == "engine" for artifact in artifacts.values())
    machine = inspect_machine(look_for_gpus=engines or None)
    on_gpu = bool(machine.gpus) and CUDA in machine.providers
    if wanted is not None:
        _refuse_masks(wanted, bundle.artifact(wanted))
        return Choice(wanted, _providers(bundle.artifact(wanted), on_gpu), "asked for", {})
    reasons = {name: _why_no_logits(artifact) or obstacle(artifact, machine)[0] for name, artifact in artifacts.items()}
    fitting = [name for name, a in artifacts.items() if not reasons[name] and a.precision in ORDER]
    name = min(fitting, key=lambda each: _rank(artifacts[each], on_gpu), default=FP32)
    chosen = bundle.artifact(name)
    others = {each: reasons[each] or _passed_over(a, on_gpu) for each, a in artifacts.items() if each != name}
    if chosen.kind == "engine":
        why = "an engine that fits this machine"
    else:
        why = "ONNX Runtime with CUDA" if on_gpu else "ONNX Runtime on the CPU"
    return Choice(name, _providers(chosen, on_gpu), why, others)


def _why_no_logits(artifact: Artifact) -> str:
    masks = artifact.record.get("output") == "mask"
    return "gives masks of the network's input, not logits that can be resized to the picture" if masks else ""


def _refuse_masks(name: str, artifact: Artifact) -> None:
    if reason := _why_no_logits(artifact):
        raise InputError(
            f"{name} {reason}",
            "Choose an artifact without .mask in its name; this one is for a session, or for programs of your own.",
        )


def _providers(artifact: Artifact, on_gpu: bool) -> tuple[str, ...]:
    if artifact.kind == "engine":
        return ()
    return (CUDA, CPU) if on_gpu else (CPU,)


def _rank(artifact: Artifact, on_gpu: bool) -> tuple[int, int]:
    is_engine = artifact.kind == "engine"
    # A CPU has no FP16 arithmetic worth the name: there FP32 comes first.
    order = ORDER if on_gpu or is_engine else ORDER[::-1]
    return (0 if is_engine else 1, order.index(artifact.precision))


def _passed_over(artifact: Artifact, on_gpu: bool) -> str:
    if artifact.precision not in ORDER:
        return f"{artifact.precision} runs only when it is asked for"
    if artifact.kind == "onnx" and artifact.precision != "fp32" and not on_gpu:
        return f"{artifact.precision} is not faster on a CPU"
    return "another one is better"


def obstacle(artifact: Artifact, machine: Machine) -> tuple[str, str]:
    """Why an artifact does not run on a machine, and the remedy; two empty strings if it does."""
    if artifact.kind == "onnx":
        if machine.providers:
            return "", ""
        return "ONNX Runtime is not installed", "pip install 'denseport[onnxruntime]'"
    record = BuildRecord.from_dict(artifact.record, "the engine's record")
    if not machine.gpus:
        return f"built with {record.built_for}; here is no NVIDIA GPU", "Run it on a machine with that GPU."
    version = machine.packages[record.flavour]
    if version is None:
        return f"needs {record.flavour}, which is not installed", "See denseport doctor."
    major, minor = machine.gpus[0].compute_capability.split(".")
    reason = mismatch(record, version, (int(major), int(minor)))
    rebuild = f"denseport build BUNDLE --precision {artifact.precision} --engine {record.flavour}"
    return (reason, f"Build one for this machine: {rebuild}") if reason else ("", "")

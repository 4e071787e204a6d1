"""How an artifact is compared with FP32 or with labels: the proof of a comparison, and the command that makes one."""

from __future__ import annotations

from denseport.runtime.bundle.artifact import ANY, FLOATS, FOR_OPENVINO, Artifact, Proof
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.verdict import kind_of
from denseport.runtime.system.clock import timestamp
from denseport.runtime.system.machine import inspect_machine

__all__ = ["comparing_command", "proof_here", "proved"]


def proof_here(
    against: str,
    figures: str,
    float_precision: str,
    *,
    on_gpu: bool = False,
    emulated: bool = False,
    elsewhere: bool = False,
    target: str = ANY,
) -> Proof:
    """The proof of a comparison that was just made. ONNX Runtime computes FP16 in FP32 on a CPU.

    Args:
        against, figures: as in `Proof`.
        float_precision: of the artifact.
        on_gpu: a GPU computed all of it.
        emulated: the CPU ran a graph that rounds as the artifact's own arithmetic does.
        elsewhere: other runs than this one have a share in it, perhaps on other machines.
        target: of the artifact. OpenVINO computes in its type, or not at all.
    """
    if emulated or elsewhere:
        machine = "emulated" if emulated else "several runs" + " on GPUs" * on_gpu
    else:
        machine = kind_of(inspect_machine(look_for_gpus=on_gpu), on_gpu=on_gpu)
    arithmetic = float_precision if on_gpu or emulated or target == FOR_OPENVINO else "fp32"
    return Proof(against, arithmetic, machine, timestamp(), figures)


def proved(artifact: Artifact) -> str:
    """What an artifact was compared with, in words that say what goes with it; empty: nothing."""
    return "; ".join(
        f"{each.figures} against {each.against} in {each.arithmetic.upper()} ({each.machine}), {each.date[:10]}"
        for each in artifact.proof
    )


def comparing_command(name: str, manifest: Manifest) -> str:
    """The command that compares an artifact, to print.

    Raises:
        BundleError: an engine's record is damaged.
    """
    artifact = manifest.artifacts[name]
    if artifact.kind == "engine":
        return _for_engine(name, artifact, manifest.source)
    if "calibration" in artifact.record:
        return f"denseport calibrate BUNDLE --measure {name} --images IMAGES"
    command = f"denseport build BUNDLE --precision {artifact.precision}"
    if artifact.precision not in FLOATS and artifact.float_precision != "fp32":
        command += f" --float-precision {artifact.float_precision}"
    command += " --engine openvino" * (artifact.target == FOR_OPENVINO)
    command += " --output mask" * (artifact.output == "mask") + " --plugin on" * artifact.fused
    return f"{command} --images IMAGES"


def _for_engine(name: str, artifact: Artifact, source: str) -> str:
    if artifact.output == "mask":
        return "building it where it runs, with --images IMAGES"
    record = BuildRecord.from_dict(artifact.record, name)
    height, width = record.profiles[0].optimum[2:]
    protocol = f" --protocol fixed:{width}x{height}" * record.profiles[0].fixed
    return f"denseport eval BUNDLE --artifact {name} --data ROOT{protocol} --gate {source} --record (where it runs)"

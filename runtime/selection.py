"""Which artifact of a bundle runs on this machine, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from denseport.runtime.bundle.artifact import ANY, FOR_CPU, FOR_OPENVINO, MADE_FOR, QUANTIZED, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.comparison import comparing_command
from denseport.runtime.bundle.decode import reading_record
from denseport.runtime.bundle.engine_record import TITLES, BuildRecord, Profile, mismatch
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.bundle.verdict import MachineVerdict, kind_of
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.views import input_sizes
from denseport.runtime.system.machine import Machine, inspect_machine, install_command

__all__ = [
    "CPU",
    "CUDA",
    "Selection",
    "refuse_masks",
    "select_artifact",
    "too_narrow",
    "untried",
    "why_no_logits",
    "why_unsupported",
]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# From fast to slow on a GPU. INT8 and FP8 are not always faster, and cost accuracy: they run by themselves only where a
# verdict on such a machine accepted them.
ORDER = ("fp16", "bf16", "fp32")
CPU_ORDER = ("fp32", "fp16")  # CPUs have no fast FP16 arithmetic, and ONNX Runtime no BF16 operators for them
CPUS_ALONE = (FOR_CPU, FOR_OPENVINO)
FOR_SESSIONS = (
    "Choose an artifact that gives logits (denseport inspect); this one is for a session or your own program."
)


@dataclass(frozen=True)
class Selection:
    """The artifact to run."""

    name: str
    providers: tuple[str, ...]  # of ONNX Runtime; empty for what another library runs
    why: str
    others: dict[str, str]  # name and reason of each artifact that was passed over
    caution: str = ""  # what nobody has shown of it yet, and the command that does
    hint: str = ""  # what may be faster on this processor and was not measured on such, and the command that does


def select_artifact(bundle: Bundle, wanted: str | None = None, protocol: Protocol | None = None) -> Selection:
    """The best artifact for this machine: an engine that fits, else ONNX on CUDA, else FP32 on the CPU.

    A quantized artifact, or one for OpenVINO, takes the place of that one where it was measured on a machine of this
    kind, beside that very artifact, as faster and within its budget. What failed its gate is passed over, and so is an
    engine that does not take ordinary images under the protocol.

    Args:
        wanted: the artifact that was asked for by name; only how it runs is then left to choose.
        protocol: how images will reach the network; default: the bundle's own way.

    Raises:
        BundleError: there is no such artifact, or an engine's record is damaged.
        InputError: the artifact that was asked for gives masks.
    """
    artifacts = bundle.manifest.artifacts
    engines = any(artifact.kind == "engine" for artifact in artifacts.values())
    machine = inspect_machine(look_for_gpus=engines or None)
    on_gpu = bool(machine.gpus) and CUDA in machine.providers
    if wanted is not None:
        artifact = bundle.artifact(wanted)
        refuse_masks(wanted, artifact)
        with reading_record(str(bundle.path)):
            return Selection(wanted, _providers(artifact, on_gpu), "asked for", {}, _caution(wanted, bundle.manifest))
    reasons = _reasons(bundle, machine, on_gpu, protocol or parse_protocol("reference", bundle.manifest))
    fitting = [name for name, a in artifacts.items() if not reasons[name] and not _needs_verdict(a)]
    source = bundle.manifest.source

    def rank(name: str) -> tuple[object, ...]:
        artifact, is_engine = artifacts[name], artifacts[name].kind == "engine"
        order = ORDER if on_gpu or is_engine else CPU_ORDER
        # Of equals the source, then what has no fused nodes.
        return not is_engine, order.index(artifact.precision), name != source, artifact.fused, name

    name = min(fitting, key=rank, default=source)
    with reading_record(str(bundle.path)):
        verdicts = {
            each: _verdict(each, a, name, kind_of(machine, on_gpu=on_gpu), "GPU" if on_gpu else "CPU")
            for each, a in artifacts.items()
            if not reasons[each] and _needs_verdict(a)
        }
    faster = {each: verdict for each, verdict in verdicts.items() if not isinstance(verdict, str)}
    # They were not all measured in one run: what each took of the rival's time there compares.
    chosen = min(faster, key=lambda each: faster[each].seconds[each] / faster[each].seconds[name], default=name)
    others = {
        each: reasons[each] or str(verdicts.get(each) or _passed_over(a, on_gpu))
        for each, a in artifacts.items()
        if each != chosen
    }
    artifact = bundle.artifact(chosen)
    why = _runs_on(artifact, on_gpu)
    if chosen in faster:
        why = f"{faster[chosen].reason}; {why}"
        others |= dict.fromkeys((name, *faster.keys() - {chosen}), f"{chosen} was measured as faster here")
    providers, caution = _providers(artifact, on_gpu), _caution(chosen, bundle.manifest)
    with reading_record(str(bundle.path)):
        return Selection(chosen, providers, why, others, caution, untried(bundle.manifest, machine))


def _runs_on(artifact: Artifact, on_gpu: bool) -> str:
    if artifact.kind == "engine":
        return "an engine that fits this machine"
    library = "OpenVINO" if artifact.target == FOR_OPENVINO else "ONNX Runtime"
    return f"{library} {'with CUDA' if on_gpu else 'on the CPU'}"


def untried(manifest: Manifest, machine: Machine) -> str:
    """What may be faster on this processor and was not measured on such, with the command; empty where nothing is.

    Raises:
        BundleError: the record of an artifact is damaged.
    """
    installed = machine.packages.get("openvino")
    if not (installed or machine.bf16) or (machine.gpus and CUDA in machine.providers):
        return ""
    for name, artifact in manifest.artifacts.items():
        verdict = MachineVerdict.of(artifact, name) if artifact.target == FOR_OPENVINO else None
        if verdict is not None and verdict.machine == kind_of(machine, on_gpu=False):
            return ""
    what = "OpenVINO, in BF16 too," if machine.bf16 else "OpenVINO"
    install = "" if installed else f"{install_command('openvino')}, then "
    return f"{what} may be faster here; to find out: {install}denseport build BUNDLE --for-this-machine --images IMAGES"


def _reasons(bundle: Bundle, machine: Machine, on_gpu: bool, protocol: Protocol) -> dict[str, str]:
    """Why each artifact cannot be chosen; empty where nothing speaks against it."""
    with reading_record(str(bundle.path)):
        return {
            name: why_unsupported(artifact, machine)[0]
            or _why_made_for_others(artifact, on_gpu)
            or (too_narrow(_record_of(artifact).profiles, protocol) if artifact.kind == "engine" else "")
            or _why_not_accurate(artifact)
            for name, artifact in bundle.manifest.artifacts.items()
        }


def _needs_verdict(artifact: Artifact) -> bool:
    """Whether an artifact runs unasked only where it was measured as faster."""
    return artifact.precision not in ORDER or artifact.target == FOR_OPENVINO


def _verdict(name: str, artifact: Artifact, rival: str, here: str, kind: str) -> MachineVerdict | str:
    """The verdict that lets a quantized artifact run instead of ``rival``, or why none does."""
    verdict = MachineVerdict.of(artifact, name)
    what = "OpenVINO" if artifact.target == FOR_OPENVINO else artifact.precision
    if verdict is None:
        return f"{what} runs only when it is asked for: it was not measured on this machine"
    if verdict.machine != here:
        measuring = f"calibrate --measure {name}" if what == artifact.precision else "build --for-this-machine"
        return (
            f"{what} runs only when it is asked for: it was measured on {verdict.machine}, not on "
            f"{here}; denseport {measuring} does so"
        )
    if not verdict.accepted:
        return f"not used by itself on this {kind}: {verdict.reason}"
    if not {name, rival} <= verdict.seconds.keys():
        return f"was not measured beside {rival}"
    if verdict.seconds[name] >= verdict.seconds[rival]:
        ratio, made_for = verdict.seconds[rival] / verdict.seconds[name], MADE_FOR.get(artifact.target, artifact.target)
        return f"not used by itself on this {kind}: {ratio:.2f} times as fast as {rival}; made for {made_for}"
    return verdict


def _caution(name: str, manifest: Manifest) -> str:
    artifact = manifest.artifacts[name]
    if artifact.is_compared:
        return ""
    how = f" in {artifact.float_precision.upper()}" if artifact.proof else ""  # what there is has other arithmetic
    return f"{name} was never compared with FP32{how}; this does it: {comparing_command(name, manifest)}"


def _why_not_accurate(artifact: Artifact) -> str:
    is_fp32 = artifact.kind == "onnx" and artifact.precision == "fp32"  # nothing is closer to the checkpoint
    with reading_record(artifact.main):
        audit = artifact.record.get("audit")
        if audit and not audit["passed"]:
            return "failed its audit"
        gate = artifact.record.get("accuracy", {}).get("gate")
        return "" if gate is None or gate["passed"] or is_fp32 else f"failed its gate: {'; '.join(gate['reasons'])}"


def _record_of(engine: Artifact) -> BuildRecord:
    return BuildRecord.from_dict(engine.record, engine.main)


def too_narrow(profiles: Sequence[Profile], protocol: Protocol) -> str:
    """Why engines of these profiles do not take images of 4:3 or 3:4 under a protocol; empty if they do."""
    channels = protocol.input.shape[1]
    for height, width in input_sizes(protocol):
        if not any((1, channels, height, width) in profile for profile in profiles):
            return (
                f"takes inputs of {' or '.join(map(str, profiles))}, and images of 4:3 and 3:4 become "
                f"(1, {channels}, {height}, {width}) under the protocol {protocol.name}"
            )
    return ""


def _why_made_for_others(artifact: Artifact, on_gpu: bool) -> str:
    if artifact.kind == "onnx" and artifact.target not in (ANY, FOR_CPU, FOR_OPENVINO):
        made_for = TITLES.get(artifact.target, artifact.target)
        return f"is made for {made_for}; ONNX Runtime runs it only when it is asked for"
    return "is made for CPUs, and this machine has a GPU" if on_gpu and artifact.target in CPUS_ALONE else ""


def why_no_logits(artifact: Artifact) -> str:
    """Why an artifact's output cannot be resized to the image; empty if it can."""
    if artifact.output != "mask":
        return ""
    return "gives masks of the network's input, not logits that can be resized to the image"


def refuse_masks(name: str, artifact: Artifact) -> None:
    """Raises InputError for an artifact that gives masks."""
    if reason := why_no_logits(artifact):
        raise InputError(f"{name} {reason}", FOR_SESSIONS)


def _providers(artifact: Artifact, on_gpu: bool) -> tuple[str, ...]:
    if artifact.kind == "engine" or artifact.target == FOR_OPENVINO:
        return ()
    return (CUDA, CPU) if on_gpu and artifact.target != FOR_CPU else (CPU,)


def _passed_over(artifact: Artifact, on_gpu: bool) -> str:
    if artifact.kind == "onnx" and artifact.precision != "fp32" and not on_gpu:
        return "not used by itself on a CPU, where it is not faster; made for GPUs"
    return "another one is better"


def why_unsupported(artifact: Artifact, machine: Machine) -> tuple[str, str]:
    """Why a `Segmenter` of an artifact does not run on a machine, and the remedy; two empty strings if it does."""
    if no_logits := why_no_logits(artifact):
        return no_logits, FOR_SESSIONS
    if artifact.target == FOR_OPENVINO:
        from denseport.runtime.backends.openvino import NO_BF16, NO_VNNI, why_no_openvino

        lacking = NO_BF16 if artifact.float_precision == "bf16" and not machine.bf16 else ""
        lacking = lacking or (NO_VNNI if artifact.precision in QUANTIZED and not machine.vnni else "")
        if lacking:
            return lacking, "Run another artifact, or this one on such a processor."
        return why_no_openvino(machine.packages.get("openvino"))
    if artifact.kind == "onnx":
        return _why_no_onnx(artifact, machine)
    record = _record_of(artifact)
    if not machine.gpus:
        return f"built with {record.built_for}; this machine has no NVIDIA GPU", "Run it on a machine with that GPU."
    version = machine.packages[record.flavour]
    if version is None:
        return f"needs {record.flavour}, which is not installed", "See denseport doctor."
    major, minor = machine.gpus[0].compute_capability.split(".")
    reason = mismatch(record, version, (int(major), int(minor)))
    rebuild = f"denseport build BUNDLE --precision {artifact.precision} --engine {record.flavour}"
    return (reason, f"Build one for this machine: {rebuild}") if reason else ("", "")


def _why_no_onnx(artifact: Artifact, machine: Machine) -> tuple[str, str]:
    if not machine.providers:
        return "ONNX Runtime is not installed", install_command("onnxruntime")
    if artifact.float_precision == "bf16" and not (machine.gpus and CUDA in machine.providers):
        return "ONNX Runtime has no BF16 operators for CPUs", "Run another artifact, or this one where a GPU is."
    return "", ""

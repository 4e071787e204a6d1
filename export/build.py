"""Typed graphs, fused graphs, graphs with masks, and engines, audited against FP32: what ``denseport build`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from denseport.export.artifacts import ArtifactWriter, graph_of
from denseport.export.audit import Audit
from denseport.export.engine.build import BuilderOptions, EngineOptions, check_builder
from denseport.export.engine.profile import named_profiles, profile_of
from denseport.export.graph.precision import PrecisionRecord
from denseport.runtime.backends.openvino import NO_BF16, NO_VNNI, why_no_openvino
from denseport.runtime.benchmark.race import TIMED, judge_audited
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import Shape
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.bundle.verdict import MachineVerdict
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced, sample_evenly
from denseport.runtime.selection import select_artifact, too_narrow
from denseport.runtime.system.arguments import several
from denseport.runtime.system.files import refuse_unwritable
from denseport.runtime.system.machine import Machine, inspect_machine
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Build", "EngineSettings", "build", "build_for_this_machine"]

QUANTIZED = ("int8", "fp8")
LIMIT = 16  # images
# What may be faster on a CPU: name, precision, and what its floats compute in.
OPENVINO = (
    ("fp32.openvino", "fp32", "fp32"),
    ("bf16.openvino", "bf16", "bf16"),
    ("int8.openvino", "int8", "fp32"),
    ("int8.bf16.openvino", "int8", "bf16"),
)
CHOICES = {
    "precision": ("fp32", "fp16", "bf16", *QUANTIZED),
    "float_precision": ("fp32", "fp16", "bf16"),
    "engine": ("onnx", "openvino", "tensorrt", "tensorrt_rtx"),
    "output": ("logits", "mask"),  # logits: what the network gives, also where that is depth
    "plugin": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class EngineSettings(BuilderOptions):
    """How an engine is built; `denseport.export.engine.build.EngineOptions` refuses what a flavour does not have."""

    # Or "fixed:WxH"; or the least, usual and largest input, each (N, 3, H, W).
    profile: str | tuple[Shape, Shape, Shape] = "reference"


@dataclass
class Build:
    """What `build` made. An artifact whose audit failed was not kept, nor was anything made of it."""

    bundle: Path
    artifacts: list[str] = field(default_factory=list)  # by name; where not `passed`, the last was not kept
    passed: bool = True  # each audit that was made
    precision: PrecisionRecord | None = None  # of the typed graph; None: none was written
    details: dict[str, Any] = field(default_factory=dict)  # records and audits, ready for JSON

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport build --json`` prints."""
        return {"bundle": str(self.bundle), "passed": self.passed, **self.details}

    def add(self, kind: str, name: str, audit: Audit | str | None, **details: Any) -> None:
        """Take up an artifact.

        Args:
            kind: "artifact", "variant" or "engine": the key in ``details``.
            audit: None or a reason: there is none.
        """
        self.artifacts.append(name)
        self.passed = not isinstance(audit, Audit) or audit.passed
        found = audit.to_dict() if isinstance(audit, Audit) else audit
        self.details |= {kind: name, **details, "audit" if kind == "artifact" else f"{kind}_audit": found}


def build(
    bundle: Path | str | Bundle,
    *,
    precision: str = "fp16",
    float_precision: str = "fp32",
    engine: str = "onnx",
    output: str = "logits",
    plugin: str = "auto",
    images: Path | str | Sequence[Path | str] = (),
    limit: int = LIMIT,
    settings: EngineSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Build:
    """Write artifacts of a bundle for a precision and an engine. A failed audit is a result, no exception.

    Args:
        precision: "fp32", "fp16" or "bf16"; "int8" and "fp8" take what a calibration wrote.
        float_precision: what the float part of int8 and fp8 computes in: "fp32"; "fp16", or on OpenVINO "bf16".
        engine: "onnx" (the graph alone), "openvino" (which computes a graph of the bundle in "fp32", "bf16" or
            "int8"), "tensorrt" or "tensorrt_rtx".
        output: "logits", which is depth of a depth network, or "mask": a class for each pixel of the network's input.
        plugin: fused upsampling: "on", "off", or "auto": TensorRT keeps the faster, the others do without.
        images: like the application's: folders, files or globs; on them FP16's range is checked and results are
            compared with FP32. None: nothing is audited.
        limit: images to take, spread evenly.
        settings: of the engine.
        force: replace artifacts that were audited by such that are not, when there are no images.

    Raises:
        BuildError, ExportError: there is nothing to type or fuse, or no engine can be built.
        BundleError: the bundle, or the graph that is built on, is missing or altered.
        InputError: no such choice, choices that do not go together, no image, or an audited artifact in the place.
        MachineError: the builder, or the GPU that it needs, is missing.
        OutputError: the bundle cannot be written.
    """
    order = _Order(precision, float_precision, engine, output, plugin)
    bundle, progress = bundle if isinstance(bundle, Bundle) else Bundle(bundle), progress or Silent()
    refuse_unwritable(bundle.path)
    order.check(bundle)
    settings = settings or EngineSettings()
    if (cache := settings.timing_cache) is not None:
        refuse_unwritable(cache.parent, cache.name)
    options = _engine_options(bundle, order, settings)
    if options is not None:
        check_builder(options)
    shown = _images(several("images", images), limit)
    writer, built = ArtifactWriter(bundle, shown, progress, force), Build(bundle.path)
    if engine == "openvino":
        _openvino(writer, order, built)
    if order.typed:
        _typed(writer, order, built)
    if order.variant and built.passed:
        name, fusion, audit = writer.variant(precision, mask=output == "mask", fused=plugin == "on")
        built.add("variant", name, audit, fusion=None if fusion is None else asdict(fusion))
    if options is not None and built.passed:
        _engine(writer, order, options, built)
    return built


def build_for_this_machine(
    bundle: Path | str | Bundle,
    *,
    images: Path | str | Sequence[Path | str],
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Build:
    """Make what may be faster on this processor than FP32 on ONNX Runtime, audit it, and time both in turns.

    That is OpenVINO in FP32, in BF16 where the processor has such arithmetic, and in INT8, with the rest in both,
    where it has VNNI and the bundle was calibrated. Each that passes its audit gets a verdict for processors of this
    kind, by which `Segmenter` chooses. What fails its audit is not kept, and no failure of the whole.

    Args:
        images, limit: as of `build`.

    Raises:
        InputError: no image.
        MachineError: OpenVINO is missing or too old, or the machine has a GPU, which is faster than all of these.
        BundleError, OutputError: as `build`.
    """
    bundle, progress = bundle if isinstance(bundle, Bundle) else Bundle(bundle), progress or Silent()
    refuse_unwritable(bundle.path)
    machine = inspect_machine(look_for_gpus=None)
    reason, remedy = why_no_openvino(machine.packages["openvino"])
    if reason:
        raise MachineError(reason, remedy)
    if machine.gpus:
        raise MachineError("ONNX Runtime runs on this machine's GPU", "Build for it: --precision fp16.")
    shown = _images(several("images", images), limit)
    if not shown:
        raise InputError(
            "--for-this-machine compares what it makes with FP32 on images, and none were given",
            "Give --images like the application's.",
        )
    writer, not_made = ArtifactWriter(bundle, shown, progress), _not_made(bundle, machine)
    audits, layers, kept = dict[str, Any](), dict[str, Any](), list[str]()
    known: dict[str, float] | None = None
    for name, precision, floats in OPENVINO:
        if name in not_made:
            continue
        _, audit, checked = writer.openvino(precision, floats, known)
        assert audit is not None  # there are images
        audits[name] = audit.to_dict()
        kept += [name] * audit.passed
        if checked is not None:
            layers[name], known = checked.to_dict(), checked.floats
    verdicts = dict[str, MachineVerdict]()
    if kept:
        progress.say(f"timing {', '.join(kept)} beside FP32")
        inputs = NetworkInputs.of_bundle(evenly_spaced(shown, TIMED), bundle.manifest)
        verdicts = judge_audited(bundle, kept, list(inputs))
    selection = select_artifact(bundle)
    found = {"audits": audits, "layers": layers, "not_made": not_made}
    found |= {"verdicts": {name: asdict(verdict) for name, verdict in verdicts.items()}}
    return Build(bundle.path, [*audits], details=found | {"chosen": selection.name, "why": selection.why})


def _not_made(bundle: Bundle, machine: Machine) -> dict[str, str]:
    """Why artifacts of `OPENVINO` are not made, by name."""
    uncalibrated = "the bundle has no INT8 graph: denseport calibrate BUNDLE --images DIR writes one"
    no_int8 = NO_VNNI if not machine.vnni else uncalibrated if bundle.manifest.graph("int8") is None else ""
    reasons = {
        name: (no_int8 if precision == "int8" else "") or (NO_BF16 if floats == "bf16" and not machine.bf16 else "")
        for name, precision, floats in OPENVINO
    }
    return {name: reason for name, reason in reasons.items() if reason}


@dataclass(frozen=True)
class _Order:
    """What is to be built; arguments of `build`."""

    precision: str
    float_precision: str
    engine: str
    output: str
    plugin: str

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name.replace('_', ' ')} {value!r} is unknown", f"Choose one of {', '.join(known)}.")

    @property
    def variant(self) -> bool:
        """A graph, not an engine, is to end in masks or to be fused."""
        return self.engine == "onnx" and (self.output == "mask" or self.plugin == "on")

    @property
    def typed(self) -> bool:
        """A graph is to be written that computes in another float type than FP32."""
        return self.engine != "openvino" and (self.precision in ("fp16", "bf16") or self.float_precision != "fp32")

    def _check_openvino(self) -> None:
        if self.precision not in ("fp32", "bf16", "int8"):
            what = f"OpenVINO computes a bundle in fp32, bf16 or int8, not in {self.precision}"
            raise InputError(what, "Give --precision bf16, int8, or fp32.")
        if self.precision == "int8" and self.float_precision == "fp16":
            what = "OpenVINO computes the float part of int8 in fp32 or bf16, not in fp16"
            raise InputError(what, "Give --float-precision bf16, or leave it out.")
        for option, value, default in (("--output", self.output, "logits"), ("--plugin", self.plugin, "auto")):
            if value != default:
                raise InputError(f"{option} {value} does not go with --engine openvino", "Leave it out.")

    def check(self, bundle: Bundle) -> None:
        """Refuse choices that do not go together, or that leave nothing to do."""
        if self.output == "mask" and bundle.manifest.task == "depth":
            raise InputError("--output mask: a depth network gives no classes", "Leave it out.")
        if self.engine == "openvino":
            self._check_openvino()
        elif self.float_precision == "bf16":
            what = "--float-precision bf16 goes with --engine openvino"
            raise InputError(what, "Name that engine, or choose fp16.")
        nothing_else = self.engine == "onnx" and not self.variant and self.float_precision == "fp32"
        if self.precision in QUANTIZED:
            name = graph_of(bundle, self.precision)
            if nothing_else:
                message = f"{name} is the {self.precision.upper()} graph already"
                raise InputError(message, "Choose --float-precision fp16, or an --engine.")
            if self.variant and self.float_precision != "fp32":
                raise InputError(
                    "--float-precision fp16 does not go with --output mask or --plugin on without an engine",
                    "Leave --float-precision out, or name an --engine.",
                )
        elif self.float_precision != "fp32":
            message = f"--float-precision belongs to --precision {' and '.join(QUANTIZED)}"
            raise InputError(message, "Leave --float-precision out.")
        elif self.precision == "fp32" and nothing_else:
            raise InputError(
                "the source is the FP32 graph already",
                "Choose --precision fp16 or bf16, --output mask, --plugin on, or an --engine.",
            )


def _engine_options(bundle: Bundle, order: _Order, settings: EngineSettings) -> EngineOptions | None:
    if order.engine in ("onnx", "openvino"):
        for each in fields(settings):
            value = getattr(settings, each.name)
            if value != each.default and each.name != "verbose":  # which changes no result
                what = f"{each.name.replace('_', ' ')} {value!r} is a setting of TensorRT engines, and none is built"
                raise InputError(what, "Name such an --engine, or leave it out.")
        return None
    if isinstance(settings.profile, str):
        protocol = parse_protocol("reference", bundle.manifest)
        profiles = named_profiles(settings.profile, order.engine, protocol)
    else:
        profiles = (profile_of(*settings.profile),)
    shared = {each.name: getattr(settings, each.name) for each in fields(BuilderOptions)}
    mask, corners, plugin = order.output == "mask", bundle.manifest.align_corners, order.plugin == "on"
    return EngineOptions(order.engine, profiles, mask, corners, plugin, **shared)


def _images(patterns: Sequence[Path | str], limit: int) -> list[Path]:
    if not patterns and limit != LIMIT:
        raise InputError(f"--limit {limit} goes with --images", "Give --images, or leave it out.")
    images = sample_evenly([str(pattern) for pattern in patterns], limit) if patterns else []
    if patterns and not images:  # videos alone; without images nothing is audited
        raise InputError(f"--images {' '.join(map(str, patterns))}: found no image", "Name images, not videos.")
    return images


def _openvino(writer: ArtifactWriter, order: _Order, built: Build) -> None:
    name, audit, layers = writer.openvino(order.precision, order.float_precision)
    kept = writer.bundle.manifest.artifacts.get(name)
    more = {"file": None if kept is None else kept.main} | ({} if layers is None else {"layers": layers.to_dict()})
    built.add("artifact", name, audit, **more)


def _typed(writer: ArtifactWriter, order: _Order, built: Build) -> None:
    """Write the typed graph; as a means to an end, one that is there is taken unless images are given."""
    there = writer.bundle.manifest.graph(order.precision, order.float_precision)
    if (order.variant or order.engine != "onnx") and not writer.images and there is not None:
        built.artifacts.append(there)
        built.details |= {"artifact": there, "reused": True}
        return
    what = (order.float_precision, order.precision) if order.precision in QUANTIZED else (order.precision,)
    name, built.precision, audit = writer.typed(*what)
    built.add("artifact", name, audit, precision=asdict(built.precision))


def _engine(writer: ArtifactWriter, order: _Order, options: EngineOptions, built: Build) -> None:
    bundle, floats = writer.bundle, order.float_precision
    name, record, audit = writer.engine(
        order.precision, options, float_precision=floats, try_plugin=order.plugin == "auto"
    )
    why = too_narrow(record.profiles, parse_protocol("reference", bundle.manifest))
    if why and record.output != "mask":
        height, width = record.profiles[0].optimum[2:]
        run = f"--artifact {name} --protocol fixed:{width}x{height}"
        writer.progress.say(f"{name} {why}: it runs when asked for, {run}")
    file = bundle.path / name
    size = file.stat().st_size if file.exists() else 0
    built.add("engine", name, audit, bytes=size, record=record.to_dict())

"""Typed graphs, fused graphs, graphs with masks, and engines, audited against FP32: what ``denseport build`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from denseport.export.artifacts import build_engine_artifact, build_typed, build_variant, graph_of
from denseport.export.engine.build import EngineOptions, check_builder
from denseport.export.engine.profile import named_profiles, profile_of
from denseport.export.graph.precision import PrecisionRecord
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import Shape
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.network_input import sample_evenly
from denseport.runtime.selection import too_narrow
from denseport.runtime.system.files import refuse_unwritable
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Build", "EngineSettings", "build"]

QUANTIZED = ("int8", "fp8")
CHOICES = {
    "precision": ("fp32", "fp16", "bf16", *QUANTIZED),
    "float_precision": ("fp32", "fp16"),
    "engine": ("onnx", "tensorrt", "tensorrt_rtx"),
    "output": ("logits", "mask"),
    "plugin": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built; `denseport.export.engine.build.EngineOptions` refuses what a flavour does not have."""

    profile: str | tuple[Shape, Shape, Shape] = "reference"  # or "fixed:HxW"; or the least, usual and largest input
    targets: tuple[str, ...] = ()  # RTX: "sm_86", …
    optimization_level: int = 3  # 0 to 5
    workspace: int | None = None  # bytes of scratch memory for a layer; None: no limit
    timing_cache: Path | None = None  # TensorRT: None: one for each GPU
    version_compatible: bool = False  # TensorRT: opens in later releases too
    hardware_compatibility: str = "none"  # TensorRT: or "same_compute_capability", "ampere_plus"
    verbose: bool = False  # tell every line of TensorRT's log


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

    def add(self, name: str, *, passed: bool, **details: Any) -> None:
        """Take up an artifact."""
        self.artifacts.append(name)
        self.passed = passed
        self.details |= details


@dataclass(frozen=True)
class _Order:
    """What is to be built."""

    precision: str
    float_precision: str
    engine: str
    output: str
    plugin: str

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name.replace('_', ' ')} {value!r} is unknown", f"Choose one of {', '.join(known)}.")
        if self.precision == "fp32" and self.engine == "onnx" and not self.variant:
            raise InputError(
                "the source is the FP32 graph already",
                "Choose --precision fp16 or bf16, --output mask, --plugin on, or an --engine.",
            )

    @property
    def variant(self) -> bool:
        """A graph, not an engine, is to end in masks or to be fused."""
        return self.engine == "onnx" and (self.output == "mask" or self.plugin == "on")

    @property
    def typed(self) -> bool:
        """Something is to compute in another float type than FP32."""
        return self.precision not in ("fp32", *QUANTIZED) or self.float_precision != "fp32"


def build(
    bundle: Path | str | Bundle,
    *,
    precision: str = "fp16",
    float_precision: str = "fp32",
    engine: str = "onnx",
    output: str = "logits",
    plugin: str = "auto",
    images: Sequence[Path | str] = (),
    limit: int = 16,
    settings: EngineSettings | None = None,
    progress: Progress | None = None,
) -> Build:
    """Write artifacts of a bundle for a precision and an engine. A failed audit is a result, no exception.

    Args:
        precision: "fp32", "fp16" or "bf16"; "int8" and "fp8" take what a calibration wrote.
        float_precision: what the float part of int8 and fp8 computes in: "fp32" or "fp16".
        engine: "onnx" (the graph alone), "tensorrt" or "tensorrt_rtx".
        output: "logits", or "mask": a class for each pixel of the network's input.
        plugin: fused upsampling: "on", "off", or "auto": TensorRT keeps the faster, the others do without.
        images: like the application's: folders, files or globs; on them FP16's range is checked and results are
            compared with FP32. None: nothing is audited.
        limit: images to take, spread evenly.
        settings: of the engine.

    Raises:
        BuildError, ExportError: there is nothing to type or fuse, or no engine can be built.
        BundleError: the bundle, or the graph that is built on, is missing or altered.
        InputError: no such choice, choices that do not go together, or no image.
        MachineError: the builder, or the GPU that it needs, is missing.
        OutputError: the bundle cannot be written.
    """
    order = _Order(precision, float_precision, engine, output, plugin)
    bundle, progress = bundle if isinstance(bundle, Bundle) else Bundle(bundle), progress or Silent()
    refuse_unwritable(bundle.path)
    _check_float(bundle, order)
    settings = settings or EngineSettings()
    options = _engine_options(bundle, order, settings) if engine != "onnx" else None
    if options is not None:
        check_builder(options)
    shown, built = _images(images, limit), Build(bundle.path)
    if order.typed:
        _typed(bundle, order, shown, built, progress)
    if order.variant and built.passed:
        _variant(bundle, order, shown, built, progress)
    if options is not None and built.passed:
        _engine(bundle, order, options, shown, built, progress, verbose=settings.verbose)
    return built


def _check_float(bundle: Bundle, order: _Order) -> None:
    """A quantized graph comes from a calibration; here its float part is typed, or an engine is built of it."""
    if order.precision not in QUANTIZED:
        if order.float_precision != "fp32":
            raise InputError(
                f"--float-precision belongs to --precision {' and '.join(QUANTIZED)}", "Leave --float-precision out."
            )
        return
    name = graph_of(bundle, order.precision)
    if order.variant and order.float_precision != "fp32":
        raise InputError(
            "--float-precision fp16 does not go with --output mask or --plugin on without an engine",
            "Leave --float-precision out, or name an --engine.",
        )
    if order.engine == "onnx" and not order.variant and order.float_precision == "fp32":
        raise InputError(
            f"{name} is the {order.precision.upper()} graph already",
            "Choose --float-precision fp16, or an --engine.",
        )


def _engine_options(bundle: Bundle, order: _Order, settings: EngineSettings) -> EngineOptions:
    if isinstance(settings.profile, str):
        protocol = parse_protocol("reference", bundle.manifest)
        profiles = named_profiles(settings.profile, order.engine, protocol)
    else:
        profiles = (profile_of(*settings.profile),)
    return EngineOptions(
        order.engine,
        profiles,
        targets=settings.targets,
        optimization_level=settings.optimization_level,
        workspace=settings.workspace,
        version_compatible=settings.version_compatible,
        hardware_compatibility=settings.hardware_compatibility,
        timing_cache=settings.timing_cache,
        mask=order.output == "mask",
        plugin=order.plugin == "on",
    )


def _images(patterns: Sequence[Path | str], limit: int) -> list[Path]:
    if not patterns:
        return []
    images = sample_evenly([str(pattern) for pattern in patterns], limit)
    if not images:  # videos alone; without images nothing is audited
        raise InputError(f"--images {' '.join(map(str, patterns))}: there is not an image", "Name images, not videos.")
    return images


def _typed(bundle: Bundle, order: _Order, images: list[Path], built: Build, progress: Progress) -> None:
    """Write the typed graph; as a means to an end, one that is there is taken unless images are given."""
    quantized = order.precision if order.precision in QUANTIZED else None
    there = bundle.manifest.graph(order.precision, order.float_precision)
    if (order.variant or order.engine != "onnx") and not images and there is not None:
        built.add(there, passed=True, artifact=there, reused=True)
        return
    precision = order.float_precision if quantized else order.precision
    name, record, audit = build_typed(bundle, precision, images, quantized=quantized, progress=progress)
    built.precision, passed = record, audit is None or audit.passed
    found = None if audit is None else audit.to_dict()
    built.add(name, passed=passed, artifact=name, precision=asdict(record), audit=found)


def _variant(bundle: Bundle, order: _Order, images: list[Path], built: Build, progress: Progress) -> None:
    """Write the graph with the output, or with the fused nodes, that were asked for."""
    mask, fused = order.output == "mask", order.plugin == "on"
    name, fusion, audit = build_variant(bundle, order.precision, images, mask=mask, fused=fused, progress=progress)
    found = None if audit is None else audit.to_dict()
    record = None if fusion is None else asdict(fusion)
    built.add(name, passed=audit is None or audit.passed, variant=name, fusion=record, variant_audit=found)


def _engine(
    bundle: Bundle,
    order: _Order,
    options: EngineOptions,
    images: list[Path],
    built: Build,
    progress: Progress,
    *,
    verbose: bool,
) -> None:
    name, record, audit = build_engine_artifact(
        bundle,
        order.precision,
        options,
        images,
        rest=order.float_precision,
        try_plugin=order.plugin == "auto",
        verbose=verbose,
        progress=progress,
    )
    file = bundle.path / name
    why = too_narrow(record.profiles, parse_protocol("reference", bundle.manifest))
    if why and record.output == "logits":
        height, width = record.profiles[0].optimum[2:]
        progress.say(f"{name} {why}: it runs when asked for, --artifact {name} --protocol fixed:{height}x{width}")
    built.add(
        name,
        passed=isinstance(audit, str) or audit.passed,
        engine=name,
        bytes=file.stat().st_size if file.exists() else 0,
        record=record.to_dict(),
        engine_audit=audit if isinstance(audit, str) else audit.to_dict(),
    )

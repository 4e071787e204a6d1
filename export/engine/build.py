"""From an ONNX file to an engine, for TensorRT and TensorRT-RTX alike.

The network is strongly typed: it computes in the graph's own types, which passes over the graph have set before.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError

from denseport.export.engine.cards import architectures
from denseport.export.engine.errors import builder_error, parser_error
from denseport.export.engine.progress import STEPS, monitor
from denseport.export.engine.types import inspect_engine, onnx_types
from denseport.export.errors import BuildError
from denseport.export.graph.fold import fold
from denseport.export.graph.fusion import fuse, fused_nodes
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import PROTOBUF_LIMIT, weight_bytes
from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.backends.cuda.driver import Device, open_cuda
from denseport.runtime.backends.tensorrt_library import Library, LogLine, load_library, release
from denseport.runtime.bundle.engine_record import PORTABLE_RTX, TITLES, BuildRecord, Profile, sm_name
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.system.arguments import optional_path
from denseport.runtime.system.files import cache_folder, sha256_of, write_atomic
from denseport.runtime.system.machine import proc_values
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = [
    "NO_PLUGINS",
    "BuilderOptions",
    "EngineOptions",
    "build_engine",
    "capability_here",
    "check_builder",
    "default_timing_cache",
]

HARDWARE = ("none", "same_compute_capability", "ampere_plus")
NO_PLUGINS = "TensorRT-RTX takes no plugins"
FIXED_PLUGINS = (11, 2)  # the release whose quick plugins take integer attributes from NumPy 2.4 on
NO_CACHE = "TensorRT-RTX has none"  # "Timing cache operations are no-ops" since 1.2


@dataclass(frozen=True, kw_only=True)
class BuilderOptions:
    """How an engine is built, whatever it gives."""

    targets: tuple[str, ...] = ()  # RTX: "sm_86", or a card, "rtx4090"; empty: `PORTABLE_RTX`
    optimization_level: int = 3  # 0 to 5: how long TensorRT looks for faster kernels
    workspace: int | None = None  # bytes of scratch memory for a layer; None: all the GPU has
    version_compatible: bool = False  # TensorRT: opens in later releases too, at some cost of speed
    hardware_compatibility: str = "none"  # TensorRT: one of HARDWARE
    timing_cache: Path | None = None  # TensorRT: default: one for each GPU and release in the user's cache folder
    verbose: bool = False  # tell every line of TensorRT's log

    def __post_init__(self) -> None:
        object.__setattr__(self, "timing_cache", optional_path("timing_cache", self.timing_cache))


@dataclass(frozen=True)
class EngineOptions(BuilderOptions):
    """What is built, and how.

    Raises:
        InputError: an option that the flavour does not have, or a card that is not known.
    """

    flavour: str  # "tensorrt" or "tensorrt_rtx"
    profiles: tuple[Profile, ...]  # `denseport.export.engine.profile.named_profiles`
    mask: bool = False  # the engine gives class masks (`denseport.export.graph.mask`) instead of logits
    align_corners: bool = False  # of the mask's resize (the manifest's)
    plugin: bool = False  # TensorRT: fuse what the project's plugin computes (`denseport.export.graph.fusion`)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", architectures(self.targets))
        for refused, message, remedy in self._refusals():
            if refused:
                raise InputError(message, remedy)

    def _refusals(self) -> Iterator[tuple[bool, str, str]]:
        """For each rule whether the options break it, the message, and the remedy."""
        level, workspace, hardware = self.optimization_level, self.workspace, self.hardware_compatibility
        yield self.flavour not in TITLES, f"no engine flavour {self.flavour!r}", f"Choose one of {', '.join(TITLES)}."
        yield not self.profiles, "no optimization profile", "Give at least one, say reference."
        yield not 0 <= level <= 5, f"optimization level {level} is not between 0 and 5", "Give one of 0 to 5."
        too_small = workspace is not None and workspace < 1
        yield too_small, f"a workspace of {workspace} bytes is too small", "Give 1 byte or more, or None."
        unknown = f"no hardware compatibility {hardware!r}"
        yield hardware not in HARDWARE, unknown, f"Choose one of {', '.join(HARDWARE)}."
        if self.flavour == "tensorrt":
            message = "TensorRT builds for the GPU that it runs on; it takes no targets"
            yield bool(self.targets), message, "Build there, or use --engine tensorrt_rtx."
            return
        message = "a TensorRT-RTX engine opens only in the release that built it"
        remedy = "Leave --version-compatible out, and build again for each release."
        yield self.version_compatible, message, remedy
        remedy = f"Name the GPUs with --target; without, the engine runs on {', '.join(PORTABLE_RTX)}."
        yield hardware != "none", "TensorRT-RTX has no hardware compatibility level", remedy
        yield self.timing_cache is not None, "TensorRT-RTX has no timing cache", "Leave --timing-cache out."
        yield self.plugin, NO_PLUGINS, "Leave out --plugin on, or use --engine tensorrt."


def check_builder(options: EngineOptions) -> None:
    """Refuse before any work what the builder that is installed here could not do after it.

    Raises:
        InputError: a target that this TensorRT does not know.
        MachineError: TensorRT is missing, cannot be loaded, or is too old.
    """
    library = load_library(options.flavour)
    for target in options.targets:
        _capability(library.trt, target)


def build_engine(
    model: Path,
    engine: Path,
    options: EngineOptions,
    *,
    progress: StepCallback = no_steps,
    verbose: Callable[[str], None] | None = None,
) -> BuildRecord:
    """Build an engine and write it, whole or not at all.

    The graph gets its argmax first, if the engine is to give masks; then it is folded, if the profile is one fixed size
    (`denseport.export.graph.fold`); fusing comes last. A graph that is fused already needs no option for it.

    Args:
        model: ONNX; its external data lies beside it.
        engine: the file to write.
        progress: told the steps done, all of them, and the phase; what it raises stops the build.
        verbose: given every line of TensorRT's log.

    Raises:
        BuildError: TensorRT cannot read the graph or make an engine of it, or the profile does not fit it.
        ExportError: there is nothing to fuse, or a mask is asked of a graph that ends in one.
        InputError: a target that this TensorRT does not know.
        MachineError: TensorRT or the GPU that it builds on is missing, or memory ran out.
        OutputError: ``engine`` cannot be written.
    """
    library = load_library(options.flavour)
    device = _device()
    started = time.monotonic()
    digest = sha256_of(model)
    with library.log.collect(verbose) as lines, _peak_memory() as peak:
        with _prepared(model, options) as (source, about):
            plugin = _register_plugin(library) if about["fused"] else "off"
            plan, cache = _build(library, source, model.name, options, device, progress, lines)
        write_atomic(engine, plan)
        built, note = _types_built(library, plan, device, options)
    return BuildRecord(
        flavour=library.flavour,
        version=library.version,
        cuda=library.cuda,
        driver=device.driver if device else None,
        gpu=device.name if device else None,
        compute_capability=sm_name(device.capability) if device else None,
        targets=(options.targets or PORTABLE_RTX) if options.flavour == "tensorrt_rtx" else (),
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        profiles=options.profiles,
        optimization_level=options.optimization_level,
        workspace=options.workspace,
        timing_cache=cache,
        types_built=built,
        types_built_note=note,
        onnx_sha256=digest,
        engine_sha256=sha256_of(engine),
        seconds=round(time.monotonic() - started, 2),
        peak_host_bytes=peak(),
        log=tuple(dict.fromkeys(str(line) for line in lines)),
        plugin=plugin,
        **about,
    )


def capability_here() -> str | None:
    """Of the GPU here, such as "sm_86"; None without one."""
    device = _device()
    return None if device is None else sm_name(device.capability)


def _device() -> Device | None:
    """The GPU here; None without one: TensorRT-RTX builds all the same."""
    try:
        return open_cuda().device
    except MachineError:
        return None


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], int | None]]:
    """Afterwards: the largest resident size of this process in the block, where Linux tells it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (man 5 proc)
    except OSError:
        yield lambda: None
        return
    yield lambda: next((int(value.split()[0]) * 1024 for value in proc_values("self/status", "VmHWM")), None)


@contextlib.contextmanager
def _prepared(model: Path, options: EngineOptions) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file to parse, ``model`` itself if nothing is to be changed, and what the record says of the graph."""
    try:
        graph = ir.load(model)
    except DecodeError as err:
        raise BuildError(f"{model}: no ONNX model: {err}", "Export or import it again.") from err
    fixed = len(options.profiles) == 1 and options.profiles[0].fixed
    changed = options.mask or fixed or options.plugin
    if changed:
        ir.external_data.load_to_model(graph)  # it is written elsewhere than beside its external data
    if options.mask:
        append_mask(graph, align_corners=options.align_corners)
    if fixed:
        fold(graph, options.profiles[0].optimum)
    if options.plugin:
        fuse(graph)
    about: dict[str, Any] = {"types_asked": onnx_types(graph), "fused": fused_nodes(graph)}
    about |= {"output": str(graph.graph.outputs[0].name), "folded": fixed}
    with tempfile.TemporaryDirectory(prefix="denseport-") as folder:
        path = Path(folder) / model.name if changed else model
        if changed:
            ir.save(graph, path, external_data=f"{model.name}.data" if weight_bytes(graph) > PROTOBUF_LIMIT else None)
        del graph  # its weights need not stay in memory during the build
        yield path, about


def _register_plugin(library: Library) -> str:
    """Register the kernels of a fused graph with TensorRT; returns the record's ``plugin``."""
    if library.flavour == "tensorrt_rtx":
        return f"inlined: {NO_PLUGINS}"
    if release(library.version) < FIXED_PLUGINS and release(np.__version__) >= (2, 4):
        raise MachineError(
            f"quick plugins of TensorRT {library.version} do not work with NumPy {np.__version__}",
            "pip install 'numpy<2.4', or TensorRT 11.2 or newer; or build with --plugin off.",
        )
    compile_ptx()  # TensorRT would call it, and swallow the reason of a failure
    try:
        importlib.import_module("denseport.export.plugin.tensorrt_plugin")
    except (ImportError, AttributeError) as err:
        raise MachineError(
            f"TensorRT {library.version} takes no quick plugins: {err}",
            "Install a newer TensorRT, or build with --plugin off.",
        ) from err
    return "on"


def _build(
    library: Library,
    source: Path,
    name: str,
    options: EngineOptions,
    device: Device | None,
    progress: StepCallback,
    lines: deque[LogLine],
) -> tuple[Any, str]:
    """The serialized engine, as a buffer, and the timing cache's file, or why there is none."""
    trt = library.trt
    try:
        builder = trt.Builder(library.logger)
    except (TypeError, RuntimeError) as err:  # pybind's answer to a null pointer from C++
        raise builder_error(library, lines, name, options.workspace) from err
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    progress(0, STEPS, "reading the graph")
    if not parser.parse_from_file(str(source)):
        raise parser_error(library, parser, name)
    config = builder.create_builder_config()
    _add_profiles(builder, network, config, options.profiles, name)
    _configure(trt, config, options)
    cache = None
    if library.flavour == "tensorrt":
        cache = options.timing_cache or default_timing_cache(library, device)
        _load_timing_cache(config, cache)
    watcher = config.progress_monitor = monitor(trt, progress)  # TensorRT holds no reference of its own
    plan = builder.build_serialized_network(network, config)
    if watcher.error is not None:
        raise watcher.error
    if plan is None:
        raise builder_error(library, lines, name, options.workspace)
    if cache is not None:
        write_atomic(cache, bytes(memoryview(config.get_timing_cache().serialize())))
    return memoryview(plan), str(cache or NO_CACHE)


def _add_profiles(builder: Any, network: Any, config: Any, profiles: tuple[Profile, ...], name: str) -> None:
    tensor = network.get_input(0)
    declared = tuple(tensor.shape)
    for profile in profiles:
        for have, low, high in zip(declared, profile.minimum, profile.maximum, strict=True):
            if have not in (-1, low) or have not in (-1, high):
                raise BuildError(
                    f"{name}: its input {tensor.name} is {declared}; the profile asks for {profile}",
                    "Choose a profile within the input's shape; -1 is any size.",
                )
        entry = builder.create_optimization_profile()
        entry.set_shape(tensor.name, profile.minimum, profile.optimum, profile.maximum)
        if config.add_optimization_profile(entry) < 0:
            raise BuildError(f"{name}: TensorRT refused the profile {profile}")


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector does not tell types
    config.clear_flag(trt.BuilderFlag.TF32)  # which is on by default: FP32 would be multiplied with 10 bits
    if options.flavour == "tensorrt_rtx":
        # The runtime gives each context its memory; with less than this promise no run can be recorded as a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(_capability(trt, target), index)


def _capability(trt: Any, target: str) -> Any:
    known = {name.replace("SM", "sm_"): name for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)}
    if target not in known:
        raise InputError(
            f"TensorRT-RTX {trt.__version__} has no target {target!r}",
            f"Give --target some of {', '.join(sorted(known))}; for another GPU build on it, with --engine tensorrt.",
        )
    return getattr(trt.ComputeCapability, known[target])


def _load_timing_cache(config: Any, file: Path) -> None:
    """Give a build the kernel timings of earlier ones; they hold for one GPU, flavour and release."""
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU or release after all: start anew
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def default_timing_cache(library: Library, device: Device | None) -> Path:
    """``$XDG_CACHE_HOME/denseport/timing/<flavour>-<version>-<gpu>.cache``."""
    gpu = re.sub(r"\W+", "-", f"{device.name}-{sm_name(device.capability)}") if device else "no-gpu"
    folder = cache_folder("timing", otherwise="Name a file with --timing-cache FILE.")
    return folder / f"{library.flavour}-{library.version}-{gpu}.cache"


def _types_built(
    library: Library, plan: Any, device: Device | None, options: EngineOptions
) -> tuple[dict[str, int] | None, str | None]:
    """The engine's layers by type, or why they are not known."""
    if device is None:
        return None, "opening an engine takes a GPU, and there is none here"
    if options.targets and sm_name(device.capability) not in options.targets:
        return None, f"the engine is for {', '.join(options.targets)}, here is {sm_name(device.capability)}"
    try:
        return inspect_engine(library, plan, host_code=options.version_compatible), None
    except MachineError as err:
        return None, err.message

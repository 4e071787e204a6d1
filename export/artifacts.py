"""Artifacts made of a bundle's graphs: written, audited against FP32, and entered only if they pass.

Each method that builds returns the artifact's name, what was done, and the audit. Without images there is no audit;
an artifact whose audit failed is not kept. `denseport.export.build.build` says what they raise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir

from denseport.export.audit import Audit, audit_engine, audit_graph, audit_session
from denseport.export.engine.build import NO_PLUGINS, EngineOptions, build_engine, capability_here
from denseport.export.engine.race import race
from denseport.export.errors import BuildError, ExportError
from denseport.export.graph.compare.quantized import LayerCheck, check_layers, part_concatenations, release
from denseport.export.graph.fusion import FusionRecord, fuse
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import MASK, read_model, save_model, serialise
from denseport.export.graph.precision import PrecisionRecord, set_types
from denseport.export.graph.probe import observe
from denseport.runtime.backends.openvino import OpenVinoSession
from denseport.runtime.backends.session import Session
from denseport.runtime.backends.tensorrt import why_not
from denseport.runtime.bundle.artifact import ANY, FLOATS, FOR_OPENVINO, FOR_TENSORRT, QUANTIZED, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.comparison import proof_here, proved
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.errors import BundleError, InputError, MachineError
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced
from denseport.runtime.system.files import sha256_of, work_folder
from denseport.runtime.system.progress import Progress

__all__ = ["ArtifactWriter", "graph_of"]

Candidate: TypeAlias = tuple[Path, BuildRecord]

CHECKED = 2  # images that layers are compared on


@dataclasses.dataclass(frozen=True)
class ArtifactWriter:
    """Makes artifacts of a bundle and enters them."""

    bundle: Bundle
    images: Sequence[Path]  # on which FP16's range is checked and what was made is audited; none: nothing is
    progress: Progress
    force: bool = False  # replace an audited artifact though there are no images

    def typed(self, precision: str, quantized: str | None = None) -> tuple[str, PrecisionRecord, Audit | None]:
        """Write ``fp16.onnx`` or ``bf16.onnx``, or ``int8.fp16.onnx``: a quantized graph whose float part is typed.

        Args:
            quantized: "int8" or "fp8": type the float part of that graph of the bundle.
        """
        source, images = graph_of(self.bundle, quantized or "fp32"), self.images
        name = f"{quantized}.{precision}.onnx" if quantized else f"{precision}.onnx"
        self._say_what_is_lost(name, images)
        path = self.bundle.verified(source)
        self.progress.say(f"typing {name}" + (f"; images to observe ranges on: {len(images)}" if images else ""))
        ranges = observe(path, NetworkInputs.of_bundle(images, self.bundle.manifest)) if images else None
        model = read_model(path)
        record = set_types(model, precision, ranges)
        if not record.nodes.get(precision):
            raise ExportError(f"{name}: no node computes in {precision}", "Look at --explain-precision.")
        what: dict[str, Any] = {"precision": quantized or precision, "float_precision": precision}
        what |= {"target": FOR_TENSORRT if quantized else ANY, "record": {"precision": dataclasses.asdict(record)}}
        return name, record, self._write_graph(model, name, source, **what)

    def variant(self, precision: str, *, mask: bool, fused: bool) -> tuple[str, FusionRecord | None, Audit | None]:
        """Write the graph of that precision with masks as its output, or fused, or both: ``fp16.mask.fused.onnx``."""
        manifest, source = self.bundle.manifest, graph_of(self.bundle, precision)
        name = ".".join([precision, *["mask"] * mask, *["fused"] * fused, "onnx"])
        self._say_what_is_lost(name, self.images)
        model = read_model(self.bundle.verified(source))
        self.progress.say(f"writing {name}")
        if mask:
            append_mask(model, align_corners=manifest.align_corners)
        fusion = fuse(model) if fused else None
        record = {"fusion": dataclasses.asdict(fusion)} if fusion is not None else {}
        what = {"precision": precision, "output": MASK if mask else manifest.output, "fused": fused, "record": record}
        return name, fusion, self._write_graph(model, name, source, **what)

    def openvino(
        self, precision: str, float_precision: str = "fp32", known: Mapping[str, float] | None = None
    ) -> tuple[str, Audit | None, LayerCheck | None]:
        """Enter ``fp32.openvino``, ``bf16.openvino``, ``int8.openvino`` or ``int8.bf16.openvino``.

        It shares the source's file, or ``int8.onnx``. Where OpenVINO computes a layer of that otherwise than its Q/DQ
        says, the artifact has a file of its own, in a form that it computes right, or with such layers in float. Where
        it is there already, a new audit takes the place of the old one, and what else was found about it stays. If
        that one failed, the artifact is never chosen.

        Args:
            float_precision: of INT8's float part: "fp32" or "bf16".
            known: the layers in question, with their errors, as the other such artifact has just shown; None: find
                them.

        Returns:
            Last how INT8's layers compared, where there are such.
        """
        bundle, images, quantized = self.bundle, self.images, precision in QUANTIZED
        floats = float_precision if quantized else precision
        name = ".".join([precision, *[floats] * (quantized and floats != "fp32"), "openvino"])
        source = graph_of(bundle, precision) if quantized else bundle.manifest.source
        with work_folder(bundle.path) as folder:
            main, layers = bundle.verified(source), None
            if quantized:
                layers, main = self._right_layers(main, floats, folder / f"{name}.onnx", known)
            artifact = _for_openvino(bundle, source, main, precision, floats)
            old = bundle.manifest.artifacts.get(name)
            is_there = old is not None and dataclasses.replace(old, proof=(), record={}) == artifact
            if not (is_there and images):
                self._say_what_is_lost(name, images)
            digests = list(artifact.files.values())
            with closing(OpenVinoSession(main, precision=floats, quantized=quantized, digests=digests)) as session:
                if not images:
                    bundle.add(name, artifact)
                    return name, None, None
                self.progress.say(f"comparing with FP32, {session.description}")
                audit = audit_session(bundle, session, precision, images)
            if layers is not None:
                audit = dataclasses.replace(audit, passed=audit.passed and layers.passed)
            if audit.passed and not is_there:
                bundle.add(name, artifact, [main] if main.parent == folder else ())
        if audit.passed or is_there:
            found = {"audit": audit.to_dict()} | ({} if layers is None else {"layers": layers.to_dict()})
            bundle.note(name, found, proof_here("fp32", "audit", floats, target=FOR_OPENVINO))
        return name, audit, layers

    def _right_layers(
        self, graph: Path, floats: str, file: Path, known: Mapping[str, float] | None
    ) -> tuple[LayerCheck | None, Path]:
        """How OpenVINO computes each INT8 layer here, and the graph to run: ``file``, if it has to be another one.

        Without images nothing is compared.
        """
        model, opened, found = read_model(graph), partial(_opened, file, "fp32"), None
        parted = part_concatenations(model)
        if self.images:
            inputs = list(NetworkInputs.of_bundle(evenly_spaced(self.images, CHECKED), self.bundle.manifest))
            whole = partial(_opened, file, floats)
            with self.progress.phase("comparing INT8 layers with Q/DQ") as told:
                found = check_layers(model, inputs, opened, known=known, whole=whole, progress=told)
            release(model, found.floats)
        if not parted and not (found and found.floats):
            return found, graph
        file.write_bytes(serialise(model))
        return found, file

    def engine(
        self, precision: str, options: EngineOptions, *, float_precision: str = "fp32", try_plugin: bool = False
    ) -> tuple[str, BuildRecord, Audit | str]:
        """Build an engine of ``model.onnx`` or a typed graph, and enter it, ``fp16.rtx.sm_86.engine`` say.

        Args:
            float_precision: what the float part of an INT8 or FP8 graph computes in: "fp32" or "fp16".
            try_plugin: TensorRT: build with the plugin too, time both, and keep the faster.

        Returns:
            Instead of an audit the reason why there is none.
        """
        bundle, progress, source = self.bundle, self.progress, graph_of(self.bundle, precision, float_precision)
        floats = precision if float_precision == "fp32" else f"{precision}.{float_precision}"
        name = _engine_name(floats, options)
        self._say_what_is_lost(name, self.images)
        model = bundle.verified(source)
        with work_folder(bundle.path) as folder:

            def build(options: EngineOptions) -> Candidate:
                path = folder / ("fused.engine" if options.plugin else "native.engine")
                with progress.phase(f"building {precision}" + " with the plugin" * options.plugin) as told:
                    verbose = progress.say if options.verbose else None
                    record = build_engine(model, path, options, progress=told, verbose=verbose)
                return path, record

            output, record, times = _faster(build, options) if try_plugin else (*build(options), {})
            unaudited = why_not(record) or ("no images were given" if not self.images else "")
            if unaudited and self.images:  # found out only now
                self._say_what_is_lost(name, ())
            audit = None if unaudited else audit_engine(bundle, output, record, precision, self.images)
            what = {"kind": "engine", "target": record.flavour, "output": record.output, "fused": bool(record.fused)}
            what |= {"record": record.to_dict() | ({"milliseconds": times} if times else {})}
            self._enter(output.rename(output.with_name(name)), source, audit, **what)
        return name, record, audit or unaudited

    def _write_graph(self, model: ir.Model, name: str, source: str, **what: Any) -> Audit | None:
        with work_folder(self.bundle.path) as folder:
            output, audit = folder / name, None
            save_model(model, output)
            if self.images:
                audit = audit_graph(self.bundle, output, what["precision"], self.images, self.progress)
            self._enter(output, source, audit, **what)
        return audit

    def _enter(self, main: Path, source: str, audit: Audit | None, **what: Any) -> None:
        """Move what was made of an artifact into the bundle, with its external data, unless its audit failed.

        Args:
            what: the fields in which it differs from ``source``.
        """
        if audit is not None and not audit.passed:
            return
        files = [main, *main.parent.glob(f"{main.name}.data")]
        what |= {"made_of": source, "main": main.name, "files": {file.name: sha256_of(file) for file in files}}
        artifact = dataclasses.replace(self.bundle.artifact(source), proof=(), **what)
        if audit is not None:
            emulated = artifact.kind == "onnx"
            proof = proof_here("fp32", "audit", artifact.float_precision, on_gpu=not emulated, emulated=emulated)
            record = {**artifact.record, "audit": audit.to_dict()}
            artifact = dataclasses.replace(artifact, proof=(proof,), record=record)
        self.bundle.add(main.name, artifact, files)

    def _say_what_is_lost(self, name: str, images: Sequence[Path]) -> None:
        """Refuse to replace what was compared by what is not, unless forced; in any case say what goes with it.

        Args:
            images: on which the new one will be compared.

        Raises:
            InputError: the artifact there was compared, and the new one will not be.
        """
        old = self.bundle.manifest.artifacts.get(name)
        if old is None or not old.proof:
            return
        lost = proved(old)
        if old.is_compared and not images and not self.force:
            raise InputError(
                f"{name}: was compared already, and the new one would not be; this would be lost: {lost}",
                "Give --images, and the new one is audited; or --force, to lose it.",
            )
        self.progress.say(f"{name} will be replaced, and what was found about it is lost: {lost}")


def _for_openvino(bundle: Bundle, source: str, main: Path, precision: str, floats: str) -> Artifact:
    """The entry of an artifact for OpenVINO, whose file is the source's or ``main``, not yet in the bundle."""
    of = bundle.artifact(source)
    files = of.files if main.name == of.main else {main.name: sha256_of(main)}
    what: dict[str, Any] = {"precision": precision, "float_precision": floats, "target": FOR_OPENVINO}
    what |= {"made_of": source, "main": main.name, "files": files}
    return dataclasses.replace(of, proof=(), record={}, **what)


@contextmanager
def _opened(file: Path, precision: str, graph: ir.Model) -> Iterator[Session]:
    """An INT8 graph on OpenVINO, with its floats in that precision, for a while in ``file``."""
    file.write_bytes(serialise(graph))
    with closing(OpenVinoSession(file, precision=precision, quantized=True)) as session:
        yield session


def graph_of(bundle: Bundle, precision: str, float_precision: str = "fp32") -> str:
    """The name of a bundle's graph of that precision, of which variants and engines are made.

    Args:
        float_precision: of its float part, where it is quantized.

    Raises:
        BundleError: there is none, or several.
    """
    name = bundle.manifest.graph(precision, float_precision)
    if name is None:
        typed = precision in FLOATS or float_precision != "fp32"
        command = f"{'build' if typed else 'calibrate'} {bundle.path} --precision {precision}"
        words = f"{precision} graph" + f" with {float_precision} floats" * (precision not in FLOATS and typed)
        raise BundleError(f"{bundle.path}: has no {words}", f"denseport {command} --images DIR writes one.")
    return name


def _faster(
    build: Callable[[EngineOptions], Candidate], options: EngineOptions
) -> tuple[Path, BuildRecord, dict[str, float]]:
    """The faster of the engines without and with the plugin, and the milliseconds of both, by "off" and "on".

    Where there can be no second one, no milliseconds. The record's ``plugin`` says which it is, and why.
    """
    native, record = build(options)
    if options.flavour == "tensorrt_rtx":
        return native, dataclasses.replace(record, plugin=f"off: {NO_PLUGINS}"), {}
    try:
        fused, with_plugin = build(dataclasses.replace(options, plugin=True))
        times = race({"off": (native, record), "on": (fused, with_plugin)}, record.profiles[0].optimum)
    except (ExportError, BuildError, BundleError, MachineError, RuntimeError) as err:  # the last: a binding's own
        reason = getattr(err, "message", str(err))
        return native, dataclasses.replace(record, plugin=f"off: {reason}"), {}
    on, off = times["on"], times["off"]
    if on < off:
        return fused, dataclasses.replace(with_plugin, plugin=f"on: {on:g} ms, {off:g} ms without"), times
    return native, dataclasses.replace(record, plugin=f"off: {off:g} ms, {on:g} ms with it"), times


def _engine_name(precision: str, options: EngineOptions) -> str:
    """Precision, output if it is masks, flavour, what it runs on, and the size (width x height) where it is fixed."""
    if options.flavour == "tensorrt_rtx":
        where = f"rtx.{'+'.join(options.targets) or 'any'}"
    else:
        where = f"trt.{capability_here() or 'any'}"
    first = options.profiles[0]
    _, _, height, width = first.optimum
    size = f".{width}x{height}" if len(options.profiles) == 1 and first.fixed else ""
    return f"{precision}{'.mask' * options.mask}.{where}{size}.engine"

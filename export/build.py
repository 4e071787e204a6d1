"""Typed artifacts of a bundle: written, audited against FP32, and entered only if they pass."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from denseport.export.audit import FP32, Audit, audit_engine, audit_graph
from denseport.export.engine import EngineOptions, build_engine
from denseport.export.engine_progress import progress_bar
from denseport.export.errors import ExportError
from denseport.export.precision import PrecisionRecord, write_precision
from denseport.runtime.backends.tensorrt import why_not
from denseport.runtime.build_record import BuildRecord
from denseport.runtime.bundle import Bundle
from denseport.runtime.feed import network_inputs
from denseport.runtime.files import sha256_of
from denseport.runtime.manifest import Artifact

__all__ = ["build_engine_artifact", "build_typed"]


def build_typed(
    bundle: Bundle,
    precision: str,
    pictures: Sequence[Path],
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[str, PrecisionRecord, Audit | None]:
    """Write the FP16 or BF16 form of a bundle's model and enter it as ``fp16.onnx`` or ``bf16.onnx``.

    Args:
        pictures: on which FP16's range is checked and the result is audited; none: only weights are checked.

    Returns:
        The artifact's name, what it computes in, and its audit (None without pictures). An artifact whose audit
        failed is not kept.

    Raises:
        ExportError: nothing computes in the narrow type, although it was asked for.
    """
    name = f"{precision}.onnx"
    model = bundle.verified(FP32)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=bundle.path) as folder:
        output = Path(folder) / name
        progress(f"typing {name}" + (f"; pictures to observe ranges on: {len(pictures)}" if pictures else ""))
        calibration = network_inputs(pictures, bundle.manifest) if pictures else None
        record = write_precision(model, output, precision, calibration)
        if not record.nodes.get(precision):
            raise ExportError(f"{name}: no node computes in {precision}", "Look at --explain-precision.")
        result = audit_graph(bundle, output, precision, pictures, progress) if pictures else None
        if result is not None and not result.passed:
            return name, record, result
        files = [output, *Path(folder).glob(f"{name}.data")]
        hashes = {file.name: sha256_of(file) for file in files}
        for file in files:
            file.replace(bundle.path / file.name)
    details: dict[str, Any] = {"source": FP32, "precision": dataclasses.asdict(record)}
    if result is not None:
        details["audit"] = dataclasses.asdict(result)
    bundle.add(name, Artifact("onnx", precision, hashes, details))
    return name, record, result


def build_engine_artifact(
    bundle: Bundle,
    precision: str,
    options: EngineOptions,
    pictures: Sequence[Path],
    *,
    verbose: Callable[[str], None] | None = None,
) -> tuple[str, BuildRecord, Audit | str]:
    """Build an engine of a bundle's ``model.onnx`` or typed graph, and enter it, ``fp16.rtx.sm_86.engine`` say.

    Returns:
        The artifact's name, its build record, and its audit or why there is none. An engine whose audit failed is
        not kept.

    Raises:
        BundleError: the graph of that precision is not there yet.
        BuildError, MachineError: see `denseport.export.engine.build_engine`.
    """
    source = FP32 if precision == "fp32" else f"{precision}.onnx"
    model = bundle.verified(source)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=bundle.path) as folder:
        output = Path(folder) / "new.engine"
        with progress_bar(f"building {precision}") as progress:
            record = build_engine(model, output, options, progress=progress, verbose=verbose)
        name = _engine_name(precision, options, record)
        result = why_not(record) or ("no pictures were given" if not pictures else "")
        checked = result or audit_engine(bundle, output, record, precision, pictures)
        if isinstance(checked, Audit) and not checked.passed:
            return name, record, checked
        output.replace(bundle.path / name)
    details: dict[str, Any] = {**record.to_dict(), "source": source}
    if isinstance(checked, Audit):
        details["audit"] = dataclasses.asdict(checked)
    bundle.add(name, Artifact("engine", precision, {name: record.engine_sha256}, details))
    return name, record, checked


def _engine_name(precision: str, options: EngineOptions, record: BuildRecord) -> str:
    """Precision, flavour, what it runs on, and the size where it is fixed."""
    flavour = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}[options.flavour]
    where = "+".join(options.targets) or record.compute_capability or "any"
    if options.flavour == "tensorrt_rtx" and not options.targets:
        where = "any"
    first = options.profiles[0]
    size = f".{first.optimum[2]}x{first.optimum[3]}" if len(options.profiles) == 1 and first.fixed else ""
    return f"{precision}.{flavour}.{where}{size}.engine"

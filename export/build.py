"""Typed artifacts of a bundle: written, audited against FP32, and entered only if they pass."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from denseport.export.divergence import find_divergence
from denseport.export.engine import EngineOptions, build_engine
from denseport.export.engine_progress import progress_bar
from denseport.export.errors import ExportError
from denseport.export.precision import PrecisionRecord, write_precision
from denseport.export.rounding import emulate_rounding
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.build_record import BuildRecord
from denseport.runtime.bundle import Bundle
from denseport.runtime.feed import network_inputs
from denseport.runtime.files import sha256_of
from denseport.runtime.gate import AGREEMENTS
from denseport.runtime.manifest import Artifact

__all__ = ["FP32", "Audit", "audit", "build_engine_artifact", "build_typed"]

FP32 = "model.onnx"
NOTED = 0.05  # relative error of a tensor from which the audit names its layer
AUDITED = 8  # pictures


@dataclass(frozen=True)
class Audit:
    """A typed graph compared with FP32 on pictures, its rounding emulated where the CPU would skip it."""

    images: int
    agreement: float  # share of logit positions with FP32's class
    worst_image: float  # the same, of the worst picture
    logit_error: float  # largest difference of the logits, relative to the largest logit
    finite: bool
    worst_layer: str | None  # the first layer that differs by more than NOTED, else the one that differs most
    passed: bool


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
        result = audit(bundle, output, precision, pictures, progress) if pictures else None
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
    bundle: Bundle, precision: str, options: EngineOptions, *, verbose: Callable[[str], None] | None = None
) -> tuple[str, BuildRecord]:
    """Build an engine of a bundle's ``model.onnx`` or typed graph, and enter it, ``fp16.rtx.sm_86.engine`` say.

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
        output.replace(bundle.path / name)
    details = {**record.to_dict(), "source": source}
    bundle.add(name, Artifact("engine", precision, {name: record.engine_sha256}, details))
    return name, record


def _engine_name(precision: str, options: EngineOptions, record: BuildRecord) -> str:
    """Precision, flavour, what it runs on, and the size where it is fixed."""
    flavour = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}[options.flavour]
    where = "+".join(options.targets) or record.compute_capability or "any"
    if options.flavour == "tensorrt_rtx" and not options.targets:
        where = "any"
    first = options.profiles[0]
    size = f".{first.optimum[2]}x{first.optimum[3]}" if len(options.profiles) == 1 and first.fixed else ""
    return f"{precision}.{flavour}.{where}{size}.engine"


def audit(
    bundle: Bundle, typed: Path, precision: str, pictures: Sequence[Path], progress: Callable[[str], None]
) -> Audit:
    """Compare a typed graph with FP32 on up to `AUDITED` pictures, and name the layer that is worst."""
    chosen = pictures[:: max(1, len(pictures) // AUDITED)][:AUDITED]
    progress(f"comparing with FP32, {precision.upper()}'s rounding emulated; pictures: {len(chosen)}")
    trusted = bundle.verified(FP32)
    with tempfile.TemporaryDirectory(prefix=".audit-", dir=bundle.path) as folder:
        emulated = Path(folder) / "emulated.onnx"
        ir.save(emulate_rounding(ir.load(typed)), emulated)
        reference, suspect = OnnxRuntimeSession(trusted), OnnxRuntimeSession(emulated)
        shares, errors, finite = [], [], True
        for image in network_inputs(chosen, bundle.manifest):
            expected, found = reference.run(image), suspect.run(image)
            finite = finite and bool(np.isfinite(found).all())
            shares.append(float((expected.argmax(1) == found.argmax(1)).mean()))
            errors.append(float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-12)))
        image = next(network_inputs(chosen, bundle.manifest))
        worst = find_divergence(trusted, emulated, image, NOTED)
    agreement = float(np.mean(shares))
    return Audit(
        images=len(chosen),
        agreement=agreement,
        worst_image=min(shares),
        logit_error=max(errors),
        finite=finite,
        worst_layer=f"{worst.node} ({worst.operator}): {worst.difference}" if worst is not None else None,
        passed=finite and agreement >= AGREEMENTS[precision],
    )

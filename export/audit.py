"""Compare what was built with FP32, on images, before anyone relies on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from denseport.export.graph.compare.divergence import find_divergence
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import MASK, output_of, read_model, save_model
from denseport.export.graph.rounding import emulate_rounding
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.session import Session
from denseport.runtime.backends.tensorrt import TensorRTSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.evaluation.gate import AGREEMENTS
from denseport.runtime.evaluation.metrics import agreement, json_number
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced
from denseport.runtime.system.files import work_folder
from denseport.runtime.system.progress import Progress

__all__ = ["Audit", "audit_engine", "audit_graph", "audit_session"]

NOTED = 0.05  # relative error of a tensor from which the audit names its layer as the first to diverge
AUDITED = 8  # images


@dataclass(frozen=True)
class Audit:
    """What an artifact is worth beside FP32, on images."""

    images: int
    output: str  # what was compared: "logits", "mask" or "depth"
    agreement: float  # with FP32 (`denseport.runtime.evaluation.metrics.agreement`), 0..1
    worst_image: float  # the same, of the worst image
    logit_error: float | None  # largest difference / largest logit or depth, over all images; None: a mask has none
    finite: bool | None  # all logits or depths are; None: a mask does not show it
    worst_layer: str | None  # the first layer that differs by more than NOTED, else the one that differs most
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON: the error of logits that are not finite is null."""
        error = None if self.logit_error is None else json_number(self.logit_error)
        return {**asdict(self), "logit_error": error}


def audit_graph(bundle: Bundle, typed: Path, precision: str, images: Sequence[Path], progress: Progress) -> Audit:
    """Compare a typed graph with FP32 on up to `AUDITED` images, and name the layer that is worst.

    Its rounding is emulated, since ONNX Runtime's CPU back end would skip it. Masks are compared with FP32's masks.

    Args:
        images: at least one.

    Raises:
        BundleError: the bundle's FP32 model is altered or missing.
        ImageError: an image cannot be read.
    """
    chosen = evenly_spaced(images, AUDITED)
    progress.say(f"comparing with FP32, {precision.upper()}'s rounding emulated; images: {len(chosen)}")
    trusted = bundle.verified(bundle.manifest.source)
    with work_folder(bundle.path) as folder:
        emulated = folder / "emulated.onnx"
        graph = read_model(typed)
        emulate_rounding(graph)
        output = output_of(graph)
        ir.save(graph, emulated, external_data=f"{emulated.name}.data")  # in FP32 it is larger than a protobuf may be
        reference = _reference(trusted, output, folder, bundle.manifest.align_corners)
        inputs = NetworkInputs.of_bundle(chosen, bundle.manifest)
        result = _compare(reference, OnnxRuntimeSession(emulated), inputs, precision, output)
        worst = find_divergence(trusted, emulated, inputs[0], NOTED)
    return replace(result, worst_layer=f"{worst.node} ({worst.operator}): {worst.difference}" if worst else None)


def audit_engine(bundle: Bundle, engine: Path, record: BuildRecord, precision: str, images: Sequence[Path]) -> Audit:
    """Compare an engine, on the GPU here, with FP32 at the size that it is tuned for.

    Raises:
        MachineError: the engine does not run on this machine.
    """
    manifest, (_, _, height, width) = bundle.manifest, record.profiles[0].optimum
    is_window = manifest.inference.crop == (height, width)
    protocol = parse_protocol("reference" if is_window else f"fixed:{width}x{height}", manifest)
    inputs = NetworkInputs(evenly_spaced(images, AUDITED), protocol, manifest.patch_size)
    with work_folder(bundle.path) as folder, TensorRTSession(engine, record) as session:
        trusted = bundle.verified(manifest.source)
        reference = _reference(trusted, record.output, folder, manifest.align_corners)
        return _compare(reference, session, inputs, precision, record.output)


def audit_session(bundle: Bundle, session: Session, precision: str, images: Sequence[Path]) -> Audit:
    """Compare an opened artifact that gives logits or depths with FP32 on up to `AUDITED` images."""
    inputs = NetworkInputs.of_bundle(evenly_spaced(images, AUDITED), bundle.manifest)
    reference = OnnxRuntimeSession(bundle.verified(bundle.manifest.source))
    return _compare(reference, session, inputs, precision, bundle.manifest.output)


def _reference(fp32: Path, output: str, folder: Path, align_corners: bool) -> Session:
    """FP32, ending in logits, depths or masks as what is compared with it."""
    if output != MASK:
        return OnnxRuntimeSession(fp32)
    model, path = read_model(fp32), folder / "reference.onnx"
    append_mask(model, align_corners=align_corners)
    save_model(model, path)
    return OnnxRuntimeSession(path)


def _compare(reference: Session, suspect: Session, inputs: NetworkInputs, precision: str, output: str) -> Audit:
    shares, errors, finite = list[float](), list[float](), list[bool]()
    for image in inputs:
        expected, found = reference.run(image), suspect.run(image)
        shares.append(agreement(expected, found, output))
        if output == MASK:
            continue
        finite.append(bool(np.isfinite(found).all()))
        errors.append(float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-12)))
    mean = float(np.mean(shares))
    return Audit(
        images=len(inputs),
        output=output,
        agreement=mean,
        worst_image=min(shares),
        logit_error=max(errors, default=None),
        finite=all(finite) if finite else None,
        worst_layer=None,
        passed=all(finite) and mean >= AGREEMENTS[precision],
    )

"""One runnable file of a bundle: what it is, what runs it, and what it was compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = [
    "ANY",
    "FLOATS",
    "FOR_CPU",
    "FOR_OPENVINO",
    "FOR_TENSORRT",
    "MADE_FOR",
    "QUANTIZED",
    "TARGETS",
    "Artifact",
    "Proof",
]

FLOATS = ("fp32", "fp16", "bf16")
QUANTIZED = ("int8", "fp8")
ANY, FOR_CPU, FOR_OPENVINO, FOR_TENSORRT = "any", "onnxruntime-cpu", "openvino", "tensorrt"
# "any": whatever runs ONNX. A graph for "tensorrt" is what both TensorRTs build engines of; an engine is one's alone.
TARGETS = (ANY, FOR_CPU, FOR_OPENVINO, FOR_TENSORRT, "tensorrt_rtx")
# What an artifact is for, where it is not worth running by itself.
MADE_FOR = {
    ANY: "TensorRT and other ONNX tools",
    FOR_CPU: "ONNX Runtime on CPUs",
    FOR_OPENVINO: "OpenVINO on CPUs",
    FOR_TENSORRT: "TensorRT",
}


@dataclass(frozen=True)
class Proof:
    """A comparison of an artifact with something that is trusted."""

    against: str  # "torch": the network; "onnx": the imported file; "fp32": the bundle's source; "labels": of images
    arithmetic: str  # what its floats computed in: one of FLOATS
    machine: str  # the processor or GPU; "emulated": a CPU that rounded as that arithmetic does
    date: str  # ISO 8601
    figures: str  # the record's entry that has them

    def __post_init__(self) -> None:
        _one_of("against", self.against, ("torch", "onnx", "fp32", "labels"))
        _one_of("arithmetic", self.arithmetic, FLOATS)
        datetime.fromisoformat(self.date)  # its ValueError names the text


@dataclass(frozen=True)
class Artifact:
    """One runnable file of a bundle."""

    kind: str  # "onnx" or "engine"
    precision: str  # one of FLOATS or QUANTIZED
    float_precision: str  # what the float part of a quantized artifact computes in; else the precision
    target: str  # what it is made for: one of TARGETS
    output: str  # "logits" of the head; "mask": classes of the network's input; "depth" of the head
    fused: bool  # holds nodes that the project's plugin computes (`denseport.export.graph.fusion`)
    made_of: str | None  # the artifact that it was made of; None: the checkpoint
    main: str  # the file that is opened
    files: dict[str, str]  # file name to sha256: the main one and its external data
    proof: tuple[Proof, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)  # how it was built and what was measured on it

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, ("onnx", "engine"))
        _one_of("precision", self.precision, FLOATS + QUANTIZED)
        _one_of("target", self.target, TARGETS)
        _one_of("output", self.output, ("logits", "mask", "depth"))
        _one_of("float_precision", self.float_precision, (self.precision,) if self.precision in FLOATS else FLOATS)
        _one_of("main", self.main, tuple(self.files))
        for proof in self.proof:
            _one_of("proof's figures", proof.figures, tuple(self.record))

    @property
    def is_compared(self) -> bool:
        """Whether anything compared it in its own arithmetic: what a CPU computed for FP16 in FP32 does not count."""
        return any(proof.arithmetic == self.float_precision for proof in self.proof)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed)}")

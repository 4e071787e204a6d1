"""Short makers of what a manifest holds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from denseport.runtime.bundle.artifact import FLOATS, Artifact, Proof
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.bundle.manifest import DepthOutput, Inference, Manifest, NetworkInput, Reference
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE, Preprocessing
from denseport.runtime.bundle.steps import Resize
from denseport.runtime.bundle.verdict import MachineVerdict

__all__ = ["depth_manifest", "engine_artifact", "manifest", "onnx_artifact", "proof", "steps", "verdict"]


def onnx_artifact(files: dict[str, str], precision: str = "fp32", **fields: Any) -> Artifact:
    """An ONNX graph of logits for any tool, of which the first file is opened, but for ``fields``."""
    usual = {
        "kind": "onnx",
        "float_precision": precision if precision in FLOATS else "fp32",
        "target": "any",
        "output": "logits",
        "fused": False,
        "made_of": None if precision == "fp32" else "model.onnx",
        "main": next(iter(files)),
    }
    return Artifact(precision=precision, files=files, **{**usual, **fields})


def engine_artifact(name: str, record: BuildRecord, digest: str = "0" * 64, **fields: Any) -> Artifact:
    """An FP16 engine of that build record, as JSON has it, in a file ``name``."""
    data = json.loads(json.dumps(record.to_dict()))
    usual = {"kind": "engine", "target": record.flavour, "output": record.output, "record": data}
    return onnx_artifact({name: digest}, "fp16", **{**usual, **fields})


def proof(arithmetic: str = "fp32", figures: str = "audit") -> Proof:
    """A comparison with FP32."""
    return Proof("fp32", arithmetic, "a machine", "2026-11-27T12:00:00+00:00", figures)


def steps(size: tuple[int, int] = (2048, 512), keep_ratio: bool = True, **normalise: Any) -> Preprocessing:
    """Resize and normalise, as ADE20K's configurations do unless told otherwise."""
    return Resize(size, keep_ratio), dataclasses.replace(USUAL_NORMALISE, **normalise)


def verdict(**values: Any) -> dict[str, Any]:
    """The verdict, as JSON has it, of an artifact that was 1.25 times as fast as FP32 on ``a processor``."""
    usual = {
        "machine": "a processor",
        "cpus": 2,
        "session": "a test",
        "seconds": {},
        "speed_ratio": 1.25,
        "agreement": 0.99,
        "miou": None,
        "fp32_miou": None,
        "labelled": 0,
        "within_budget": True,
        "accepted": True,
        "reason": "",
        "versions": "",
        "date": "",
    }
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(MachineVerdict(**{**usual, **values}))))
    return found


def manifest(**changes: Any) -> Manifest:
    """Of two classes, with something in most fields, but for ``changes``."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "architecture": "DPT",
        "parameters": 1000,
        "patch_size": 16,
        "stride": 2,
        "classes": ("wall", "ciel bleu é 天"),
        "palette": ((1, 2, 3), (4, 5, 255)),
        "reduce_zero_label": True,
        "preprocess": steps((1024, 240)),
        "inference": Inference("slide", (64, 64), (42, 42)),
        "reference": Reference("dpt", "ADE20K", "whole", 46.97, None, "hash"),
        "provenance": {"warnings": [], "iterations": None},
        "spec": {"neck": None},
        "source": "model.onnx",
        "task": "segmentation",
        "input": NetworkInput(),
        "artifacts": {
            "model.onnx": onnx_artifact(
                {"model.onnx": "0" * 64}, proof=(proof(figures="checks"),), record={"checks": [1.5]}
            )
        },
    }
    return Manifest(**{**fields, **changes})


def depth_manifest(**changes: Any) -> Manifest:
    """Of metres up to 20, but for ``changes``."""
    source = {"model.onnx": onnx_artifact({"model.onnx": "0" * 64}, output="depth")}
    fields = {"task": "depth", "classes": (), "palette": (), "reduce_zero_label": False, "inference": Inference()}
    fields |= {"depth": DepthOutput("metres", "farther", 20.0, "bicubic"), "artifacts": source, "reference": None}
    return manifest(**{**fields, **changes})

"""``denseport doctor``: what this machine can do, and the command that gets what is missing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denseport.runtime.machine import Machine

HELP = "show what this machine can do, and how to get what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="also say which of its artifacts run here")
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class Ability:
    """One thing that a machine can do or not."""

    name: str
    missing: str  # "" where it can
    remedy: str


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.machine import inspect_machine

    machine = inspect_machine()
    abilities = _abilities(machine)
    artifacts = _artifacts(arguments.bundle, machine) if arguments.bundle else []
    if arguments.json:
        found = {"abilities": abilities, "artifacts": artifacts}
        print(json.dumps({"machine": asdict(machine), **{k: [asdict(a) for a in v] for k, v in found.items()}}, indent=1))
    else:
        for name, text in machine.summary().items():
            print(f"{name:10} {text}")
        for title, rows in (("", abilities), (f"{arguments.bundle}:", artifacts)):
            if rows:
                print(f"\n{title}".rstrip())
            for row in rows:
                print(f"{'yes' if not row.missing else 'no ':3} {row.name}" + (f": {row.missing}" if row.missing else ""))
                if row.missing and row.remedy:
                    print(f"      {row.remedy}")
    return 3 if artifacts and all(row.missing for row in artifacts) else 0


def _abilities(machine: Machine) -> list[Ability]:
    has = machine.packages
    gpu = "" if machine.gpus else "no NVIDIA GPU"
    cuda = "" if has["pycuda"] or has["cuda-bindings"] else "neither pycuda nor cuda-bindings"
    gpu_onnx = gpu or ("" if "CUDAExecutionProvider" in machine.providers else "ONNX Runtime without CUDA")

    def absent(*names: str) -> str:
        return ", ".join(f"no {name}" for name in names if not has[name])

    def first(*reasons: str) -> str:
        return ", ".join(reason for reason in reasons if reason)

    return [
        Ability("export checkpoints", absent("torch", "onnx", "onnxruntime"), "pip install 'denseport[export,onnxruntime]'"),
        Ability("run ONNX models on the CPU", absent("onnxruntime"), "pip install 'denseport[onnxruntime]'"),
        Ability("run ONNX models on the GPU", gpu_onnx, "pip install 'denseport[onnxruntime-gpu]' on a machine with one"),
        Ability(
            "build and run TensorRT engines",
            first(gpu, absent("tensorrt"), cuda),
            "pip install 'denseport[tensorrt]' on the machine that will run them",
        ),
        Ability(
            "build TensorRT-RTX engines, ahead of time, without a GPU",
            absent("tensorrt_rtx"),
            "pip install tensorrt-rtx-cu13",
        ),
        Ability(
            "run TensorRT-RTX engines",
            first(gpu, absent("tensorrt_rtx"), cuda),
            "pip install tensorrt-rtx-cu13 cuda-bindings on a machine with an RTX GPU",
        ),
    ]


def _artifacts(path: str, machine: Machine) -> list[Ability]:
    from denseport.runtime.bundle import Bundle
    from denseport.runtime.choice import obstacle

    bundle = Bundle(path)
    rows = []
    for name, artifact in bundle.manifest.artifacts.items():
        reason, remedy = obstacle(artifact, machine)
        rows.append(Ability(f"{name} ({artifact.kind}, {artifact.precision})", reason, remedy))
    return rows

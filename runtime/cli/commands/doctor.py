"""``denseport doctor``: what this machine can do, and the command that gets what is missing."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from denseport.runtime.cli.arguments import path

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.system.machine import Machine

HELP = "show what this machine can do, and how to get what is missing"


@dataclass(frozen=True)
class Ability:
    """One thing that a machine can do or not."""

    name: str
    missing: str  # "" where it can
    remedy: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=path, nargs="?", help="also say which of its artifacts run here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.system.machine import inspect_machine

    machine, bundle = inspect_machine(), None if arguments.bundle is None else Bundle(arguments.bundle)
    abilities = _abilities(machine, bundle)
    artifacts = [] if bundle is None else _artifacts(bundle, machine)
    if arguments.json:
        rows = {"abilities": [asdict(row) for row in abilities], "artifacts": [asdict(row) for row in artifacts]}
        print(json.dumps({"machine": asdict(machine), **rows}, indent=1))
    else:
        for name, text in machine.summary().items():
            print(f"{name:10} {text}")
        _print("This machine can", abilities)
        if bundle is not None:
            from denseport.runtime.selection import untried

            _print(f"What of {bundle.path} runs here", artifacts)
            if hint := untried(bundle.manifest, machine):
                print(f"\n{hint.replace('BUNDLE', shlex.quote(str(bundle.path)))}")
    return 3 if artifacts and all(row.missing for row in artifacts) else 0


def _print(title: str, rows: Sequence[Ability]) -> None:
    print(f"\n{title}")
    for row in rows:
        print(f"  no   {row.name}: {row.missing}\n         {row.remedy}" if row.missing else f"  yes  {row.name}")


def _abilities(machine: Machine, bundle: Bundle | None) -> list[Ability]:
    from denseport.runtime.bundle.preprocessing import needs_pillow
    from denseport.runtime.system.machine import install_command

    has = machine.packages
    gpu = "" if machine.gpus else "no NVIDIA GPU"
    bf16 = "" if machine.bf16 else "no BF16 arithmetic in this processor"
    vnni = "" if machine.vnni else "no VNNI in this processor"
    cuda = "" if has["pycuda"] or has["cuda-bindings"] else "neither pycuda nor cuda-bindings"
    providers = "" if "CUDAExecutionProvider" in machine.providers else "ONNX Runtime without CUDA"

    def lacks(*names: str) -> str:
        return ", ".join(f"no {name}" for name in names if not has[name])

    def join(*reasons: str) -> str:
        return ", ".join(reason for reason in reasons if reason)

    rows = [
        ("export checkpoints", lacks("torch", "onnx", "onnxruntime"), "export,onnxruntime"),
        ("calibrate to INT8", lacks("onnx", "onnxruntime"), "calibration"),
        ("run ONNX models on the CPU", lacks("onnxruntime"), "onnxruntime"),
        ("run ONNX models with OpenVINO", lacks("openvino"), "openvino"),
        ("compute in BF16 on the CPU", join(bf16, lacks("openvino")), "openvino"),
        ("compute in INT8 with OpenVINO", join(vnni, lacks("openvino")), "openvino"),
        ("run ONNX models on a GPU", join(gpu, providers), "onnxruntime-gpu"),
        ("build and run TensorRT engines", join(gpu, lacks("tensorrt"), cuda), "tensorrt"),
        ("build TensorRT-RTX engines, ahead of time", lacks("tensorrt_rtx"), "tensorrt-rtx"),
        ("run TensorRT-RTX engines", join(gpu, lacks("tensorrt_rtx"), cuda), "tensorrt-rtx"),
    ]
    if bundle is not None and needs_pillow(bundle.manifest.preprocess):
        rows.append((f"decode image files for {bundle.path}, as its checkpoint does", lacks("pillow"), "pillow"))
    where = {
        gpu: " on a machine with an NVIDIA GPU",
        bf16: " on a processor with avx512_bf16, amx_bf16 or bf16",
        vnni: " on a processor with avx512_vnni, avx_vnni or asimddp",
    }
    return [
        Ability(name, missing, install_command(extra) + "".join(where[why] for why in where if why and why in missing))
        for name, missing, extra in rows
    ]


def _artifacts(bundle: Bundle, machine: Machine) -> list[Ability]:
    from denseport.runtime.bundle.decode import reading_record
    from denseport.runtime.selection import why_unsupported

    artifacts = bundle.manifest.artifacts
    with reading_record(str(bundle.path)):
        return [
            Ability(f"{name} ({a.kind}, {a.precision})", *why_unsupported(a, machine)) for name, a in artifacts.items()
        ]

"""Check and time on a GPU what a CPU cannot show: kernels, whole networks on each back end, and images on the device.

    scripts/gpu/check --json gpu.json
    scripts/gpu/check --only kernels
    scripts/gpu/check --dry-run             compile, and show what would be launched; needs no GPU

Prints a table of the fused kernels with the goals they are to meet, one of networks, and one of images: the kernels
around a network, and the way from image to mask on the device and on the host. ``--json FILE`` writes them with the
machine's description, and again after each part, so that a run that is stopped leaves what it had.

Exit codes: 0 every result is right, 1 some result is wrong or a back end that is there fails (a missed speed goal or
a refusal is only reported), 2 the file cannot be written, 3 no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_kernels
from gpu_backends import Subject
from gpu_images import NETWORK, PRESET, ImageRow, measure_kernels, measure_path, print_images, protocol, sessions
from gpu_images import SECONDS as IMAGE_SECONDS
from gpu_models import PRESETS, Budget, ModelRow, measure_models, print_models, random_network

from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.backends.cuda.driver import open_cuda
from denseport.runtime.backends.cuda.kernels.compile import image_ptx
from denseport.runtime.errors import DenseportError, MachineError
from denseport.runtime.system.files import write_atomic
from denseport.runtime.system.machine import inspect_machine

SECONDS = 440.0  # in all; the tests that scripts/gpu/check runs afterwards make it eight minutes


def require_gpu() -> None:
    """Raises:
    MachineError: no torch, or no GPU that it can use.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise MachineError("gpu-check needs torch, which is not installed", "pip install torch") from None
    if not torch.cuda.is_available():
        raise MachineError(
            "gpu-check needs an NVIDIA GPU, and torch finds none on this machine",
            "run it where nvidia-smi lists a GPU, or with --dry-run to see what it would launch",
        )


class Report:
    """What was measured so far, as JSON."""

    def __init__(self, path: Path | None) -> None:
        self.content: dict[str, Any] = {"machine": machine(), "kernels": [], "models": [], "images": []}
        self._path = path
        self.write()  # better refused now than in eight minutes

    def write(self) -> None:
        if self._path is not None:
            write_atomic(self._path, (json.dumps(self.content, indent=2) + "\n").encode())


def machine() -> dict[str, Any]:
    import torch

    here = inspect_machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": [f"{gpu.name} ({gpu.architecture}, driver {gpu.driver})" for gpu in here.gpus],
        "processor": f"{here.processor}, {here.cpus} CPUs",
        "system": here.system,
        "cuda": torch.version.cuda,
        "packages": {name: version for name, version in here.packages.items() if version},
    }


def check_kernels(ptx: bytes, report: Report) -> bool:
    """Whether every kernel's result is right."""
    driver, copy = gpu_kernels.Driver(ptx), gpu_kernels.copy_rate()
    rows = [gpu_kernels.measure(case, driver, copy) for case in gpu_kernels.cases()]
    report.content["machine"] |= {"ptx_sha256": hashlib.sha256(ptx).hexdigest(), "copy_gb_per_s": copy}
    report.content["kernels"] = [asdict(row) for row in rows]
    report.write()
    print(f"copy {copy:.0f} GB/s, bytes read and written")
    gpu_kernels.print_table(rows)
    gpu_kernels.print_goals(rows)
    return all(row.correct for row in rows)


def check_models(budget: Budget, report: Report) -> bool:
    """Whether every back end that is there computes the same as PyTorch in FP32."""
    import torch

    from denseport.export.models.presets import PRESETS as published

    torch.backends.cudnn.allow_tf32 = False  # the reference is FP32
    rows: list[ModelRow] = []
    specs = {name: published[name].spec for name in PRESETS}
    for group in measure_models(specs, torch.device("cuda"), budget):
        print_models(group, header=not rows)
        rows += group
        report.content["models"] = [asdict(row) for row in rows]
        report.write()
    return not any(row.wrong for row in rows)


def check_images(budget: Budget, report: Report) -> bool:
    """Whether images come to the same on the device as on the host, over every back end that is there."""
    import torch

    from denseport.export.models.presets import PRESETS as published

    rows: list[ImageRow] = []

    def add(found: ImageRow) -> None:
        print_images([found], header=not rows)
        rows.append(found)
        report.content["images"] = [asdict(row) for row in rows]
        report.write()

    for row in measure_kernels(open_cuda(), image_ptx()):
        add(row)
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        image = torch.zeros(1, 3, *NETWORK, device=device)
        subject = Subject(PRESET, random_network(published[PRESET].spec, device), image, Path(folder))
        for name, open_session in sessions(subject).items():
            if budget.left < IMAGE_SECONDS:
                add(ImageRow(name, "", note=f"not run: time; {max(budget.left, 0):.0f} s are left"))
                continue
            for row in measure_path(name, open_session, protocol()):
                add(row)
    return all(row.correct for row in rows)


def check(only: str | None, budget: Budget, path: Path | None) -> int:
    import torch

    report, right = Report(path), True
    torch.zeros(1, device="cuda")  # the driver's calls use torch's context
    print(", ".join(f"{key} {value}" for key, value in report.content["machine"].items()), flush=True)
    if only in (None, "kernels"):
        right = check_kernels(compile_ptx(), report)
    if only in (None, "models"):
        right = check_models(budget, report) and right
    if only in (None, "images"):
        right = check_images(budget, report) and right
    return 0 if right else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables and the machine's description")
    parser.add_argument("--only", choices=("kernels", "models", "images"), help="one part alone")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="what does not fit is not run, and named; default: %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="compile and show the launches; needs no GPU")
    options = parser.parse_args(arguments)
    budget = Budget(options.seconds)
    try:
        if options.dry_run:
            gpu_kernels.dry_run(compile_ptx())
            return 0
        require_gpu()
        return check(options.only, budget, options.json)
    except DenseportError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

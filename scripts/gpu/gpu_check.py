"""Check and time on a GPU what a CPU cannot show: tests, kernels, images on the device, whole networks.

    scripts/gpu/check --json gpu.json
    scripts/gpu/check --only tests kernels
    scripts/gpu/check --dry-run             compile, and show what would be run and launched; needs no GPU

The parts run in the order of `PARTS`, the quick and telling ones first: the tests that need a GPU; a table of the fused
kernels with the goals they are to meet; one of images (the kernels around a network, and the way from image to mask on
the device and on the host); one of networks. ``--json FILE`` writes them with the machine's description, again after
each row, so that a run that is stopped leaves what it had.

Exit codes: 0 every result is right, 1 some result is wrong or a back end that is there fails (a missed speed goal or
a refusal is only reported), 2 the file cannot be written, 3 no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_images
import gpu_kernels
import gpu_models
import gpu_tests
from gpu_backends import BACK_ENDS, Subject
from gpu_models import Budget

from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.backends.cuda.driver import open_cuda
from denseport.runtime.backends.cuda.kernels.compile import image_ptx
from denseport.runtime.errors import DenseportError, MachineError
from denseport.runtime.system.files import write_atomic
from denseport.runtime.system.machine import inspect_machine

# In this order, each with the seconds that it may take.
PARTS = {"tests": 90.0, "kernels": 60.0, "images": 150.0, "models": 300.0}
SECONDS = 570.0  # in all: a command on a borrowed machine may take ten minutes
KERNEL_SECONDS = 5.0  # that one may take, on the long side
DEVICE = "cuda"


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
        self.content: dict[str, Any] = {
            "machine": machine(),
            "seconds": {},
            "broken": {},
            **{part: [] for part in PARTS},
        }
        self._path = path
        self.write()  # better refused now than in eight minutes

    def write(self) -> None:
        if self._path is not None:
            write_atomic(self._path, (json.dumps(self.content, indent=2) + "\n").encode())

    def put(self, part: str, rows: Iterable[Any]) -> None:
        """All rows of a part that there are by now, dataclasses."""
        self.content[part] = [asdict(row) for row in rows]
        self.write()


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


def check_tests(budget: Budget, report: Report) -> bool:
    """Whether the tests that need a GPU pass."""
    row = gpu_tests.run_tests(budget.left, gpu_tests.FILES)
    report.put("tests", [row])
    print("\n".join(["\ntests", *row.output, *filter(None, [row.note])]), flush=True)
    return row.passed


def check_kernels(budget: Budget, report: Report) -> bool:
    """Whether every kernel's result is right."""
    ptx = compile_ptx()
    driver, copy, rows = gpu_kernels.Driver(ptx), gpu_kernels.copy_rate(), list[gpu_kernels.Row]()
    report.content["machine"] |= {"ptx_sha256": hashlib.sha256(ptx).hexdigest(), "copy_gb_per_s": copy}
    print(f"\ncopy {copy:.0f} GB/s, bytes read and written")
    cases = gpu_kernels.cases()
    for case in cases:
        if budget.left < KERNEL_SECONDS:
            print(f"not run: time; {len(cases) - len(rows)} of {len(cases)} kernels")
            break
        rows.append(gpu_kernels.measure(case, driver, copy))
        gpu_kernels.print_table(rows[-1:], header=len(rows) == 1)
        report.put("kernels", rows)
    gpu_kernels.print_goals(rows)
    return all(row.correct for row in rows)


def check_images(budget: Budget, report: Report) -> bool:
    """Whether images come to the same on the device as on the host, over every back end that is there."""
    import torch

    from denseport.export.models.presets import PRESETS as published

    rows: list[gpu_images.ImageRow] = []

    def add(found: gpu_images.ImageRow) -> None:
        gpu_images.print_images([found], header=not rows)
        rows.append(found)
        report.put("images", rows)

    for row in gpu_images.measure_kernels(open_cuda(), image_ptx(), gpu_images.IMAGES):
        add(row)
    device = torch.device(DEVICE)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        image = torch.zeros(1, 3, *gpu_images.NETWORK, device=device)
        module = gpu_models.random_network(published[gpu_images.PRESET].spec, device)
        subject = Subject(gpu_images.PRESET, module, image, Path(folder))
        for way in gpu_images.WAYS:
            for row in gpu_images.measure_path(way, subject, gpu_images.protocol(), budget.left, gpu_images.IMAGES):
                add(row)
    return all(row.correct for row in rows)


def check_models(budget: Budget, report: Report) -> bool:
    """Whether every back end that is there computes the same as PyTorch in FP32."""
    import torch

    from denseport.export.models.presets import PRESETS as published

    torch.backends.cudnn.allow_tf32 = False  # the reference is FP32
    rows: list[gpu_models.ModelRow] = []
    specs = {name: published[name].spec for name in gpu_models.PRESETS}
    for group in gpu_models.measure_models(specs, torch.device(DEVICE), budget):
        gpu_models.print_models(group, header=not rows)
        rows += group
        report.put("models", rows)
    return not any(row.wrong for row in rows)


CHECKS: dict[str, Callable[[Budget, Report], bool]] = {
    "tests": check_tests,
    "kernels": check_kernels,
    "images": check_images,
    "models": check_models,
}


def check(parts: Iterable[str], seconds: float, path: Path | None) -> int:
    """Run parts in their order, each in its own time at most."""
    import torch

    report, right, total = Report(path), True, Budget(seconds)
    torch.zeros(1, device=DEVICE)  # the driver's calls use torch's context
    print(", ".join(f"{key} {value}" for key, value in report.content["machine"].items()), flush=True)
    for part in parts:
        started = time.monotonic()
        try:
            right = CHECKS[part](Budget(min(PARTS[part], total.left)), report) and right
        except Exception as err:  # whatever broke one part: the time on a borrowed machine is for the others too
            traceback.print_exc()
            report.content["broken"][part] = f"{type(err).__name__}: {err}"
            right = False
        report.content["seconds"][part] = time.monotonic() - started
        report.write()
        print(f"{part}: {report.content['seconds'][part]:.0f} of {PARTS[part]:.0f} s", flush=True)
    return 0 if right else 1


def dry_run(parts: Iterable[str]) -> None:
    """What would be run: the parts with their seconds, their back ends, and each kernel's launch."""
    for part in parts:
        print(f"part {part}: {PARTS[part]:.0f} s at most")
        if part == "tests":
            print("\n".join(f"test {file}" for file in gpu_tests.FILES))
        if part == "kernels":
            gpu_kernels.dry_run(compile_ptx())
        if part == "images":
            image_ptx()
            print("\n".join(f"images {way.name}: {way.seconds:.0f} s" for way in gpu_images.WAYS))
        if part == "models":
            print(f"networks {', '.join(gpu_models.PRESETS)}; batches {', '.join(map(str, gpu_models.BATCHES))}")
            print("\n".join(f"network on {each.name} {each.precision}: {each.seconds:.0f} s" for each in BACK_ENDS))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").split("\n")[0])
    out = Path(os.environ["OUT"], "gpu.json") if os.environ.get("OUT") else None
    words = "write the tables and the machine's description; default: gpu.json in $OUT, if that is set"
    parser.add_argument("--json", type=Path, metavar="FILE", default=out, help=words)
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", default=list(PARTS), help="these parts alone")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="what does not fit is not run, and named; default: %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="compile and show what would run; needs no GPU")
    options = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in options.only]
    try:
        if options.dry_run:
            dry_run(parts)
            return 0
        require_gpu()
        return check(parts, options.seconds, options.json)
    except DenseportError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

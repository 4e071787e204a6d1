"""What this machine has: processors, memory, GPUs, and the packages that artifacts need."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from denseport.runtime.errors import MachineError
from denseport.runtime.system.cpus import arithmetic, has_bf16, has_vnni, usable_cpus

__all__ = ["Gpu", "Machine", "inspect_machine", "install_command", "proc_values", "require"]

# Distributions that hold one thing under several names, the usual one first.
DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "pycuda": ("pycuda",),
    "cuda-bindings": ("cuda-bindings",),
    "torch": ("torch",),
    "onnx": ("onnx",),
    "pillow": ("pillow",),
}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    compute_capability: str  # "9.0"
    memory_mib: int | None  # None: the processor's, which it shares (GB10, Jetson)
    driver: str

    @property
    def architecture(self) -> str:
        """``sm_90`` and the like."""
        return "sm_" + self.compute_capability.replace(".", "")


@dataclass(frozen=True)
class Machine:
    """What was found."""

    system: str
    processor: str  # name and arithmetic
    cpus: int  # that this process may use
    memory_gib: float | None  # that this process may use; None where the system does not say
    gpus: tuple[Gpu, ...]
    packages: dict[str, str | None]  # version, None where absent
    providers: tuple[str, ...]  # ONNX Runtime's execution providers
    bf16: bool = False  # the processor has arithmetic for BF16
    vnni: bool = False  # it adds products of 8-bit integers in 32 bits

    def summary(self) -> dict[str, str]:
        """What a reader of a measurement needs to know of the machine."""
        memory = "memory unknown" if self.memory_gib is None else f"{self.memory_gib:.1f} GiB"
        gpus = ", ".join(f"{gpu.name} ({gpu.architecture}, driver {gpu.driver})" for gpu in self.gpus)
        installed = ", ".join(f"{name} {found}" for name, found in self.packages.items() if found)
        return {
            "system": self.system,
            "processor": f"{self.processor}, {self.cpus} CPUs for this process, {memory}",
            "GPU": gpus or "none",
            "packages": f"denseport {version('denseport')}, {installed}",
        }


def inspect_machine(*, look_for_gpus: bool | None = True) -> Machine:
    """Look at this machine; nothing is imported but ONNX Runtime.

    Args:
        look_for_gpus: asking the driver takes a tenth of a second; None asks only if ONNX Runtime could use one.
    """
    providers = _providers()
    ask = "CUDAExecutionProvider" in providers if look_for_gpus is None else look_for_gpus
    return Machine(
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        processor=_processor(),
        cpus=usable_cpus(),
        memory_gib=_memory_gib(),
        gpus=_gpus() if ask else (),
        packages={name: _version(distributions) for name, distributions in DISTRIBUTIONS.items()},
        providers=providers,
        bf16=has_bf16(),
        vnni=has_vnni(),
    )


def _version(distributions: Sequence[str]) -> str | None:
    """That of the first that is installed; None where none is."""
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def install_command(extra: str) -> str:
    """The command that adds an extra, "tensorrt-rtx" say, to the Denseport that is installed.

    It names what that was installed of: a clone, a wheel, a repository, or nothing but its name, for an index or
    ``--find-links``. Source: PEP 610.
    """
    origin, editable = _origin()
    if origin is None:
        return f"pip install {shlex.quote(f'denseport[{extra}]')}"
    if "://" in origin:
        return f"pip install {shlex.quote(f'denseport[{extra}] @ {origin}')}"
    path, option = Path(origin), "-e " * editable
    if path.exists():
        return f"pip install {option}{shlex.quote(f'{path}[{extra}]')}"
    return f"pip install {shlex.quote(f'./{path.name}[{extra}]')} in the folder that has it now"


def _origin() -> tuple[str | None, bool]:
    """The path or the address that Denseport was installed of, if any, and whether the files there are in use."""
    try:
        # A clone has metadata in its own folder too, without that file; Python meets them first when it runs there.
        found = (each.read_text("direct_url.json") for each in distributions(name="denseport"))
        data = json.loads(next(filter(None, found), "{}"))
        url, vcs, editable = data.get("url"), data.get("vcs_info"), data.get("dir_info", {}).get("editable", False)
        if vcs is not None:
            url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    except (ValueError, KeyError, AttributeError, TypeError):  # what no installer should write
        return None, False
    if isinstance(url, str) and url.startswith("file:"):
        return url2pathname(urlsplit(url).path), bool(editable)
    return url if isinstance(url, str) else None, False


def require(modules: Sequence[str], extra: str) -> None:
    """Look for the modules that a command needs, before it begins; nothing is imported.

    Args:
        extra: of Denseport, that installs them: "export,onnxruntime" say.

    Raises:
        MachineError: some cannot be imported.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(f"not installed: {', '.join(missing)}", install_command(extra))


def proc_values(file: str, field: str) -> list[str]:
    """What a file of /proc says of a field, line by line; nothing where there is no such file."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]


def _processor() -> str:
    """Its name and arithmetic: in virtual machines, processors of several generations have one name."""
    names = proc_values("cpuinfo", "model name") or [platform.processor() or platform.machine() or "unknown"]
    return " with ".join(filter(None, (names[0], ", ".join(arithmetic()))))


def _memory_gib() -> float | None:
    """Physical memory, or the control group's limit where that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows has no sysconf, others have other names
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return (min(total, int(limit)) if limit.isdigit() else total) / 2**30


def _gpus() -> tuple[Gpu, ...]:
    """What nvidia-smi, which comes with the driver, lists, as CUDA counts them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = "--query-gpu=uuid,name,compute_cap,memory.total,driver_version"
    try:
        output = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in row] for row in csv.reader(output.splitlines())]
    return _visible(
        [
            (uuid, Gpu(name, capability, int(memory) if memory.isdigit() else None, driver))  # "[N/A]" on GB10
            for uuid, name, capability, memory, driver in rows
        ]
    )


def _visible(gpus: list[tuple[str, Gpu]]) -> tuple[Gpu, ...]:
    """Those that CUDA would show this process, in its order.

    CUDA puts the fastest first, for which the newest stands here; nvidia-smi goes by the bus. Of CUDA_VISIBLE_DEVICES
    nothing counts from the first entry on that is none. Slices of a GPU (MIG) are not listed: all GPUs stand for one.
    """
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        gpus = sorted(gpus, key=lambda each: [-int(part) for part in each[1].compute_capability.split(".")])
    wanted, shown = os.environ.get("CUDA_VISIBLE_DEVICES"), [gpu for _, gpu in gpus]
    if wanted is None or "MIG-" in wanted:
        return tuple(shown)
    chosen: list[Gpu] = []
    for entry in map(str.strip, wanted.split(",")):
        if entry.isdecimal():
            found = shown[int(entry) : int(entry) + 1]
        else:
            found = [gpu for uuid, gpu in gpus if entry.startswith("GPU-") and uuid.startswith(entry)]
        if len(found) != 1:
            break
        chosen += found
    return tuple(chosen)


def _providers() -> tuple[str, ...]:
    try:
        import onnxruntime
    except ImportError:
        return ()
    return tuple(onnxruntime.get_available_providers())

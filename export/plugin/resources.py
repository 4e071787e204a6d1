"""What each kernel takes of a GPU (registers, memory, spills), from NVIDIA's assembler ptxas; no GPU needed.

ptxas comes with the CUDA toolkit or in the wheel ``nvidia-cuda-nvcc``. It does here what the driver does when
it loads an engine, so it also shows that every architecture can run the PTX.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from denseport.runtime.errors import MachineError

__all__ = ["ARCHITECTURES", "KernelResources", "assemble", "find_ptxas"]

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_REMEDY = "install the CUDA toolkit 13.0, or: pip install 'nvidia-cuda-nvcc==13.0.*'"
_REPORT = re.compile(
    r"Function properties for (?P<kernel>\w+)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
    r"(?:.*?, (?P<shared>\d+) bytes smem)?"
)


@dataclass(frozen=True)
class KernelResources:
    """One kernel on one architecture."""

    kernel: str
    architecture: str  # "sm_90"
    registers: int  # a thread
    stack_bytes: int  # a thread, in local memory
    spill_bytes: int  # stored to and loaded from local memory for want of registers, as instructions in the code
    shared_bytes: int  # a block, static


def assemble(ptx: bytes, architecture: str, ptxas: Path | None = None) -> tuple[KernelResources, ...]:
    """Assemble ``ptx`` for ``architecture`` and return what its kernels take, in the order of their names.

    Raises:
        MachineError: there is no ptxas, or it rejects the PTX.
    """
    assembler = ptxas or find_ptxas()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.ptx"
        source.write_bytes(ptx)
        run = subprocess.run(
            [
                str(assembler),
                "--verbose",
                f"--gpu-name={architecture}",
                str(source),
                f"--output-file={folder}/cubin",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode != 0:
        raise MachineError(f"{assembler} rejects the PTX for {architecture}:\n{run.stderr}")
    reports = (match.groupdict(default="0") for match in _REPORT.finditer(run.stderr))
    found = (
        KernelResources(
            kernel=report["kernel"],
            architecture=architecture,
            registers=int(report["registers"]),
            stack_bytes=int(report["stack"]),
            spill_bytes=int(report["stores"]) + int(report["loads"]),
            shared_bytes=int(report["shared"]),
        )
        for report in reports
    )
    return tuple(sorted(found, key=lambda resources: resources.kernel))


def find_ptxas() -> Path:
    """Return the ptxas of the wheel, else of the machine.

    Raises:
        MachineError: there is none.
    """
    try:
        package = importlib.util.find_spec("nvidia.cu13")
    except ModuleNotFoundError:
        package = None
    for folder in (package.submodule_search_locations or []) if package else []:
        candidate = Path(folder) / "bin" / "ptxas"
        if candidate.exists():
            return candidate
    on_path = shutil.which("ptxas")
    if on_path is None:
        raise MachineError("ptxas, NVIDIA's assembler, is not installed", _REMEDY)
    return Path(on_path)

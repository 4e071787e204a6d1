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

import pytest

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
REPORT = re.compile(
    r"Function properties for (?P<kernel>\w+)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)


@dataclass(frozen=True)
class KernelResources:
    """One kernel on one architecture."""

    kernel: str
    registers: int  # a thread
    stack_bytes: int  # a thread, in local memory
    spill_bytes: int  # stored to and loaded from local memory for want of registers, as instructions in the code


def assemble(ptx: bytes, architecture: str) -> list[KernelResources]:
    """Assemble ``ptx`` for ``architecture``: what its kernels take. Skips the test where there is no ptxas.

    Raises:
        subprocess.CalledProcessError: ptxas rejects the PTX.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.ptx"
        source.write_bytes(ptx)
        command = [_ptxas(), "--verbose", f"--gpu-name={architecture}", source, f"--output-file={folder}/cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [
        KernelResources(
            kernel=report["kernel"],
            registers=int(report["registers"]),
            stack_bytes=int(report["stack"]),
            spill_bytes=int(report["stores"]) + int(report["loads"]),
        )
        for report in REPORT.finditer(said)
    ]


def _ptxas() -> Path:
    """The ptxas of the wheel, else of the machine."""
    package = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    for folder in (package.submodule_search_locations or []) if package else []:
        candidate = Path(folder) / "bin" / "ptxas"
        if candidate.exists():
            return candidate
    on_path = shutil.which("ptxas")
    if on_path is None:
        pytest.skip("ptxas, NVIDIA's assembler, is not installed")
    return Path(on_path)

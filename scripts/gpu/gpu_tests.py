"""The tests that need a GPU, as the first part of gpu_check.py: what they say is wrong explains what comes after."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["FILES", "NO_GRAPH", "TestsRow", "run_tests"]

ROOT = Path(__file__).parents[2]
FILES = ("tests/runtime/backends/test_tensorrt_gpu.py", "tests/runtime/pipeline/test_device_path_gpu.py")
NEEDED = ("pytest", "hypothesis", "onnx", "onnxscript")
NO_GRAPH = "no CUDA graph"  # how `denseport.runtime.backends.cuda.replay` begins to say so
KEPT = 60  # lines of output


@dataclass(frozen=True)
class TestsRow:
    """How the tests ended."""

    passed: bool  # true where they were not run
    seconds: float
    output: tuple[str, ...]  # the last lines: each failure, each skip with its reason, and the numbers
    note: str = ""  # "not run: …" or "stopped: …"


def run_tests(seconds: float, files: tuple[str, ...]) -> TestsRow:
    """Run test files for at most so long."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return TestsRow(True, 0.0, (), f"not run: not installed: {', '.join(missing)}")
    # A warning of a release that this clone does not pin is no fault of the GPU's; a graph that is not recorded is one.
    warnings = ["-o", "filterwarnings=default", "-W", f"error:{NO_GRAPH}:RuntimeWarning"]
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", *warnings, "--durations=5", *files]
    started, note = time.monotonic(), ""
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        program.kill()
        output, _ = program.communicate()
        note = f"stopped: they took longer than {seconds:.0f} s"
    return TestsRow(program.returncode == 0, time.monotonic() - started, tuple(output.splitlines()[-KEPT:]), note)

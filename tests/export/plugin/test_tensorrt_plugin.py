"""NVIDIA's own front-end takes the plugins, on a machine without TensorRT; see tensorrt_on_cpu.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("tensorrt_on_cpu.py")
WHEELS = {
    "tensorrt_bindings": "tensorrt-cu13-bindings",
    "tensorrt_lean_libs": "tensorrt-lean-cu13-libs",
}


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    absent = [wheel for module, wheel in WHEELS.items() if importlib.util.find_spec(module) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")


def test_tensorrt_registers_and_validates_the_plugins(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    creators = json.loads(run.stdout.splitlines()[-1])["creators"]
    assert {creator["name"]: creator["fields"] for creator in creators} == {
        "UpsampleAdd": ["align_corners"],
        "UpsampleArgmax": ["scale"],
        "ResizeArgmax": [],
    }
    assert {creator["version"] for creator in creators} == {"1"}

"""Nothing is written or sent that nobody asked for: the home folder after a bundle ran, and what is imported first."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import tiny_bundle
from support import REPO, ROOTS

RUN = """
import os, sys, time
import numpy as np
{first}
from denseport.runtime import Segmenter
with Segmenter(sys.argv[1]) as segment:
    assert segment(np.zeros((32, 64, 3), np.uint8)).mask.shape == (32, 64)
assert "onnxruntime" in sys.modules
print(os.environ["ORT_DISABLE_TELEMETRY"])
time.sleep(0.5)  # its files came within a tenth of that
"""
PROBE = "from denseport.export.graph.probe import Probe"


@pytest.mark.parametrize(
    ("first", "cache"),
    [
        ("", False),
        ("", True),
        ("import denseport.export, onnxruntime", False),
        ("import denseport.calibration", False),
        (PROBE, True),
    ],
)
def test_a_bundle_that_ran_leaves_nothing_in_the_home_folder(tmp_path: Path, first: str, cache: bool) -> None:
    """With ONNX Runtime 1.31.1's telemetry there would be .cache/Microsoft/DeveloperTools/.onnxruntime."""
    bundle = tiny_bundle(tmp_path / "bundle")
    (tmp_path / "home").mkdir()
    (tmp_path / "cache").mkdir()
    kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
    environment = {name: value for name, value in os.environ.items() if name in kept} | {"HOME": str(tmp_path / "home")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")} if cache else {}
    command = [sys.executable, "-c", RUN.format(first=first), str(bundle.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "1\n"
    assert [*(tmp_path / "home").rglob("*"), *(tmp_path / "cache").rglob("*")] == []


def test_who_set_it_has_the_last_word() -> None:
    code = "import denseport.runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "0\n"


def test_onnx_runtime_is_imported_inside_functions_alone() -> None:
    """By then the module's package has switched its telemetry off."""
    files = [path for folder in (*ROOTS, "scripts") for path in (REPO / folder).rglob("*.py")]
    found = [path for path in files if "onnxruntime" in _imported_at_the_top(path)]
    assert len(files) > 100 and found == []


def _imported_at_the_top(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}

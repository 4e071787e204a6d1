"""Wheels for tests of many releases: each unpacked once, in a folder of its own, and put before the environment's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["program_on", "wheel"]

FOLDER = "DENSEPORT_MATRIX"  # the environment variable; scripts/test --matrix sets it


def wheel(requirement: str) -> Path:
    """The folder of a wheel without what it depends on; skips the test where it cannot be had.

    Args:
        requirement: such as "numpy==2.4.0".
    """
    kept = os.environ.get(FOLDER)
    if not kept:
        pytest.skip(f"takes wheels of many releases: scripts/test --matrix ({FOLDER} names their folder)")
    folder = Path(kept, requirement)
    if not folder.is_dir():
        unpacked = Path(kept, f"{requirement}.{os.getpid()}")
        options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(unpacked)]
        command = [sys.executable, "-m", "pip", "install", *options, requirement]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode != 0:
            pytest.skip(f"{requirement} cannot be had: {said.stderr.strip().splitlines()[-1]}")
        unpacked.rename(folder)
    return folder


def program_on(wheels: Sequence[Path], *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python with these wheels before all others, and further environment variables."""
    path = os.pathsep.join(map(str, wheels))
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": path} | variables
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )

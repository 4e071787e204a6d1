"""Whoever has the checkpoint and the versions can make the same bundle, byte for byte, and compare it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ASSETS

SECONDS = "1700000000"
EXPORT = (sys.executable, "-m", "denseport.runtime.cli.main", "export")


@pytest.mark.slow
def test_exports_of_one_checkpoint_are_the_same_bytes(tmp_path: Path) -> None:
    """In other processes, folders, time zones and languages, with other orders of sets and other file times."""
    made = []
    for number, more in enumerate(({"TZ": "UTC"}, {"TZ": "Asia/Tokyo", "LC_ALL": "C"})):
        folder = tmp_path / f"folder {number}"
        folder.mkdir()
        checkpoint = folder / "dpt_tiny_street.pth"
        checkpoint.write_bytes((ASSETS / checkpoint.name).read_bytes())
        environment = os.environ | more | {"PYTHONHASHSEED": str(number + 1), "SOURCE_DATE_EPOCH": SECONDS}
        command = (*EXPORT, checkpoint.name if number else str(checkpoint), "-o", "bundle")
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        made.append({file.name: file.read_bytes() for file in (folder / "bundle").iterdir()})
    assert made[0].keys() == {"manifest.json", "model.onnx"}
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []

"""The first command of the README: what is wrong with its arguments is told before minutes of installing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import REPO


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "scripts/quickstart [--weights WEIGHTS] [IMAGE…]"),
        (["--nothing"], 2, "there is no option --nothing"),
        (["missing.jpg"], 2, "missing.jpg: there is no such file"),
    ],
    ids=["help", "option", "image"],
)
def test_nothing_is_installed_for_wrong_arguments(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    script = tmp_path / "scripts/quickstart"  # in a clone without scripts/environment, which would install
    script.parent.mkdir()
    shutil.copy(REPO / "scripts/quickstart", script)
    done = subprocess.run(["bash", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code and words in done.stdout + done.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["scripts"]

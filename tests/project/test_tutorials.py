"""The tutorials run from their first line to the last: as scripts, and with --slow as notebooks."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import TUTORIALS, cells, commands, title
from quantizing import shorten_races
from support import ASSETS, REPO

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main

PATIENCE = 900  # seconds; the machine may be busy
# Commands that the notebook alone runs, and why.
ONLY_IN_THE_NOTEBOOK = {
    "^denseport calibrate ": "takes ten seconds",
    "int8": "needs what calibrate wrote",
    "--explain-precision": "the page's last program builds the same artifact",
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder like a clone, with the sample's files alone."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/assets").symlink_to(ASSETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=title)
def test_it_runs_as_a_script(
    tutorial: Path, clone: Path, sample: Bundle, each_network_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cells in one interpreter. The bundle is exported in the first tutorial, and copied for the others."""
    shorten_races(monkeypatch)
    if tutorial.stem == "build":
        with_two_images(clone)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, (language, body) in enumerate(cells(tutorial)):
        if language == "python":
            exec(compile(body, f"{title(tutorial)}, cell {number}", "exec"), names)
            continue
        for line in body.splitlines():
            if any(re.search(pattern, line) for pattern in ONLY_IN_THE_NOTEBOOK):
                continue
            ((program, *words),) = commands(line)
            assert program == "denseport"
            if words[0] == "export" and tutorial.stem != "export":
                shutil.copytree(sample.path, words[words.index("-o") + 1])
            else:
                assert main(words) == 0 or "||" in line, line


def with_two_images(clone: Path) -> None:
    """Half of the sample's images, for builds that run on all of them."""
    (clone / "tests/assets").unlink()
    for kind in ("images", "annotations"):
        folder = clone / f"tests/assets/street/{kind}/validation"
        folder.mkdir(parents=True)
        for path in sorted((ASSETS / f"street/{kind}/validation").iterdir())[:2]:
            shutil.copy(path, folder)


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=title)
def test_it_runs_as_a_notebook(tutorial: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook that the site offers, by a kernel of Jupyter's: nothing is left out or replaced."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.syspath_prepend(str(REPO / "scripts/site"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    from pages import notebook

    found = nbformat.reads(notebook(tutorial.read_text(encoding="utf-8")), 4)
    nbclient.NotebookClient(found, timeout=PATIENCE, resources={"metadata": {"path": str(clone)}}).execute()
    run = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [bool(cell.execution_count) for cell in run] == [True] * len(cells(tutorial))

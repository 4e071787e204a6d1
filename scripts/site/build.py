"""The documentation site: the pages of the repository, and those that follow from its code, as HTML. See scripts/docs.

Usage: build.py [FOLDER]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from check import faults
from commands_page import commands_page
from pages import REPO, stage
from python_pages import python_pages

SETTINGS = REPO / "scripts/site/zensical.toml"
QUIET = "No issues found"  # all that a good build writes to standard error
COLOUR = re.compile(r"\x1b\[[\d;]*m")
OURS = ("site.css", "site.js")  # beside this file


def main() -> None:
    folder = Path(sys.argv[1] if sys.argv[1:] else REPO / "out/docs").resolve()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        stage(work / "docs")
        (work / "docs/commands.md").write_text(commands_page(), encoding="utf-8")
        for name in OURS:
            shutil.copy(Path(__file__).with_name(name), work / "docs")
        modules = python_pages(work / "docs/python")
        link_packages(work / "packages/denseport")
        settings = SETTINGS.read_text(encoding="utf-8")
        (work / "zensical.toml").write_text(settings.replace('"MODULES"', ", ".join(modules)), encoding="utf-8")
        wrong = [*unlisted(settings, work / "docs"), *built(work), *faults(work / "site")]
        if wrong:
            sys.exit("\n".join(wrong))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "site", folder)
    print(folder / "index.html")


def link_packages(root: Path) -> None:
    """The packages under their installed names, where mkdocstrings reads them: it imports nothing."""
    root.mkdir(parents=True)
    for name in ("runtime", "export", "calibration"):
        (root / name).symlink_to(REPO / name)
    (root / "__init__.py").symlink_to(REPO / "runtime/package/__init__.py")


def unlisted(settings: str, docs: Path) -> list[str]:
    """Pages that no menu leads to; those of modules are put there by `main`."""
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    listed = {page for page in pages if f'"{page}"' in settings or page.startswith("python/")}
    return [f"{page}: in no menu of {SETTINGS.name}" for page in sorted(pages - listed)]


def built(work: Path) -> list[str]:
    """Builds the site; what was said about it. Zensical's own strict mode lets warnings about docstrings pass."""
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}  # for docstrings.py
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    said, problems = (COLOUR.sub("", text) for text in (done.stdout, done.stderr))
    wrong = [line for line in problems.partition("Traceback ")[0].splitlines() if line and line != QUIET]
    return [said, *(wrong or [problems])] if done.returncode or wrong else []


if __name__ == "__main__":
    main()

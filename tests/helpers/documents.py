"""What the documents hold: blocks of code, commands, links. Read by test_documents.py."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

from support import REPO

TUTORIALS = sorted((REPO / "docs/tutorials").glob("*.md"))
DOCUMENTS = (
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "CHANGELOG.md",
    *sorted((REPO / "docs").rglob("*.md")),
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def title(document: Path) -> str:
    """As the documents call one another: ``docs/engines.md``."""
    return document.relative_to(REPO).as_posix()


def blocks(document: Path, language: str) -> list[str]:
    """The contents of the fenced blocks of one language, in their order."""
    found = _FENCE.findall(document.read_text(encoding="utf-8"))
    return [body for named, body in found if named == language]


def cells(document: Path) -> list[tuple[str, str]]:
    """The language and the text of each block that a notebook of the page has as a cell, in their order."""
    found = _FENCE.findall(document.read_text(encoding="utf-8"))
    return [(language, body) for language, body in found if language in ("bash", "python")]


def prose(document: Path) -> str:
    """All but the fenced blocks."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def code_spans(document: Path) -> list[str]:
    """What stands `between backticks` in a document's prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(document))]


def links(document: Path) -> list[str]:
    return _LINK.findall(prose(document))


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(block: str) -> list[list[str]]:
    """The lines of a shell block, as words; lines that end in a backslash joined; comments and what follows ||, not."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.partition(" || ")[0], comments=True))]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """A parser for each sub-command of ``denseport``."""
    found = {}
    for entry in entry_points(group="denseport.commands"):
        found[entry.name] = argparse.ArgumentParser(prog=f"denseport {entry.name}")
        entry.load().add_arguments(found[entry.name])
    return found


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}

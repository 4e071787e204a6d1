"""The Markdown pages of the repository, where the site has them, with links that lead there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import jupytext

__all__ = ["REPO", "stage"]

REPO = Path(__file__).resolve().parents[2]
PLACES = {
    "README.md": "index.md",
    "SECURITY.md": "security-policy.md",  # docs/security.md is another one
    "docs/README.md": "contents.md",
    "tests/assets/README.md": "samples.md",
}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
NAMED = re.compile(r"\[[\w-]+\.md\](?=\(([^)\s#]+\.md))")  # a link whose text is the file's name
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
KERNEL = "---\njupyter:\n  kernelspec:\n    display_name: Python 3\n    language: python\n    name: python3\n---\n\n"
LANGUAGES = {".py": "python", ".cpp": "cpp", ".go": "go", ".txt": "cmake"}


def stage(docs: Path) -> None:
    """Writes all pages below ``docs``, with their images, and a notebook beside each tutorial."""
    shutil.copytree(REPO / "docs/images", docs / "images")
    (docs / "examples.md").write_text(_examples(), encoding="utf-8")
    pages = _pages()
    for source, place in pages.items():
        text = REPO.joinpath(source).read_text(encoding="utf-8")
        page = docs / place
        page.parent.mkdir(parents=True, exist_ok=True)
        if page.parent.name == "tutorials":
            page.with_suffix(".ipynb").write_text(notebook(text), encoding="utf-8")
            heading, body = text.split("\n", 1)
            text = f"{heading}\n\n[This page as a notebook]({page.stem}.ipynb)\n{body}"
        page.write_text(_with_links_of_the_site(text, source, pages | _anchors_of_examples()), encoding="utf-8")


def notebook(text: str) -> str:
    """A page as a Jupyter notebook: its Python and shell blocks are cells that run."""
    return str(jupytext.writes(jupytext.reads(KERNEL + text, "md"), "ipynb"))


def _pages() -> dict[str, str]:
    """The pages of the repository, and where the site has them."""
    own = [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")]
    names = [path.relative_to(REPO).as_posix() for path in own]
    return {name: name.removeprefix("docs/") if "/" in name else name.lower() for name in names} | PLACES


def _with_links_of_the_site(text: str, source: str, places: dict[str, str]) -> str:
    def moved(link: re.Match[str]) -> str:
        if link[1].startswith(("http:", "https:")) or link[1].endswith(".ipynb"):
            return link[0]
        target = os.path.normpath(Path(source).parent / link[1])
        if target.startswith("docs/images/"):
            place = target.removeprefix("docs/")
        elif target in places:
            place = places[target]
        else:
            raise SystemExit(f"{source}: the site has no place for {link[0]}; see PLACES in {__file__}")
        return os.path.relpath(place, Path(places[source]).parent) + (link[2] or "")

    def titled(link: re.Match[str]) -> str:
        page = REPO.joinpath(source).parent / link[1]
        heading, _, _ = page.read_text(encoding="utf-8").partition("\n")
        return f"[{heading.removeprefix('# ')}]"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(moved, NAMED.sub(titled, part)) for part in parts)


def _example_files() -> list[Path]:
    found = [path for path in (REPO / "examples").rglob("*") if path.suffix in LANGUAGES]
    return sorted(found, key=lambda path: (path.suffix == ".txt", path))


def _anchors_of_examples() -> dict[str, str]:
    """Where the site has the files of examples/, and its folders: at their first file."""
    found = {}
    for path in reversed(_example_files()):
        name = path.relative_to(REPO).as_posix()
        anchor = re.sub(r"[^\w-]", "", name.lower())
        found[name] = found[path.parent.relative_to(REPO).as_posix()] = f"examples.md#{anchor}"
    return found


def _examples() -> str:
    parts = ["# Examples\n\nWhole programs, each a page. The tests run them.\n"]
    for path in _example_files():
        name = path.relative_to(REPO).as_posix()
        code = path.read_text(encoding="utf-8")
        parts.append(f"## {name}\n\n```{LANGUAGES[path.suffix]}\n{code}```\n")
    return "\n".join(parts)

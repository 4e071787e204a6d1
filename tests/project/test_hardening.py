"""What the scripts of hardening and the tests' own exports rely on."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from exports import WRITERS, export_once, key
from mutation import mutants_of
from support import ASSETS, REPO

from denseport.export import bundle as export

MODULE = '''"""A docstring of 3 words."""

__all__ = ["f"]
SIZE: int = 2


def f(a: int, b: int = 0) -> int:
    """Returns 1."""
    if a < b:
        return -a
    if not a:
        raise ValueError(f"{a + 1}")
    print(a)
    return max(a, b) if a and b else SIZE * 1
'''


def test_mutants_change_one_expression_each(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODULE)
    mutants = mutants_of(tmp_path, "m.py")
    assert [(mutant.number, mutant.becomes) for mutant in mutants] == [
        (4, "SIZE: int = 3"),
        (4, "SIZE: int = 1"),
        (7, "def f(a: int, b: int = 1) -> int:"),
        (9, "pass"),
        (9, "if (a <= b):"),
        (9, "if (a > b):"),
        (10, "return a"),
        (11, "pass"),
        (11, "if a:"),
        (13, "pass"),
        (14, "return max(a, b)"),
        (14, "return (SIZE * 1)"),
        (14, "return max(a, b) if (a or b) else SIZE * 1"),
        (14, "return max(a, b) if b else SIZE * 1"),
        (14, "return max(a, b) if a else SIZE * 1"),
        (14, "return min(a, b) if a and b else SIZE * 1"),
        (14, "return max(a, b) if a and b else (SIZE / 1)"),
        (14, "return max(a, b) if a and b else SIZE * 2"),
        (14, "return max(a, b) if a and b else SIZE * 0"),
    ]
    for mutant in mutants:
        changed = mutant.applied_to(MODULE)
        ast.parse(changed)
        assert changed != MODULE and ast.get_docstring(ast.parse(changed)) == "A docstring of 3 words."


def test_equivalents_have_reasons_and_lines_that_still_stand() -> None:
    entries = tomllib.loads((REPO / "scripts/hardening/equivalents.toml").read_text())["mutant"]
    for entry in entries:
        assert entry.keys() == {"module", "line", "becomes", "why"} and entry["why"]
        mutants = {(mutant.line, mutant.becomes) for mutant in mutants_of(REPO, entry["module"])}
        assert (entry["line"], entry["becomes"]) in mutants, f"take {entry} out: the module has changed"


def test_an_export_is_made_anew_when_its_sources_or_its_checkpoint_change(tmp_path: Path) -> None:
    for folder in WRITERS:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("1")
    checkpoint = tmp_path / "c.pth"
    checkpoint.write_bytes(b"weights")
    keys = [key(checkpoint, tmp_path)]
    for change in (
        lambda: (tmp_path / WRITERS[0] / "a.py").write_text("2"),
        lambda: (tmp_path / WRITERS[1] / "a.py").rename(tmp_path / WRITERS[1] / "b.py"),
        lambda: checkpoint.write_bytes(b"others"),
    ):
        change()
        keys.append(key(checkpoint, tmp_path))
    assert len(set(keys)) == 4 and key(checkpoint, tmp_path) == keys[-1]


def test_an_export_is_shared_and_its_copies_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Path]()

    def export_bundle(checkpoint: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "manifest.json").write_text((REPO / "tests/security/fuzz/corpus/manifest_full.json").read_text())

    monkeypatch.setattr(export, "export_bundle", export_bundle)
    sample = ASSETS / "dpt_tiny_street.pth"
    one, two = (export_once(sample, tmp_path / "kept", tmp_path / name) for name in ("one", "two"))
    (one.path / "manifest.json").write_text("spoilt")
    three = export_once(sample, tmp_path / "kept", tmp_path / "three")
    assert len(made) == 1 and two.manifest == three.manifest

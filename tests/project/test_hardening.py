"""What the scripts of hardening and the tests' own exports rely on."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exports import export_once, key, locked, network_key, sources
from mutation import mutants_of
from serving import until
from support import ASSETS, REPO
from torch import nn

from denseport.export import bundle as export

IMPORTED = """import sys, denseport.export.bundle
for module in [each for name, each in sys.modules.items() if name.startswith('denseport.')]:
    print(module.__file__)
"""

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


def test_the_table_of_mutants_names_files_that_are_there() -> None:
    command = [sys.executable, REPO / "scripts/hardening/mutants", "nothing.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "no tests are named for nothing.py" in found.stderr


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
    for name, text in {
        "export/bundle.py": "def f():\n    from denseport.runtime import a",
        "runtime/a.py": "from denseport.runtime.b import c\nimport os",
        "runtime/b.py": "c = 1",
        "runtime/other.py": "c = 1",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    checkpoint = tmp_path / "c.pth"
    checkpoint.write_bytes(b"weights")
    keys = [key(checkpoint, tmp_path)]
    for change in (
        lambda: (tmp_path / "runtime/b.py").write_text("c = 2"),
        lambda: (tmp_path / "runtime/b.py").rename(tmp_path / "runtime/d.py"),
        lambda: checkpoint.write_bytes(b"others"),
    ):
        change()
        keys.append(key(checkpoint, tmp_path))
    (tmp_path / "runtime/other.py").write_text("c = 2")
    assert len(set(keys)) == 4 and key(checkpoint, tmp_path) == keys[-1]


def test_the_sources_of_an_export_are_all_that_it_imports() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True, cwd=REPO)
    package = Path(export.__file__).parents[1]
    imported = {Path(name) for name in done.stdout.split() if Path(name).name != "__init__.py"}
    assert len(imported) > 20 and imported <= sources(package)
    assert package / "export/graph/fusion.py" not in sources(package), (
        "a change there would make a new export for nothing"
    )


def test_a_graph_is_taken_for_the_same_layers_settings_and_weights_alone() -> None:
    def network(bias: float = 0.0, **settings: object) -> nn.Module:
        convolution, pooling = nn.Conv2d(1, 1, 3), nn.AvgPool2d(2)
        for value, number in ((convolution.weight, 1.0), (convolution.bias, bias)):
            nn.init.constant_(value, number)
        vars(pooling).update(settings)
        return nn.Sequential(convolution, pooling)

    others = [network(1.0), network(stride=1), network(rewrite=True), nn.Sequential(nn.ReLU(), *network())]
    keys = [network_key(each) for each in (network(), *others)]
    assert network_key(network()) == keys[0] and len({*keys, network_key(network(), 13)}) == 6


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that exports were written to; none takes time."""
    found = list[str]()

    def export_bundle(checkpoint: Path, folder: Path, config: Path | None) -> None:
        found.append(folder.name.rpartition("-")[0])
        folder.mkdir()
        (folder / "manifest.json").write_text((REPO / "tests/security/fuzz/corpus/manifest_full.json").read_text())

    monkeypatch.setattr(export, "export_bundle", export_bundle)
    return found


def test_an_export_is_shared_and_its_copies_are_not(tmp_path: Path, made: list[str]) -> None:
    sample = ASSETS / "dpt_tiny_street.pth"
    one, two = (export_once(sample, tmp_path / "kept", tmp_path / name) for name in ("one", "two"))
    (one.path / "manifest.json").write_text("spoilt")
    three = export_once(sample, tmp_path / "kept", tmp_path / "three")
    assert made == ["dpt_tiny_street"] and two.manifest == three.manifest


def test_while_another_process_exports_one_that_is_needed_too_is_exported(tmp_path: Path, made: list[str]) -> None:
    checkpoints = [tmp_path / f"{name}.pth" for name in ("asked", "there", "next", "last")]
    for path in checkpoints:
        path.write_bytes(path.name.encode())
    asked, there, *_ = checkpoints
    kept = tmp_path / "kept"
    export_once(there, kept, tmp_path / "copy")
    with ThreadPoolExecutor() as pool:
        with locked(kept / f"asked-{key(asked)[:16]}.lock"):
            found = pool.submit(export_once, asked, kept, tmp_path / "asked", checkpoints)
            until(lambda: len(made) == 2, 60)
            assert not found.done()
        assert found.result().path == tmp_path / "asked"
    assert made == ["there", "next", "asked"]

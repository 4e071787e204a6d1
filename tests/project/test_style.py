"""How the code is laid out: sizes of files and functions, who imports whom, what is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPO, ROOTS

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
# What is longer, and why it stays whole.
LONG = {
    "tests/export/graph/test_precision.py": "one policy, case by case, on graphs that the cases share",
    "tests/runtime/serving/http/test_serve.py": "one server, asked in every way over the same fixtures",
}
# A place, and the places that it may import anywhere in its code, be it only inside a function. A place is a folder of
# one of the three packages, or a module that lies in none; `*` are all places of a package.
LOW = ["runtime/errors", "runtime/system"]
FORMAT = [*LOW, "runtime/bundle"]
BELOW_SEGMENTER = [*FORMAT, "runtime/media", "runtime/backends", "runtime/pipeline"]
RUNTIME = [*BELOW_SEGMENTER, "runtime/selection", "runtime/segmenter"]
MEASURING = [*RUNTIME, "runtime/evaluation", "runtime/benchmark"]
ARROWS = {
    "runtime/errors": [],
    "runtime/system": ["runtime/errors"],
    "runtime/bundle": LOW,
    "runtime/media": FORMAT,
    "runtime/backends": FORMAT,
    "runtime/pipeline": [*FORMAT, "runtime/media", "runtime/backends"],
    "runtime/selection": BELOW_SEGMENTER,
    "runtime/segmenter": [*BELOW_SEGMENTER, "runtime/selection"],
    "runtime/evaluation": RUNTIME,
    "runtime/benchmark": [*RUNTIME, "runtime/evaluation"],
    "runtime/serving": RUNTIME,
    "runtime/cli": ["runtime/*"],
    "export/errors": ["runtime/errors"],
    "export/models": ["runtime/*"],
    "export/graph": ["export/errors", "export/plugin", "runtime/*"],
    "export/plugin": ["export/errors", "runtime/*"],
    "export/checkpoint": ["export/errors", "export/models", "runtime/*"],
    "export/engine": ["export/errors", "export/graph", "export/plugin", "runtime/*"],
    "export/entrance": ["export/errors", "export/models", "export/checkpoint", "export/graph", "runtime/*"],
    "export/audit": ["export/errors", "export/graph", "runtime/*"],
    "export/*": ["export/*", "runtime/*"],
    "calibration/errors": ["runtime/errors"],
    "calibration/observe": ["calibration/errors", "export/graph", "runtime/*"],
    "calibration/quantize": ["calibration/errors", "calibration/observe", "export/graph", "runtime/*"],
    "calibration/search": [
        "calibration/errors", "calibration/observe", "calibration/quantize", "export/graph", "runtime/*",
    ],
    "calibration/*": ["calibration/*", "export/graph", "runtime/*"],
}  # fmt: skip
MOST_ENTRIES = 15  # of a folder
# Libraries that no line of these folders imports.
BANNED = {
    "runtime": {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"},
    "calibration": {"torch", "onnxscript"},
    "export/graph": {"torch", "safetensors"},
}
# Public by their name, and promised to no other module.
UNPROMISED = {"calibration/quantize/smoothing.py": {"quantized_error"}}

# What people bring from elsewhere is read here, and refused with these.
OURS = {"CheckpointError", "DatasetError", "ImageError", "InputError", "OutputError"}
MENDABLE = (
    "export/checkpoint/file.py", "export/checkpoint/recognise.py", "export/checkpoint/settings.py",
    "runtime/evaluation/dataset.py", "runtime/evaluation/layouts.py", "runtime/media/images.py",
    "runtime/media/videos.py",
)  # fmt: skip

CODE = [path for folder in (*ROOTS, "examples", "scripts", "tests") for path in sorted((REPO / folder).rglob("*.py"))]
# Commands promise three fixed names instead: HELP, add_arguments, run.
PACKAGE = [path for path in CODE if path.relative_to(REPO).parts[0] in ROOTS and path.parent.name != "commands"]


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_files_and_functions_are_short() -> None:
    long = {name_of(path) for path in CODE if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES_OF_A_FILE}
    for path in CODE:
        for node in nodes(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
                continue
            if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION:
                long.add(f"{name_of(path)}: {node.name}")
    assert long == LONG.keys(), "split what is new here, and take out of LONG what has become short"


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in its code."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def place(module: str) -> str:
    """Of a module's full name: "runtime/pipeline" of what lies in that folder, "runtime/segmenter" of a lone module."""
    return "/".join(module.split(".")[1:3])


def allowed(source: str, target: str) -> bool:
    package = source.split("/")[0]
    rule = ARROWS.get(source, ARROWS.get(f"{package}/*", []))
    return target == source or target in rule or f"{target.split('/')[0]}/*" in rule


@pytest.mark.parametrize("folder", ROOTS)
def test_imports_follow_the_arrows(folder: str) -> None:
    trespasses = []
    for path in sorted((REPO / folder).rglob("*.py")):
        source = place("denseport." + ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"))
        for module in imported(path):
            if any(module.split(".")[0] in BANNED.get(each, ()) for each in (folder, source)):
                trespasses.append(f"{name_of(path)} imports {module}")
            target = place(module)
            is_place = (REPO / target).is_dir() or (REPO / f"{target}.py").is_file()
            if module.startswith("denseport.") and is_place and "/" in source and not allowed(source, target):
                trespasses.append(f"{name_of(path)} imports {module}")
    assert not trespasses


def test_every_folder_says_what_lives_there_and_holds_few_things() -> None:
    for root in (*ROOTS, "scripts"):
        for folder in (REPO / root, *(each for each in (REPO / root).rglob("*") if each.is_dir())):
            entries = [each.name for each in folder.iterdir() if each.name != "__pycache__"]
            if entries and folder.name != "__pycache__":
                assert len(entries) <= MOST_ENTRIES, f"{name_of(folder)} has {len(entries)} entries"
            if root != "scripts" and (folder / "__init__.py").exists():
                tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
                assert ast.get_docstring(tree), f"{name_of(folder)}/__init__.py says nothing"


@pytest.mark.parametrize("name", MENDABLE)
def test_errors_about_files_say_how_to_mend_them(name: str) -> None:
    for node in nodes(REPO / name):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = ast.unparse(node.exc.func)
            assert kind not in OURS or len(node.exc.args) == 2, f"{name}:{node.lineno}: {kind} without a remedy"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_public_names_are_promised(path: Path) -> None:
    """Functions and classes without an underscore stand in `__all__`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    promised: set[str] = set()
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            promised |= set(ast.literal_eval(node.value))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = {node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")}
    assert public - promised == UNPROMISED.get(name_of(path), set())

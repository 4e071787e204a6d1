"""What is installed, what it imports, and how fast it starts."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support import NEEDS_TENSORRT, REPO, ROOTS, modules

import denseport

# None of them may be needed to import the runtime; its back ends import their library when they are opened.
FORBIDDEN = ("torch", "onnx", "onnxscript", "safetensors", "onnxruntime", "tensorrt", "fastapi", "denseport.export")


def tree_of(module: str) -> ast.Module:
    path = REPO.joinpath(*module.split(".")[1:])
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def test_setup_cfg_names_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    listed = config["options"]["packages"].split()
    found = [path.parent.relative_to(REPO) for root in ROOTS for path in (REPO / root).rglob("__init__.py")]
    names = {".".join(("denseport", *path.parts)) for path in found} - {"denseport.runtime.package"} | {"denseport"}
    assert sorted(listed) == sorted(names)
    for package in sorted(names - {"denseport"}):
        folder = REPO.joinpath(*package.split(".")[1:])
        assert not {path.parent for path in folder.rglob("*.py")} - {REPO / path for path in found}


def test_the_package_tells_its_version_and_loads_nothing() -> None:
    code = "import denseport, sys; print(len([each for each in sys.modules if 'denseport.' in each])); "
    assert run_python(code + "print(denseport.__version__)").split() == ["0", version("denseport")]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = denseport.nothing


def test_every_command_is_there() -> None:
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    for line in config["options.entry_points"]["denseport.commands"].strip().splitlines():
        name, _, module = line.partition(" = ")
        command = importlib.import_module(module)
        assert module.endswith(f".commands.{name}") and command.HELP and command.add_arguments and command.run


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_runtime_imports_where_there_is_neither_torch_nor_onnx() -> None:
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({(*FORBIDDEN, "denseport.calibration")!r}))
for name in {modules("runtime")!r}:
    importlib.import_module(name)
"""
    run_python(code)


def test_passes_import_without_torch_and_calibration_without_onnxscript() -> None:
    code = """
import importlib, sys
sys.modules.update(dict.fromkeys({missing!r}))
for name in {names!r}:
    importlib.import_module(name)
"""
    passes = [name for name in modules("export") if name.startswith("denseport.export.graph")]
    assert len(passes) > 10
    run_python(code.format(missing=("torch", "safetensors"), names=passes))
    run_python(code.format(missing=("torch", "safetensors", "onnxscript"), names=modules("calibration")))
    heavy = run_python("import denseport.export.graph, sys; print(*sys.modules)").split()
    assert not {"onnx", "onnx_ir", "numpy", "onnxruntime"} & set(heavy)


def test_importing_the_runtime_is_light() -> None:
    code = "import denseport.runtime, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    assert not {"torch", "onnx", "onnxruntime", "cv2", "numpy"} & set(run_python(code).split())


def test_a_segmenter_on_a_cpu_loads_nothing_for_gpus() -> None:
    code = """import sys
from denseport.runtime import Segmenter
print(*[name for name in sys.modules if name.startswith("denseport.")])"""
    loaded = run_python(code).split()
    assert len(loaded) <= 30, "import what only some calls need where they need it"
    assert not [name for name in loaded if "cuda" in name or "tensorrt" in name or "device" in name]


@pytest.mark.parametrize("name", modules())
def test_what_a_module_promises_exists(name: str) -> None:
    if name == NEEDS_TENSORRT:
        pytest.importorskip("tensorrt")
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), f"{name}.__all__ names {public}"


def test_modules_use_only_what_others_promise() -> None:
    promised = {
        name: getattr(importlib.import_module(name), "__all__", None) for name in modules() if name != NEEDS_TENSORRT
    }
    trespasses = [
        f"{name} takes {alias.name} from {node.module}"
        for name in promised
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ImportFrom) and node.module in promised
        for alias in node.names
        if f"{node.module}.{alias.name}" not in promised and alias.name not in (promised[node.module] or ())
    ]
    assert not trespasses


def seconds(*command: str) -> float:
    """Processor time, user and system, of a process and its children."""
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.alone
def test_help_starts_as_fast_as_numpy_and_opencv() -> None:
    denseport = str(Path(sys.executable).with_name("denseport"))
    pairs = [(seconds(denseport, "--help"), seconds(sys.executable, "-c", "import numpy, cv2")) for _ in range(5)]
    ours, theirs = (min(times) for times in zip(*pairs, strict=True))
    print(f"denseport --help: {ours:.3f} s of processor time; import numpy, cv2: {theirs:.3f} s")
    assert ours <= 1.3 * theirs

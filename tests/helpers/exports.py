"""Bundles of the tests' checkpoints: exported once, however many processes ask for them."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

import denseport.runtime
from denseport.runtime.bundle.bundle import Bundle

PACKAGE = Path(denseport.runtime.__file__ or "").parents[1]
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def shelf(factory: pytest.TempPathFactory) -> Path:
    """The folder of the exports of this run: DENSEPORT_TEST_EXPORTS, or one that pytest-xdist's workers share."""
    if named := os.environ.get("DENSEPORT_TEST_EXPORTS"):
        return Path(named)
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"


def export_once(checkpoint: Path, folder: Path, target: Path, config: Path | None = None) -> Bundle:
    """A copy, at ``target``, of the bundle of a checkpoint; exported to ``folder`` unless that was done before."""
    from denseport.export import bundle as export  # it imports torch, which most tests do without

    kept = folder / f"{checkpoint.stem}-{key(checkpoint, config=config)[:16]}"
    with locked(kept.with_suffix(".lock")):
        if not kept.exists():
            export.export_bundle(checkpoint, kept, config=config)
    return Bundle(shutil.copytree(kept, target))


def key(checkpoint: Path, package: Path = PACKAGE, *, config: Path | None = None) -> str:
    """What an export depends on: the checkpoint, a file or a folder, the sources and the versions of the libraries."""
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (*files, *([config] if config else []))))
    for path in sorted(sources(package)):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    digest.update(" ".join(version(library) for library in LIBRARIES).encode())
    return digest.hexdigest()


def sources(package: Path, start: str = "export/bundle.py") -> set[Path]:
    """The files of the package that one of them imports, at once or through others, and itself."""
    found, ahead = set[Path](), [package / start]
    while ahead:
        path = ahead.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("denseport."):
                module = package.joinpath(*(node.module or "").split(".")[1:])
                names = [module / alias.name for alias in node.names]  # a module of a folder, or a name in a module
                ahead += [file for each in (module, *names) for file in (each.with_suffix(".py"), each / "__init__.py")]
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``; the system lets go of it where a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

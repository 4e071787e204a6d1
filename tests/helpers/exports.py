"""Bundles of the tests' checkpoints, and the graphs of networks: made once, however many processes ask for them."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import denseport.runtime
from denseport.runtime.bundle.bundle import Bundle

if TYPE_CHECKING:
    import torch

PACKAGE = Path(denseport.runtime.__file__ or "").parents[1]
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def shelf(factory: pytest.TempPathFactory) -> Path:
    """The folder of the exports of this run: DENSEPORT_TEST_EXPORTS, or one that pytest-xdist's workers share."""
    if named := os.environ.get("DENSEPORT_TEST_EXPORTS"):
        return Path(named)
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"


def export_once(
    checkpoint: Path, folder: Path, target: Path, others: Iterable[Path] = (), *, config: Path | None = None
) -> Bundle:
    """A copy, at ``target``, of the bundle of a checkpoint; exported to ``folder`` unless that was done before.

    Args:
        config: given with the first checkpoint.
        others: checkpoints that the tests need too. While another process exports the first, one of them is exported.
    """
    if _exported(checkpoint, folder, config, wait=False) is None:
        next((other for other in others if _exported(other, folder, wait=False)), None)
        _exported(checkpoint, folder, config, wait=True)
    return Bundle(shutil.copytree(_place(checkpoint, folder, config), target))


def _exported(checkpoint: Path, folder: Path, config: Path | None = None, *, wait: bool) -> bool | None:
    """Whether an export had to be made; None: another process is at it."""
    from denseport.export import bundle as export  # it imports torch, which most tests do without

    kept = _place(checkpoint, folder, config)
    with locked(kept.with_suffix(".lock"), wait=wait) as is_ours:
        if not is_ours:
            return None
        if kept.exists():
            return False
        with networks_once(folder):
            export.export_bundle(checkpoint, kept, config=config)
        return True


@cache
def _place(checkpoint: Path, folder: Path, config: Path | None) -> Path:
    return folder / f"{checkpoint.stem}-{key(checkpoint, config=config)[:16]}"


@contextmanager
def networks_once(folder: Path) -> Iterator[None]:
    """While the block lasts, what torch exported before of a network is taken from ``folder`` and not exported anew.

    All else that an export does stays, above all the comparison with torch.
    """
    from denseport.export import bundle
    from denseport.export.entrance.torch_to_onnx import export_onnx
    from denseport.export.explain import explain

    def exported(model: torch.nn.Module, path: Path, *versions: int) -> list[Path]:
        kept = folder / f"{network_key(model, *versions)}.onnx"
        with locked(kept.with_suffix(".lock")):
            if not kept.exists():
                (file,) = export_onnx(model, kept.with_suffix(".part"), *versions)
                file.rename(kept)
        return [Path(shutil.copy(kept, path))]

    with pytest.MonkeyPatch.context() as patch:
        for module in (bundle, explain):
            patch.setattr(module, "export_onnx", exported)
        yield


def key(checkpoint: Path, package: Path = PACKAGE, *, config: Path | None = None) -> str:
    """What an export depends on: the checkpoint, a file or a folder, the sources and the versions of the libraries."""
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    data = b"".join(file.read_bytes() for file in (*files, *([config] if config else [])))
    return hashlib.sha256(data + _tools(package)).hexdigest()


def network_key(model: torch.nn.Module, *versions: int) -> str:
    """What a network's graph depends on: its layers' settings and weights, the exporter and the versions of ONNX."""
    digest = hashlib.sha256(repr(versions).encode() + _own_tools())
    for name, module in model.named_modules():
        settings = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        digest.update(repr((name, type(module).__name__, sorted(settings.items()))).encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("num_batches_tracked"):  # what training alone uses
            continue
        digest.update(repr((name, value.dtype, value.shape)).encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


@cache
def _own_tools() -> bytes:
    return _tools(PACKAGE)


def _tools(package: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(sources(package)):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    digest.update(" ".join(version(library) for library in LIBRARIES).encode())
    return digest.digest()


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
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path``; without ``wait``, say whether it was free. The system lets go where a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True

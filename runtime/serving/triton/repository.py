"""Write a model repository so that a server that watches it never sees an unfinished model or version.

Each is written beside the repository and renamed into it when complete.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from string import Template
from typing import Any

from denseport.runtime.bundle.bundle import Bundle, has_manifest
from denseport.runtime.errors import OutputError
from denseport.runtime.serving.triton.config import Config, to_pbtxt
from denseport.runtime.serving.triton.variants import LABELS, Options, Served, model_name, served_models
from denseport.runtime.system.arguments import required_path
from denseport.runtime.system.files import folders_above, sha256_of, work_folder, write_atomic, writing

__all__ = ["Exported", "export_repository"]

CONFIG = "config.pbtxt"
README = "README.md"
RECORD = "denseport.json"  # in each version: what it was made of


@dataclass(frozen=True)
class Exported:
    """What an export added."""

    repository: Path
    model: str  # that clients ask
    version: int
    models: tuple[str, ...]  # all that were written or brought up to date


def export_repository(bundle: Bundle, repository: Path, options: Options) -> Exported:
    """Add a bundle to a model repository, as a new model or as the next version of one that is there.

    Versions share the model's configuration: the new one's holds for all of them.

    Args:
        repository: the folder; made if it is not there.

    Raises:
        BundleError: an artifact is missing or altered.
        InputError: the back end cannot serve the bundle.
        OutputError: the repository cannot be written, or holds something else under the model's name.
    """
    repository, name = required_path("repository", repository), model_name(bundle, options.name)
    models = served_models(bundle, options)
    paths = [path for model in models for path in model.files.values() if isinstance(path, Path)]
    record = {
        "denseport": package_version("denseport"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": bundle.manifest.name,
        "backend": options.backend,
        "depth": None if bundle.manifest.depth is None else asdict(bundle.manifest.depth),
        "files": {path.name: sha256_of(path) for path in paths},
    }
    _refuse_other(repository, models, record)
    version = 1 + max((n for model in models for n in _versions(repository / model.config.name)), default=0)
    with ExitStack() as stack:
        stack.enter_context(folders_above(repository / name))
        with writing(repository.parent):
            work = stack.enter_context(work_folder(repository.absolute().parent))
        staged = [_stage(work, model, version if model.versioned else 1, record) for model in models]
        for model, folder in zip(models, staged, strict=True):
            _keep_old_plans(model.config, repository)
            _place(repository / model.config.name, folder, model)
    write_atomic(repository / README, _readme(repository).encode())
    return Exported(repository, name, version, tuple(model.config.name for model in models))


def _versions(model: Path) -> list[int]:
    """The versions that a model's folder holds; Triton takes folders whose names are numbers."""
    names = [path.name for path in model.iterdir() if path.is_dir()] if model.is_dir() else []
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def _refuse_other(repository: Path, models: list[Served], record: dict[str, Any]) -> None:
    """A version for another back end, or with other classes, would change the older versions."""
    readme = repository / README
    with writing(readme):
        if has_manifest(repository):
            raise OutputError(f"{repository}: is a bundle, not a model repository", "Choose another folder with -o.")
        if readme.exists() and b"Written by Denseport" not in readme.read_bytes():
            raise OutputError(
                f"{readme}: exists already, and Denseport did not write it", "Choose another folder with -o."
            )
    for model in models:
        folder = repository / model.config.name
        with writing(folder):
            if not folder.exists():
                continue
            found = _latest_record(folder)
            labels = (folder / LABELS).read_text(encoding="utf-8") if (folder / LABELS).is_file() else None
        if found is None:
            reason = "is there already, and Denseport did not write it"
        elif found.get("backend") != record["backend"]:
            reason = f"is there already, for the back end {found.get('backend')}"
        elif labels != model.labels:
            reason = f"is there already, and has other classes: {LABELS} belongs to all versions"
        elif found.get("depth") != record["depth"]:
            reason = "is there already, and its numbers mean other depths, or none"
        else:
            continue
        raise OutputError(f"{folder}: {reason}", "Choose another name with --name, or another repository with -o.")


def _latest_record(model: Path) -> dict[str, Any] | None:
    """What the latest version that Denseport wrote was made of; None: it wrote none."""
    files = (model / str(version) / RECORD for version in sorted(_versions(model), reverse=True))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _stage(work: Path, model: Served, version: int, record: dict[str, Any]) -> Path:
    """The model's folder with this version alone, below ``work``."""
    folder: Path = work / model.config.name
    with writing(folder):
        place = folder / str(version)
        place.mkdir(parents=True)
        for name, source in model.files.items():
            (place / name).parent.mkdir(exist_ok=True)
            if isinstance(source, Path):
                shutil.copyfile(source, place / name)
            else:
                (place / name).write_bytes(source)
        (place / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / CONFIG).write_text(to_pbtxt(model.config), encoding="utf-8")
        if model.labels is not None:
            (folder / LABELS).write_text(model.labels, encoding="utf-8")
    return folder


def _keep_old_plans(config: Config, repository: Path) -> None:
    """Keep the GPUs of older versions in the configuration, which all versions share."""
    by_gpu = config.cc_model_filenames
    for path in (repository / config.name).glob("[0-9]*/sm_*.plan") if by_gpu else ():
        digits = path.stem.removeprefix("sm_")
        by_gpu[f"{digits[:-1]}.{digits[-1]}"] = path.name  # a GPU's file has one name in all versions


def _place(target: Path, folder: Path, model: Served) -> None:
    """Rename a staged model, or its version, into the repository."""
    text = to_pbtxt(model.config).encode()
    with writing(target):
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
            return
        if (target / CONFIG).read_bytes() != text:  # a server loads the model again when the file changes
            write_atomic(target / CONFIG, text)
        if model.versioned:
            (staged,) = (path for path in folder.iterdir() if path.is_dir())
            staged.rename(target / staged.name)


def _readme(repository: Path) -> str:
    """How to start a server on the repository, and what is in it."""
    rows = []
    for model in sorted(path.parent for path in repository.glob(f"*/{CONFIG}")):
        record = _latest_record(model)
        if record is not None:
            versions = ", ".join(map(str, sorted(_versions(model))))
            rows.append(f"| `{model.name}` | {versions} | {record['backend']} | {record['bundle']} |")
    template = Path(__file__).with_name("repository.md").read_text(encoding="utf-8")
    return Template(template).substitute(models="\n".join(rows), denseport=package_version("denseport"))

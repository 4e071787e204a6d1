"""A bundle on disk: a folder with a manifest and the artifacts that it names."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from denseport.runtime.errors import BundleError, OutputError
from denseport.runtime.files import sha256_of, write_atomic, writing
from denseport.runtime.manifest import Artifact, Manifest

__all__ = ["MANIFEST", "Bundle", "new_bundle"]

MANIFEST = "manifest.json"


class Bundle:
    """An existing bundle.

    Args:
        path: the folder.

    Raises:
        BundleError: no such folder, no manifest in it, or a manifest that cannot be used.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        file = self.path / MANIFEST
        if not self.path.is_dir():
            reason = "not a bundle: a file" if self.path.exists() else "no such folder"
            raise BundleError(f"{self.path}: {reason}", "Make one: denseport export CHECKPOINT -o BUNDLE")
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError as err:
            raise BundleError(
                f"{self.path}: not a bundle: no {MANIFEST} in it", "Make one: denseport export CHECKPOINT -o BUNDLE"
            ) from err
        except (OSError, UnicodeDecodeError) as err:
            raise BundleError(f"{file}: cannot be read: {err}") from err
        self.manifest = Manifest.from_json(text, str(file))

    def artifact(self, name: str) -> Artifact:
        """The manifest's entry for an artifact.

        Raises:
            BundleError: the bundle has none of that name.
        """
        if name not in self.manifest.artifacts:
            known = ", ".join(self.manifest.artifacts) or "none"
            raise BundleError(f"{self.path}: no artifact {name!r}; it has {known}", "Build it with denseport build.")
        return self.manifest.artifacts[name]

    def verified(self, name: str) -> Path:
        """The path of an artifact's main file, after all its files were found to be what the manifest says.

        Raises:
            BundleError: a file is missing, altered, or lies outside the bundle.
        """
        paths = []
        for file_name, digest in self.artifact(name).files.items():
            path = self.path / file_name
            if Path(file_name).name != file_name or path.is_symlink():
                raise BundleError(f"{self.path}: {name}: {file_name!r} does not name a file of the bundle itself")
            if not path.is_file():
                raise BundleError(f"{path}: missing from the bundle", "Copy the bundle again, whole, or export again.")
            if sha256_of(path) != digest:
                raise BundleError(
                    f"{path}: altered since it was written: its hash differs from the manifest's",
                    "Copy the bundle again, or export again; an altered model is never run.",
                )
            paths.append(path)
        if not paths:
            raise BundleError(f"{self.path}: {name}: lists no file")
        return paths[0]

    def add(self, name: str, artifact: Artifact) -> None:
        """Enter an artifact, whose files are already in the folder, into the manifest."""
        artifacts = {**self.manifest.artifacts, name: artifact}
        manifest = dataclasses.replace(self.manifest, artifacts=artifacts)
        write_atomic(self.path / MANIFEST, manifest.to_json().encode())
        self.manifest = manifest


@contextmanager
def new_bundle(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes the bundle ``path`` when the block ends, and vanishes on any error.

    Args:
        replace: an existing bundle at ``path`` is replaced, and only when the new one is whole.

    Raises:
        OutputError: ``path`` exists (and is not a bundle to be replaced), or cannot be written.
    """
    if path.exists() and not (replace and (path / MANIFEST).is_file()):
        remedy = (
            "Choose another name with -o."
            if replace or not path.is_dir()
            else "Choose another name with -o, or give --force."
        )
        what = "a bundle" if (path / MANIFEST).is_file() else "something that is no bundle"
        raise OutputError(f"{path}: exists already and is {what}", remedy)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        with writing(path):
            temporary.chmod(0o755)  # mkdtemp's 0700 would keep a server's user out
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
                path.rename(old / path.name)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

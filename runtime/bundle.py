"""A bundle on disk: a folder with a manifest and the artifacts that it names."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from denseport.runtime.errors import BundleError, OutputError
from denseport.runtime.files import folders_above, sha256_of, write_atomic, writing
from denseport.runtime.manifest import Artifact, Manifest

__all__ = ["MANIFEST", "Bundle", "new_bundle"]

MANIFEST = "manifest.json"
MAKE_ONE = "Make one: denseport export CHECKPOINT -o BUNDLE"
EXPORT_AGAIN = "Export the checkpoint again."
PREFIX = ".denseport-"  # of unfinished folders, hidden from globs


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
        with _reading(file):
            if not self.path.is_dir():
                reason = "not a bundle: a file" if self.path.exists() else "no such folder"
                raise BundleError(f"{self.path}: {reason}", MAKE_ONE)
            if not file.exists():
                raise BundleError(f"{self.path}: not a bundle: no {MANIFEST} in it", MAKE_ONE)
            text = file.read_text(encoding="utf-8")
        self.manifest = Manifest.from_json(text, str(file))

    def artifact(self, name: str) -> Artifact:
        """The manifest's entry for an artifact.

        Raises:
            BundleError: the bundle has none of that name.
        """
        if name not in self.manifest.artifacts:
            artifacts = self.manifest.artifacts
            known = ", ".join(artifacts) or "none"
            meant = [each for each in artifacts if each.startswith(f"{name}.") or artifacts[each].precision == name]
            remedy = f"Give its whole name: {' or '.join(meant)}." if meant else "Build it with denseport build."
            raise BundleError(f"{self.path}: no artifact {name!r}; it has {known}", remedy)
        return self.manifest.artifacts[name]

    def verified(self, name: str) -> Path:
        """The path of an artifact's main file, after all its files were found to be what the manifest says.

        Raises:
            BundleError: a file is missing, altered, or lies outside the bundle.
        """
        paths = [self._verified_file(*entry) for entry in self.artifact(name).files.items()]
        if not paths:
            raise BundleError(f"{self.path}: {name}: lists no file", EXPORT_AGAIN)
        return paths[0]

    def _verified_file(self, name: str, digest: str) -> Path:
        path = self.path / name
        with _reading(path):
            if Path(name).name != name or path.is_symlink():
                raise BundleError(f"{self.path}: {name!r} does not name a file of the bundle itself", EXPORT_AGAIN)
            if not path.is_file():
                raise BundleError(f"{path}: missing from the bundle", "Copy the bundle again, whole, or export again.")
            if sha256_of(path) != digest:
                raise BundleError(
                    f"{path}: altered since it was written: its hash differs from the manifest's",
                    "Copy the bundle again, or export again; an altered model is never run.",
                )
        return path

    def add(self, name: str, artifact: Artifact, files: Iterable[Path] = ()) -> None:
        """Move an artifact's files into the folder and enter it into the manifest; one of that name is replaced.

        Safe beside other processes that write the same bundle, and against being killed: the manifest never names a
        file that is not whole.

        Args:
            files: of the artifact, still elsewhere on the same file system; none: they are in the folder already.

        Raises:
            BundleError: the manifest was damaged meanwhile.
            OutputError: the folder cannot be written.
        """
        files = tuple(files)
        with self._locked():
            if files:
                self._write({key: value for key, value in self.manifest.artifacts.items() if key != name})
            for file in files:
                with writing(self.path / file.name):
                    file.replace(self.path / file.name)
            self._write({**self.manifest.artifacts, name: artifact})

    def note(self, name: str, record: Mapping[str, Any]) -> None:
        """Add to the record of an artifact what was found out about it, its measured accuracy say.

        Raises:
            BundleError: the artifact was replaced by another one meanwhile, which this does not concern.
            OutputError: the folder cannot be written.
        """
        files = self.artifact(name).files
        with self._locked():
            artifact = self.manifest.artifacts.get(name)
            if artifact is None or artifact.files != files:
                raise BundleError(f"{self.path}: {name} was replaced meanwhile", "Measure the new one.")
            noted = dataclasses.replace(artifact, record={**artifact.record, **record})
            self._write({**self.manifest.artifacts, name: noted})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The bundle for this process alone, and its manifest as it now is; others wait."""
        with writing(self.path):
            folder = os.open(self.path, os.O_RDONLY)
        try:
            with writing(self.path):
                fcntl.flock(folder, fcntl.LOCK_EX)
            self.manifest = Bundle(self.path).manifest
            yield
        finally:
            os.close(folder)

    def _write(self, artifacts: dict[str, Artifact]) -> None:
        if artifacts != self.manifest.artifacts:
            manifest = dataclasses.replace(self.manifest, artifacts=artifacts)
            write_atomic(self.path / MANIFEST, manifest.to_json().encode())
            self.manifest = manifest


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong when ``path`` is read into a BundleError about it."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or err
        raise BundleError(f"{path}: cannot be read: {reason}", "Check its permissions, or export again.") from err


@contextmanager
def new_bundle(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes the bundle ``path`` when the block ends, and vanishes on any error.

    Args:
        replace: an existing bundle at ``path`` is replaced, and only when the new one is whole.

    Raises:
        OutputError: ``path`` exists (and is not a bundle to be replaced), or cannot be written.
    """
    with writing(path):
        _refuse_existing(path, replace)
    with folders_above(path):
        with writing(path):
            temporary = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
        try:
            yield temporary
            with writing(path):
                temporary.chmod(0o755)  # mkdtemp's 0700 would keep a server's user out
                if replace and path.exists():
                    _swap(temporary, path)
                else:
                    temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(path: Path, replace: bool) -> None:
    is_bundle = (path / MANIFEST).is_file()
    if not (path.exists() or path.is_symlink()) or (replace and is_bundle):
        return
    what = "a bundle" if is_bundle else "something that is no bundle"
    raise OutputError(
        f"{path}: exists already and is {what}",
        "Choose another name with -o" + (", or give --force." if is_bundle else "."),
    )


def _swap(new: Path, path: Path) -> None:
    """Puts ``new`` in the place of the bundle ``path``, which stays if that fails."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as folder:
        old = path.rename(Path(folder) / "old")
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise

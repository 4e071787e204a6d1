"""A bundle on disk: a folder with a manifest and the artifacts that it names."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.artifact import Artifact, Proof
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import BundleError, InputError, OutputError
from denseport.runtime.system.arguments import required_path
from denseport.runtime.system.files import (
    exchange,
    folders_above,
    locked,
    remove_temporary_files,
    sha256_of,
    work_folder,
    write_atomic,
    writing,
)

__all__ = ["LOCK", "MANIFEST", "Bundle", "has_manifest", "new_bundle", "refuse_other_task"]

MANIFEST = "manifest.json"
LOCK = ".denseport-lock"  # there while a process writes the bundle; no file of any artifact
MAKE_ONE = "Make one: denseport export CHECKPOINT -o BUNDLE, or denseport import MODEL.onnx -o BUNDLE"
EXPORT_AGAIN = "Export or import it again."
LARGEST_MANIFEST = 64 << 20  # bytes; the largest seen has 0.3 MB
PREFIX = ".denseport-old-"  # of the folder that holds a bundle while another takes its place


class Bundle:
    """An existing bundle.

    Args:
        path: the folder.

    Raises:
        BundleError: no such folder, no manifest in it, or a manifest that cannot be used.
        InputError: what is no path.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = required_path("bundle", path)
        file = self.path / MANIFEST
        with _reading(file):
            if not self.path.is_dir():
                raise _no_folder(self.path)
            if not file.exists():
                raise BundleError(f"{self.path}: not a bundle: no {MANIFEST} in it", MAKE_ONE)
            if not file.is_file():  # reading a pipe would wait for ever
                raise BundleError(f"{file}: cannot be read: not an ordinary file", EXPORT_AGAIN)
            if file.stat().st_size > LARGEST_MANIFEST:
                raise BundleError(f"{file}: larger than {LARGEST_MANIFEST >> 20} MiB: no manifest", EXPORT_AGAIN)
            data = file.read_bytes()
            text = data.decode()
        self.manifest = Manifest.from_json(text, str(file))
        self.digest = sha256(data).hexdigest()  # of the manifest's file, as it was read or written last

    def artifact(self, name: str) -> Artifact:
        """The manifest's entry for an artifact.

        Raises:
            BundleError: the bundle has none of that name.
        """
        artifacts = self.manifest.artifacts
        if isinstance(name, str) and name in artifacts:
            return artifacts[name]
        known = ", ".join(artifacts)
        meant = [each for each in artifacts if each.startswith(f"{name}.") or artifacts[each].precision == name]
        remedy = f"Give its whole name: {' or '.join(meant)}." if meant else "Build it with denseport build."
        raise BundleError(f"{self.path}: no artifact {name!r}; it has {known}", remedy)

    def verified(self, name: str) -> Path:
        """The path of an artifact's main file. All its files were found to be what the manifest says.

        Raises:
            BundleError: a file is missing, altered, or lies outside the bundle, or the model names one for its weights
                that the manifest does not list.
        """
        artifact = self.artifact(name)
        for file, digest in artifact.files.items():
            self._verify_file(file, digest)
        if artifact.kind == "onnx":
            self._refuse_unlisted(self.path / artifact.main, artifact)
        return self.path / artifact.main

    def _refuse_unlisted(self, model: Path, artifact: Artifact) -> None:
        """An ONNX file may make its reader open only files that were verified."""
        from denseport.runtime.bundle.external_data import external_files

        with _reading(model):
            try:
                unlisted = sorted(external_files(model) - artifact.files.keys())
            except ValueError as err:
                raise BundleError(f"{model}: no ONNX model: {err}", EXPORT_AGAIN) from err
        if unlisted:
            raise BundleError(
                f"{model}: has weights in {unlisted[0]!r}, which the manifest does not list for it",
                "Do not run this bundle unless you know why; export or import it again.",
            )

    def _verify_file(self, name: str, digest: str) -> None:
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

    def add(self, name: str, artifact: Artifact, files: Iterable[Path] = ()) -> None:
        """Move an artifact's files into the folder and enter it into the manifest; one of that name is replaced.

        The artifacts of `outdated_by` go with the one that is replaced.
        Other processes may write the same bundle, and this one may be killed: the manifest names only whole files.

        Args:
            files: the artifact's, elsewhere on the same file system; none: they are in the folder already.

        Raises:
            BundleError: the manifest was damaged meanwhile.
            OutputError: the folder cannot be written.
        """
        files = tuple(files)
        with self.locked():
            lost = {name, *self.outdated_by(artifact)}
            if files:
                self._write({key: value for key, value in self.manifest.artifacts.items() if key not in lost})
            for file in files:
                with writing(self.path / file.name):
                    file.replace(self.path / file.name)
            self._write({**self.manifest.artifacts, name: artifact})

    def outdated_by(self, artifact: Artifact) -> list[str]:
        """Names of the artifacts with a file that has the name, and not the content, of one of ``artifact``'s.

        Those for OpenVINO share another artifact's file.
        """
        new = artifact.files.items()
        others = self.manifest.artifacts.items()
        return [name for name, a in others if any(a.files.get(file, digest) != digest for file, digest in new)]

    def note(self, name: str, record: Mapping[str, Any], proof: Proof | None = None) -> None:
        """Add to the record of an artifact what was found out about it, such as its accuracy.

        Args:
            proof: what the new entry proves; it replaces the proof of the figures that the entry replaces.

        Raises:
            BundleError: the artifact was replaced meanwhile.
            OutputError: the folder cannot be written.
        """
        files = self.artifact(name).files
        with self.locked():
            artifact = self.manifest.artifacts.get(name)
            if artifact is None or artifact.files != files:
                raise BundleError(f"{self.path}: {name} was replaced meanwhile", "Measure the new one.")
            kept = (*(each for each in artifact.proof if each.figures not in record), *([proof] if proof else []))
            noted = dataclasses.replace(artifact, proof=kept, record={**artifact.record, **record})
            self._write({**self.manifest.artifacts, name: noted})

    def keep_temperature(self, temperature: float) -> None:
        """Keep the temperature of the scores; `denseport.runtime.bundle.manifest.TEMPERATURES` has its limits.

        Raises:
            OutputError: the folder cannot be written.
        """
        with self.locked():
            self._write_manifest(dataclasses.replace(self.manifest, temperature=temperature))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The bundle for this process alone, and its manifest as it now is; others wait."""
        with ExitStack() as stack:
            with writing(self.path):
                stack.enter_context(locked(self.path / LOCK))
            now = Bundle(self.path)
            self.manifest, self.digest = now.manifest, now.digest
            remove_temporary_files(self.path / MANIFEST)
            yield

    def _write(self, artifacts: dict[str, Artifact]) -> None:
        if artifacts != self.manifest.artifacts:
            self._write_manifest(dataclasses.replace(self.manifest, artifacts=artifacts))

    def _write_manifest(self, manifest: Manifest) -> None:
        data = manifest.to_json().encode()
        write_atomic(self.path / MANIFEST, data)
        self.manifest, self.digest = manifest, sha256(data).hexdigest()


def refuse_other_task(bundle: Bundle, wanted: str, instead: str | None = None) -> None:
    """Raises InputError for a bundle whose network does something else than ``wanted``.

    Args:
        instead: what takes it; default: the class that opens it.
    """
    if (task := bundle.manifest.task) != wanted:
        opens = {"depth": "denseport.runtime.DepthEstimator", "segmentation": "denseport.runtime.Segmenter"}[task]
        opens = instead or opens
        raise InputError(f"{bundle.path}: its network is for {task}, not for {wanted}", f"In Python: {opens}(bundle).")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong when ``path`` is read into a BundleError about it."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or err
        raise BundleError(f"{path}: cannot be read: {reason}", "Check its permissions, or export again.") from err


def _no_folder(path: Path) -> BundleError:
    """The error for a path that is missing, or is one of the files that people give instead of a bundle."""
    if not path.exists():
        return BundleError(f"{path}: no such folder", MAKE_ONE)
    remedy = MAKE_ONE
    if (path.parent / MANIFEST).is_file():
        remedy = f"Give the bundle's folder: {path.parent}"
    elif path.suffix in (".pth", ".safetensors"):
        remedy = f"Export it first: denseport export {path} -o BUNDLE"
    elif path.suffix == ".onnx":
        remedy = f"Import it first: denseport import {path} -o BUNDLE"
    return BundleError(f"{path}: not a bundle: a file", remedy)


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
    with folders_above(path), work_folder(path.parent) as folder:
        temporary = folder / "new"
        with writing(path):
            temporary.mkdir()
        yield temporary
        with writing(path):
            temporary.chmod(0o755)  # whatever the umask: a server has a user of its own
            if replace and path.exists():
                _swap(temporary, path)
            else:
                temporary.rename(path)


def _refuse_existing(path: Path, replace: bool) -> None:
    is_bundle = has_manifest(path)
    if not (path.exists() or path.is_symlink()) or (replace and is_bundle):
        return
    what = "is a bundle" if is_bundle else "is not a bundle"
    remedy = "Choose another name with -o" + (", or give --force." if is_bundle else ".")
    raise OutputError(f"{path}: exists already and {what}", remedy)


def has_manifest(path: Path) -> bool:
    """Whether a folder's manifest is of a bundle, even a damaged one; other programs have files of that name."""
    file = path / MANIFEST
    if not file.is_file() or file.stat().st_size > LARGEST_MANIFEST:
        return False
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return True  # a bundle with a damaged manifest is mended by exporting again
    return isinstance(data, dict) and "format_version" in data


def _swap(new: Path, path: Path) -> None:
    """Puts ``new`` in the place of the bundle ``path``, which stays if that fails.

    On systems without an exchange in one step, a process that is killed between the renames leaves the bundle in a
    folder named `PREFIX`, which nobody removes.
    """
    if exchange(new, path):
        return
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as folder:
        old = path.rename(Path(folder) / "old")
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise

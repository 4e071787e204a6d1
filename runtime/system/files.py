"""Where files are written, and how, so that a reader never sees half of one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from denseport.runtime.errors import OutputError

__all__ = [
    "cache_folder",
    "exchange",
    "folders_above",
    "new_file",
    "new_folder",
    "refuse_unwritable",
    "remove_temporary_files",
    "sha256_of",
    "work_folder",
    "write_atomic",
    "writing",
]

WORK = ".denseport-work-"  # begins the names of folders that end with the process that made them
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # linux/fs.h, linux/fcntl.h

_REMEDIES = {
    errno.ENOSPC: "Free some room, or choose another place.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "Choose a folder that you may write to.",
    errno.EISDIR: "A folder has this name: choose another name.",
    errno.EEXIST: "A file is where a folder is needed: choose another place.",
    errno.ENOTDIR: "A file is where a folder is needed: choose another place.",
}


def cache_folder() -> Path | None:
    """Denseport's folder in the user's cache: ``$XDG_CACHE_HOME``, else ``~/.cache``; None where there is no home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home can be found
        return None
    return base / "denseport" if base.is_absolute() else None


def sha256_of(path: Path) -> str:
    """Hash of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into an OutputError about ``path``."""
    try:
        yield
    except OSError as err:
        remedy = _REMEDIES.get(err.errno or 0, "Choose another place.")
        raise OutputError(f"{path}: cannot be written: {err.strerror or err}", remedy) from err


def refuse_unwritable(folder: Path) -> None:
    """Find out before the work whether results can be written to ``folder``, which need not be there yet.

    Raises:
        OutputError: a file is in its place or above it, or this user may not write there.
    """
    with writing(folder):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):  # it does not say why
            reason = errno.EROFS if os.statvfs(nearest).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(reason, os.strerror(reason))


@contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Makes the folders above ``path``; after an error those that it made are removed again, if empty.

    Raises:
        OutputError: they cannot be made.
    """
    with writing(path):
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:  # the innermost first
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it at the end, or removed after an error.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    # The suffix stays, since OpenCV chooses a format by it.
    temporary = path.with_name(f".{secrets.token_hex(6)}{path.suffix}")
    with folders_above(path):
        try:
            yield temporary
            with writing(path):
                temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, whose files are moved to ``path`` at the end, or removed after an error.

    Files that are at ``path`` already stay, unless a new one has their name.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    with folders_above(path), work_folder(path.parent) as temporary:
        yield temporary
        with writing(path):
            path.mkdir(exist_ok=True)
            for file in sorted(temporary.iterdir()):
                file.replace(path / file.name)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or nothing; makes the folders above it.

    Raises:
        OutputError: the place cannot be written.
    """
    with new_file(path) as temporary, writing(path):
        temporary.write_bytes(data)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A folder in ``parent`` for what is not whole yet; it vanishes at the end of the block, with all that is in it.

    Those that killed processes left there are removed first. A lock on its folder tells a living process from them;
    the kernel lets go of it however a process ends.

    Raises:
        OutputError: ``parent`` cannot be written.
    """
    with writing(parent):
        _remove_abandoned(parent)
        folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=WORK, dir=parent))
        with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{WORK}*"):
        with suppress(OSError):  # in use, gone, or not ours to remove
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_temporary_files(path: Path) -> None:
    """Remove what `new_file` left beside ``path`` in processes that were killed; nobody else may be writing it."""
    for file in path.parent.glob(f".{'[0-9a-f]' * 12}{path.suffix}"):
        with suppress(OSError):
            file.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, at once; False where the kernel or the file system cannot.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)

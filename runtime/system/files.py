"""How files are written, so that a reader never sees half of one.

A place that cannot be made or written is an OutputError in all that is here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from denseport.runtime.errors import OutputError

__all__ = [
    "WORK",
    "cache_folder",
    "exchange",
    "folders_above",
    "locked",
    "new_file",
    "new_folder",
    "refuse_unwritable",
    "remove_abandoned",
    "remove_temporary_files",
    "sha256_of",
    "work_folder",
    "write_atomic",
    "writing",
]

WORK = ".denseport-work-"  # begins the names of folders that end with the process that made them
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # linux/fs.h, linux/fcntl.h

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last of the user's limit, or of FAT's 4 GiB
_REMEDIES = {
    **dict.fromkeys(_NO_ROOM, "Free some room, or choose another place."),
    errno.ENAMETOOLONG: "Choose a shorter name: most file systems take 255 bytes, suffix included.",
    errno.EISDIR: "A folder has this name: choose another name.",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder that you may write to."),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "A file is where a folder is needed: choose another place."),
}


def cache_folder(name: str, otherwise: str = "Set XDG_CACHE_HOME to a folder of your own.") -> Path:
    """The folder ``name`` in Denseport's cache, made where it is missing: only this user can read or write it.

    The cache is ``$XDG_CACHE_HOME/denseport``, else ``~/.cache/denseport``. One that others could have filled is
    refused: kernels that run on the GPU come from it.

    Args:
        otherwise: what the user can do without it.

    Raises:
        OutputError: there is no home, or the folder cannot be made, or is a link, another user's, or open to others.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if not folder.is_absolute():
            raise OSError(f"XDG_CACHE_HOME is {str(folder)!r}, which is not an absolute path")
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("denseport", name):
            folder /= part
            folder.mkdir(mode=0o700, exist_ok=True)
            _make_private(folder)
    except (OSError, RuntimeError) as err:  # RuntimeError: no home can be found
        raise OutputError(f"the cache cannot be used: {err}", otherwise) from err
    return folder


def _make_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{folder} is a link")
    if hasattr(os, "getuid"):  # else Windows, where a profile is its user's own and modes mean nothing
        if found.st_uid != os.getuid():
            raise OSError(f"{folder} belongs to another user")
        if found.st_mode & 0o022:
            raise OSError(f"{folder} can be written by other users")
        folder.chmod(0o700)


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


def refuse_unwritable(folder: Path, *files: str) -> None:
    """Check before the work that results can be written to ``folder``, which need not exist yet.

    Args:
        files: names of files that will be written to it.

    Raises:
        OutputError: a file is in its place or above it, a folder is in the place of a file, or this user may not write
            there.
    """
    with writing(folder):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=nearest):
            pass
    for file in (folder / name for name in files):
        with writing(file):
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Makes the folders above ``path``; after an error those that it made are removed again, if empty."""
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
    """A temporary name beside ``path``, renamed to it at the end, or removed after an error."""
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
    """
    with folders_above(path), work_folder(path.parent) as temporary:
        yield temporary
        with writing(path):
            path.mkdir(exist_ok=True)
            for file in sorted(temporary.iterdir()):
                file.replace(path / file.name)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or nothing; makes the folders above it."""
    with new_file(path) as temporary, writing(path):
        temporary.write_bytes(data)


@contextmanager
def locked(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``lock``, which is made and removed here: one thread of one process at a time.

    The system releases the lock however a process ends. The file that a killed process leaves locks nothing, and the
    next holder removes it.

    Args:
        wait: for another holder; else a TimeoutError, which is an OSError, is raised while there is one.
    """
    from filelock import FileLock

    with FileLock(lock, timeout=-1 if wait else 0, thread_local=False):
        try:
            yield
        finally:
            # Removed while it is held: filelock takes no lock on a file without a name, so that those who wait for
            # this one make it anew. Windows removes no open file; there it stays.
            with suppress(OSError):
                lock.unlink()


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A folder in ``parent`` for what is not whole yet; it vanishes at the end of the block, with all that is in it.

    That ``parent`` has no room is an OutputError about it. Folders that killed processes left there are removed first:
    the lock beside a folder tells if its process lives.
    """
    refuse_unwritable(parent)  # filelock would wait for ever where no file can be made, as in /proc
    folder = parent / f"{WORK}{secrets.token_hex(6)}"
    with ExitStack() as stack:
        with writing(parent):
            remove_abandoned(parent)
            stack.enter_context(locked(folder.with_suffix(".lock")))
            folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield folder
        except OSError as err:
            if err.errno not in _NO_ROOM:
                raise
            with writing(parent):  # whoever wrote to the folder, a library perhaps
                raise


def remove_abandoned(parent: Path) -> None:
    """Remove the work folders in ``parent`` whose processes were killed."""
    for path in parent.glob(f"{WORK}*"):  # folders and their locks
        with suppress(OSError), locked(path.with_suffix(".lock"), wait=False):  # in use, gone, or not ours to remove
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)


def remove_temporary_files(path: Path) -> None:
    """Remove what `new_file` left beside ``path`` in processes that were killed; nobody else may be writing it."""
    for file in path.parent.glob(f".{'[0-9a-f]' * 12}{path.suffix}"):
        with suppress(OSError):
            file.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, at once; False where the system or the file system cannot: Linux alone can.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    places = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(*places, _RENAME_EXCHANGE) == 0

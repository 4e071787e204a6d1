"""Write files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from denseport.runtime.errors import OutputError

__all__ = ["new_file", "output_error", "sha256_of", "write_atomic"]


def sha256_of(path: Path) -> str:
    """Hash of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def output_error(path: Path, err: OSError) -> OutputError:
    """What the user should read when ``path`` cannot be written."""
    return OutputError(
        f"{path}: cannot be written: {err.strerror or err}",
        "Make room or choose another place with -o." if err.errno == errno.ENOSPC else "Check the path and its permissions.",
    )


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed on any error.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
        temporary.touch(exist_ok=False)
    except OSError as err:
        raise output_error(path, err) from err
    try:
        yield temporary
        temporary.replace(path)
    except OSError as err:
        raise output_error(path, err) from err
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with new_file(path) as temporary:
        temporary.write_bytes(data)

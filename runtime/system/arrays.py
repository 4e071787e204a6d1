"""Files of numpy arrays that this package writes, and knows to be whole when it reads them again.

The file is an ``.npz`` with the SHA-256 of all its bytes behind it, which other readers pass over. The checksums of the
zip format are not enough: zipfile compares one only at an entry's end, which numpy does not reach where a damaged
header asks for fewer bytes ("<i8" to "<i4"), and a damaged directory may lose whole entries.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.system.files import write_atomic

__all__ = ["read_arrays", "write_arrays"]

_DIGEST = hashlib.sha256().digest_size


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name, all or none, replacing an older file only when the new one is whole.

    Raises:
        OutputError: the place cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    data = buffer.getvalue()
    write_atomic(path, data + hashlib.sha256(data).digest())


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays that `write_arrays` wrote, by name; None where there is no file, or none that is whole.

    No pickles are read.
    """
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    data, digest = stored[:-_DIGEST], stored[-_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}

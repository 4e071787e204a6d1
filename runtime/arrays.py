"""Read files of numpy arrays that this package wrote and something else may have damaged."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_arrays"]


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of an ``.npz`` file, by name; None where there is no file, or none that is whole.

    No pickles are read. The checksums of the zip format tell whether an array is whole.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # np.load leaves damaged ones open
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # numpy and zipfile raise each of these for some damage

"""Measured losses of single layers, kept in a file, so that an interrupted search goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from denseport.calibration.search.sensitivity import Loss
from denseport.runtime.system.arrays import read_arrays, write_arrays

__all__ = ["LossFile"]


class LossFile(dict[str, Loss]):
    """Losses by group. Each new one is written at once.

    Args:
        path: ``.npz``; read if it is whole and was written for the same ``what``, else overwritten.
        what: names what was measured: the statistics, the method, the images.

    Attributes:
        damaged: there is a file, but not a whole one of ours: everything is measured again.
    """

    def __init__(self, path: Path, *what: str) -> None:
        super().__init__()
        self.path, self.what = path, list(what)
        arrays = read_arrays(path)
        self.damaged = arrays is None and path.exists()
        if arrays is not None and "what" in arrays and arrays["what"].tolist() == self.what:
            columns = (arrays[name].tolist() for name in ("groups", "error", "agreement", "miou"))
            for name, error, agreement, miou in zip(*columns, strict=True):
                super().__setitem__(name, Loss(error, agreement, None if np.isnan(miou) else miou))

    def __setitem__(self, name: str, loss: Loss) -> None:
        """Enter a loss and write all of them.

        Raises:
            OutputError: the place cannot be written.
        """
        super().__setitem__(name, loss)
        columns = {name: [getattr(each, name) for each in self.values()] for name in ("error", "agreement", "miou")}
        arrays = {name: np.array(column, np.float64) for name, column in columns.items()}  # None becomes NaN
        write_arrays(self.path, {"what": np.array(self.what, str), "groups": np.array(list(self), str), **arrays})

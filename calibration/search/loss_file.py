"""Measured losses of single layers, kept in a file, so that an interrupted search goes on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from denseport.calibration.search.sensitivity import Loss
from denseport.runtime.system.arrays import read_arrays, write_arrays

__all__ = ["LossFile"]

SAVE_SECONDS = 5.0


class LossFile(dict[str, Loss]):
    """Losses by group, written every few seconds.

    Args:
        path: ``.npz``; taken up if it is whole and was written for the same ``what``, else overwritten.
        what: names what was measured: the statistics, the method, the images.

    Attributes:
        damaged: there is a file, but not a whole one of ours: everything is measured again.
    """

    def __init__(self, path: Path, *what: str) -> None:
        super().__init__()
        self.path, self.what = path, list(what)
        self._saved = time.monotonic()
        arrays = read_arrays(path)
        self.damaged = arrays is None and path.exists()
        if arrays is not None and "what" in arrays and arrays["what"].tolist() == self.what:
            columns = (arrays[name].tolist() for name in ("groups", "error", "agreement", "miou"))
            for name, error, agreement, miou in zip(*columns, strict=True):
                super().__setitem__(name, Loss(error, agreement, None if np.isnan(miou) else miou))

    def save(self) -> None:
        """Write all of them.

        Raises:
            OutputError: the place cannot be written.
        """
        losses = self.values()
        arrays = {
            "what": np.array(self.what, str),
            "groups": np.array(list(self), str),
            "error": np.array([loss.error for loss in losses], np.float64),
            "agreement": np.array([loss.agreement for loss in losses], np.float64),
            "miou": np.array([loss.miou for loss in losses], np.float64),  # None becomes NaN
        }
        write_arrays(self.path, arrays)
        self._saved = time.monotonic()

    def __setitem__(self, name: str, loss: Loss) -> None:
        super().__setitem__(name, loss)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

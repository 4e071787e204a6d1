"""Measured losses of single layers, kept in a file, so that an interrupted search goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from denseport.calibration.sensitivity import Loss
from denseport.runtime.files import write_atomic

__all__ = ["LossFile"]

SAVE_SECONDS = 5.0


class LossFile(MutableMapping[str, Loss]):
    """Losses by group, written every few seconds.

    Args:
        path: JSON; taken up if it was written for the same ``what``, else overwritten.
        what: names what was measured: the statistics, the method, the images.
    """

    def __init__(self, path: Path, *what: str) -> None:
        self.path, self.what = path, list(what)
        self._losses: dict[str, Loss] = {}
        self._saved = time.monotonic()
        try:
            stored = json.loads(path.read_text())
            if stored["what"] == self.what:
                self._losses = {name: Loss(**loss) for name, loss in stored["losses"].items()}
        except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: it is measured again
            return

    def save(self) -> None:
        """Write all of them."""
        losses = {name: loss.to_dict() for name, loss in self._losses.items()}
        write_atomic(self.path, json.dumps({"what": self.what, "losses": losses}).encode())
        self._saved = time.monotonic()

    def __setitem__(self, name: str, loss: Loss) -> None:
        self._losses[name] = loss
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def __getitem__(self, name: str) -> Loss:
        return self._losses[name]

    def __delitem__(self, name: str) -> None:
        del self._losses[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

"""The contract of a back end.

Each back end is one module named after the library that it needs, imported only when it is used.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Session"]


class Session(Protocol):
    """An opened artifact. Safe to call from several threads."""

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32."""
        ...

    def largest_batch(self, height: int, width: int) -> int | None:
        """The images of one size that one run accepts; None: any number."""
        ...

    def close(self) -> None:
        """Give back what it holds; it cannot be used again."""
        ...

    @property
    def description(self) -> str:
        """What runs where, for people: library, version, device, threads."""
        ...

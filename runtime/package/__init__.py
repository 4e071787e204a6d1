"""Denseport: checkpoints of dense-prediction networks to proven deployments.

The package itself holds its version; what applications use is in `denseport.runtime`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # slow to import

    return version("denseport")

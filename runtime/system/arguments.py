"""Arguments of Python's callers, read by the rules that the command line has for its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from denseport.runtime.errors import InputError

__all__ = ["optional_path", "real", "several", "whole"]


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Python's integer from one of Python or numpy; raises InputError for anything else, or out of bounds."""
    return int(_within(name, value, Integral, "a whole number", least, most))


def real(name: str, value: Any, least: float, most: float | None = None) -> float:
    """Python's float from a finite number, in the same way."""
    return float(_within(name, value, Real, "a number", least, most))


def _within(name: str, value: Any, kind: type, words: str, least: float, most: float | None) -> Any:
    is_number = isinstance(value, kind) and not isinstance(value, bool)  # True would be taken for 1
    if not is_number or not least <= value < math.inf or (most is not None and value > most):
        bounds = f"{least} up" if most is None else f"{least} to {most}"
        raise InputError(f"{name} cannot be {value!r}", f"Give {words} from {bounds}.")
    return value


def several(value: Path | str | Iterable[Path | str] | None) -> tuple[Any, ...]:
    """None is nothing, and a text or path alone is one, not its letters."""
    return () if value is None else (value,) if isinstance(value, Path | str) else tuple(value)


def optional_path(name: str, value: Path | str | None) -> Path | None:
    """A path to write to; raises InputError for the empty text, which pathlib takes for the current folder."""
    if value == "":
        raise InputError(f"{name} cannot be ''", "Name a path; check the variable that it came from.")
    return None if value is None else Path(value)

"""Arguments of Python's callers, read by the rules that the command line has for its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from denseport.runtime.errors import InputError

__all__ = ["optional_path", "real", "required_path", "several", "whole"]


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


def several(name: str, value: Path | str | Iterable[Path | str] | None) -> tuple[Any, ...]:
    """None is nothing, and a text or path alone is one, not its letters; raises InputError for what is no list."""
    if value is None or isinstance(value, Path | str):
        return () if value is None else (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise InputError(f"{name} cannot be {value!r}", "Give one, or a list of them.")
    return tuple(value)


def required_path(name: str, value: Path | str) -> Path:
    """A path; raises InputError for the empty text, which pathlib takes for the current folder, and for other types."""
    if not isinstance(value, str | os.PathLike) or value == "":
        raise InputError(f"{name} cannot be {value!r}", "Name a path; check the variable that it came from.")
    return Path(value)


def optional_path(name: str, value: Path | str | None) -> Path | None:
    """In the same way, where there may be none."""
    return None if value is None else required_path(name, value)

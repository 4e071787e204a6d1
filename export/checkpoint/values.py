"""Settings of the test path as the numbers that they must be: other values are refused, by step and key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from denseport.export.checkpoint.config import CORRECT
from denseport.export.errors import CheckpointError

__all__ = ["flag", "real", "reals", "telling", "whole"]

Settings = Mapping[str, Any]


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_real(value) and int(value) == value


def _refuse(kind: str, key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"the test path's {kind} has {key}={value!r}, which is not {wanted}", CORRECT)


def flag(kind: str, own: Settings, key: str) -> bool:
    """True or False; 1, 0 and None are what Python takes for them."""
    value = own[key]
    if value is not None and not (isinstance(value, int) and value in (0, 1)):
        raise _refuse(kind, key, value, "True or False")
    return bool(value)


def whole(kind: str, own: Settings, key: str) -> int:
    if not _is_whole(own[key]):
        raise _refuse(kind, key, own[key], "a whole number")
    return int(own[key])


def real(kind: str, own: Settings, key: str) -> float:
    if not _is_real(own[key]):
        raise _refuse(kind, key, own[key], "a number")
    return float(own[key])


def reals(kind: str, own: Settings, key: str) -> tuple[float, ...]:
    """Several numbers; a single one is a list of one."""
    values = own[key] if isinstance(own[key], (list, tuple)) else [own[key]]
    if not all(map(_is_real, values)):
        raise _refuse(kind, key, own[key], "a number or a list of them")
    return tuple(map(float, values))


@contextmanager
def telling(kind: str) -> Iterator[None]:
    """Names the step whose values cannot be used."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(f"the test path's {kind}: {err}", CORRECT) from err

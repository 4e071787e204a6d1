"""Measure several things in turns, so that a machine that slows down slows all of them down alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["in_turns"]

T = TypeVar("T")


def in_turns(
    work: Mapping[str, Callable[[int], T]], rounds: int, *, least: int = 1, seconds: float = math.inf
) -> dict[str, list[T]]:
    """What each piece of work measured of itself, round by round. Each has a turn in every round; the order rotates.

    Args:
        work: by name; called with the number of the round.
        rounds: at most so many.
        least: so many at least, however long they take.
        seconds: after which no further round begins.
    """
    names, begin = list(work), time.perf_counter()
    found: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds):
        if turn >= least and time.perf_counter() - begin > seconds:
            break
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            found[name].append(work[name](turn))
    return found

"""A few expensive objects shared by many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

__all__ = ["Pool"]


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class Pool(Generic[T]):
    """At most ``limit`` objects, made when first needed; a thread that finds all in use waits.

    Objects are made for a key and only serve that key. When ``limit`` is reached, the one that has been idle
    longest makes room for a new key.

    Args:
        make: an object for a key.
        limit: how many exist at once, of all keys together.
    """

    def __init__(self, make: Callable[[Hashable], T], limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a pool of {limit}")
        self._make, self._limit = make, limit
        self._count = 0  # idle, in use, or being made
        self._idle: list[tuple[Hashable, T]] = []  # longest idle first
        self._changed = threading.Condition()

    @contextmanager
    def take(self, key: Hashable = None) -> Iterator[T]:
        """An object for ``key``, this thread's alone for a block. One whose block raised is discarded."""
        item = self._acquire(key)
        try:
            yield item
        except BaseException:
            try:
                item.close()
            finally:
                self._vacate()
            raise
        with self._changed:
            self._idle.append((key, item))
            self._changed.notify()

    def _acquire(self, key: Hashable) -> T:
        with self._changed:
            while (idle := self._reusable(key)) is None and self._count >= self._limit:
                self._changed.wait()
            if idle is not None and idle[0] == key:
                return idle[1]
            self._count += idle is None
        try:
            if idle is not None:
                idle[1].close()
            return self._make(key)
        except BaseException:
            self._vacate()
            raise

    def _reusable(self, key: Hashable) -> tuple[Hashable, T] | None:
        """The latest idle object of the key; else, when there is no room, the longest idle of any."""
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][0] == key:
                return self._idle.pop(index)
        return self._idle.pop(0) if self._idle and self._count >= self._limit else None

    def _vacate(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify()

    def close(self) -> None:
        """Close the idle objects; threads that use the others must have ended first."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for _, item in idle:
            item.close()

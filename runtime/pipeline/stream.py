"""Stages that work on a sequence at the same time, each in a thread of its own, with little waiting between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["pipelined"]


def pipelined(source: Iterable[Any], stages: Mapping[str, Callable[[Any], Any]], depth: int) -> Generator[Any]:
    """Send each item of ``source`` through all stages, in order.

    An exception of the source or of a stage is raised here, after the results of the items before it. However the
    generator ends (exhausted, by an exception, closed, dropped), its threads have ended too; they end between two
    items, so a source that blocks for ever in ``next`` holds that up.

    Args:
        source: iterated by the first stage's thread.
        stages: what is done, by a name for the thread.
        depth: results that may wait behind each stage; a stage whose results are not fetched pauses.
    """
    channels = [_Channel(depth) for _ in stages]
    threads = []
    for (name, work), before, after in zip(stages.items(), [source, *channels], channels, strict=False):
        # A daemon, lest a source that blocks should keep the interpreter from ending.
        threads.append(
            threading.Thread(target=_work, args=(before, work, after), name=f"denseport-{name}", daemon=True)
        )
    try:
        for thread in threads:
            thread.start()
        yield from channels[-1]
    finally:
        for channel in channels:
            channel.break_off()
        for thread in threads:
            # The garbage collector may drop a generator in any thread, and one that failed to start cannot be joined.
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join()


def _work(before: Iterable[Any], work: Callable[[Any], Any], after: _Channel) -> None:
    try:
        for item in before:
            if not after.put(work(item)):
                return
            del item  # not held while waiting for the next: logits are large
    except BaseException as err:  # whatever it is, it belongs to the reader
        after.end(err)
    else:
        after.end()


class _Channel:
    """A bounded queue that its writer ends, with or without an error, and that its reader may break off."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._items: deque[Any] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._broken = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> bool:
        """Wait for room and add an item; False if the reader wants no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or len(self._items) < self._room)
            if not self._broken:
                self._items.append(item)
                self._changed.notify_all()
            return not self._broken

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def break_off(self) -> None:
        with self._changed:
            self._broken = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._broken or self._ended or bool(self._items))
                if self._broken:
                    return
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item
        if self._error is not None:
            raise self._error

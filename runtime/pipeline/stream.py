"""Stages that work on a sequence at the same time, each in threads of its own, with little waiting between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from denseport.runtime.system.arguments import whole

__all__ = ["pipelined"]

_END = object()  # takes the place of a result after the last one


def pipelined(
    source: Iterable[Any],
    stages: Mapping[str, Callable[[Any], Any]],
    depth: int,
    workers: Mapping[str, int] | None = None,
) -> Generator[Any]:
    """Send each item of ``source`` through all stages; the results come in the order of the items.

    An exception of the source or of a stage is raised here, after the results of the items before it. However the
    generator ends (exhausted, by an exception, closed, dropped), its threads have ended too; they end between two
    items, so a source that blocks for ever in ``next`` holds that up.

    Args:
        source: iterated by the first stage's threads, one at a time.
        stages: what is done, by a name for the threads.
        depth: results that may wait behind each stage beside one for each of its threads; a stage whose results are
            not fetched pauses.
        workers: threads of a stage, by its name, which work on as many items at once; default: one.
    """
    chain: list[_Stage] = []
    threads = []
    for name, work in stages.items():
        count = whole("workers", (workers or {}).get(name, 1), 1)  # with none, nothing would ever come out
        chain.append(_Stage(iter(chain[-1] if chain else source), work, depth + count))
        for _ in range(count):
            # A daemon, lest a source that blocks should keep the interpreter from ending.
            threads.append(threading.Thread(target=chain[-1].run, name=f"denseport-{name}", daemon=True))
    try:
        for thread in threads:
            thread.start()
        yield from chain[-1]
    finally:
        for stage in chain:
            stage.stop()
        for thread in threads:
            # The garbage collector may drop a generator in any thread, and one that failed to start cannot be joined.
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join()


class _Stage:
    """One stage: iterated, it gives its results in order, whichever thread made them."""

    def __init__(self, before: Iterator[Any], work: Callable[[Any], Any], room: int) -> None:
        self._before = before
        self._work = work
        self._room = threading.Semaphore(room)  # for items in hand and results that wait
        self._taking = threading.Lock()  # held to take an item and its place among the results
        self._places: SimpleQueue[Future[Any]] = SimpleQueue()
        self._over = False

    def run(self) -> None:
        """Work in one thread until the items or the wish for results end."""
        while True:
            self._room.acquire()
            with self._taking:
                if self._over:
                    self._room.release()  # for the next thread that waits
                    return
                place: Future[Any] = Future()
                self._places.put(place)
                try:
                    item = next(self._before, _END)
                except BaseException as err:  # whatever it is, it belongs to the reader
                    self.stop()
                    place.set_exception(err)
                    return
            if item is _END or self._over:
                self.stop()
                place.set_result(_END)
                return
            try:
                place.set_result(self._work(item))
            except BaseException as err:
                self.stop()
                place.set_exception(err)
                return
            del item, place  # not held while waiting for the next: logits are large

    def stop(self) -> None:
        """Let threads that wait for an item, for room or for a result go."""
        self._over = True
        end: Future[Any] = Future()
        end.set_result(_END)
        self._places.put(end)
        self._room.release()

    def __iter__(self) -> Iterator[Any]:
        while (result := self._places.get().result()) is not _END:
            self._room.release()
            yield result
            del result

"""One opened artifact used by several segmenters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.errors import InputError

__all__ = ["SharedSession"]


class SharedSession(Session):
    """Counts the users of a session, and closes it after the last of them and its last run.

    A closed one raises InputError for whoever uses or shares it.

    Args:
        before: called then, before the session is closed: gives back what was made of it.
    """

    def __init__(self, session: Session, before: Callable[[], None] | None = None) -> None:
        self._session, self._before, self._users, self._running = session, before, 1, 0
        self.on_gpu = session.on_gpu
        self._idle = threading.Condition()

    def share(self) -> SharedSession:
        """The same, for one more user."""
        with self._idle:
            self._refuse_closed()
            self._users += 1
        return self

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `Session.run`."""
        with self.in_use():
            return self._session.run(image)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the session open for a block."""
        with self._idle:
            self._refuse_closed()
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def largest_batch(self, height: int, width: int) -> int | None:
        return self._session.largest_batch(height, width)

    @property
    def description(self) -> str:
        return self._session.description

    def close(self) -> None:
        """End one use. The last one waits for the runs of other threads, then closes the session."""
        with self._idle:
            self._users -= 1
            if self._users > 0:
                return
            self._idle.wait_for(lambda: self._running == 0)
        if self._before is not None:
            self._before()
        self._session.close()

    def _refuse_closed(self) -> None:
        if self._users < 1:
            raise InputError("the segmenter is closed", "Keep it open while it is used: with Segmenter(…) as segment:")

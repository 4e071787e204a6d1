"""How long work reports its progress: lines of text, and phases whose steps are counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

__all__ = ["Progress", "Silent", "StepCallback", "Terminal", "no_steps"]

SAY_SECONDS = 20.0  # between lines about a phase, where there is no terminal


class StepCallback(Protocol):
    """Called after each step of a phase. What it raises, KeyboardInterrupt say, ends the work."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Steps done, steps in all, and what else is known, such as the mIoU so far."""


class Progress(Protocol):
    """Where long work reports."""

    def say(self, text: str) -> None:
        """A line about what comes next or was found."""

    def phase(self, title: str) -> AbstractContextManager[StepCallback]:
        """A stretch of work whose steps are counted."""
        ...


def no_steps(done: int, total: int, note: str = "") -> None:
    """A StepCallback that does nothing."""


class Silent:
    """A Progress that reports nothing."""

    def say(self, text: str) -> None:
        pass

    def phase(self, title: str) -> AbstractContextManager[StepCallback]:
        return nullcontext(no_steps)


class Terminal:
    """A Progress on standard error: a bar with the time left, or a line every 20 s where that is no terminal."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    @contextmanager
    def phase(self, title: str) -> Iterator[StepCallback]:
        from tqdm import tqdm

        start = said = time.monotonic()
        with tqdm(desc=title, file=sys.stderr, disable=None) as bar:

            def told(done: int, total: int, note: str = "") -> None:
                nonlocal said
                bar.total = total
                bar.set_postfix_str(note, refresh=False)
                bar.update(done - bar.n)
                now = time.monotonic()
                if bar.disable and done and now - said > SAY_SECONDS:
                    said = now
                    left = (now - start) / done * (total - done)
                    self.say(f"{title}: {done} of {total}, {note and f'{note}, '}about {left / 60:.1f} min left")

            yield told

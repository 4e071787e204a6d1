"""A Progress that writes down what it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from denseport.runtime.system.progress import StepCallback


class Told:
    """The lines, when each came, and the steps of each phase."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times: list[float] = []  # of `time.perf_counter`
        self.phases: dict[str, list[tuple[int, int, str]]] = {}

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.times.append(time.perf_counter())

    @contextmanager
    def phase(self, title: str) -> Iterator[StepCallback]:
        steps = self.phases.setdefault(title, [])
        yield lambda done, total, note="": steps.append((done, total, note))

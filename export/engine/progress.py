"""TensorRT's progress monitor as one number of steps that grows."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from denseport.runtime.system.progress import StepCallback

__all__ = ["STEPS", "ProgressTree", "monitor"]

STEPS = 1000  # that the whole build counts as


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class ProgressTree:
    """The phases under way. A phase's steps are filled by its sub-phases, so its share is steps plus theirs.

    Args:
        report: told the steps done, `STEPS` in all, and the phase. What it raises is kept in ``error``.
    """

    def __init__(self, report: StepCallback) -> None:
        self._report = report
        self._phases: dict[str, _Phase] = {}
        self._highest = 0.0
        self._lock = threading.Lock()  # the builder calls from several threads
        self.error: BaseException | None = None  # what the callback raised, Ctrl-C included

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, within another or alone."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
        self._tell(name)

    def step(self, name: str, index: int) -> bool:
        """Step ``index`` of a phase is done; False asks TensorRT to stop."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = min(index + 1, phase.steps)
        self._tell(name)
        return self.error is None

    def finish(self, name: str) -> None:
        """A phase has ended."""
        with self._lock:
            self._phases.pop(name, None)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        within = max((self._share(child) for child, p in self._phases.items() if p.parent == name), default=0.0)
        return min((phase.done + within) / phase.steps, 1.0)

    def _tell(self, name: str) -> None:
        with self._lock:
            roots = [key for key, phase in self._phases.items() if phase.parent not in self._phases]
            # Phases of one name may follow one another; the bar never runs backwards for it.
            self._highest = max([self._highest, *(self._share(root) for root in roots)])
            share = self._highest
        try:
            self._report(round(share * STEPS), STEPS, name)
        except BaseException as err:  # it may not pass through TensorRT's C++; the build is stopped and it is raised
            self.error = self.error or err


def monitor(trt: Any, tree: ProgressTree) -> Any:
    """An IProgressMonitor for ``config.progress_monitor``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # its base is only known now
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            tree.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return tree.step(name, step)

        def phase_finish(self, name: str) -> None:
            tree.finish(name)

    return Monitor()

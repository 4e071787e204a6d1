"""TensorRT's progress monitor as one number of steps that grows."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from denseport.runtime.system.progress import StepCallback

__all__ = ["STEPS", "monitor"]

STEPS = 1000  # that the whole build counts as


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def monitor(trt: Any, report: StepCallback) -> Any:
    """An IProgressMonitor for ``config.progress_monitor``.

    Args:
        report: told the steps done, `STEPS` in all, and the phase. What it raises, Ctrl-C included, stops the build and
            is kept in the monitor's ``error``.
    """

    class Monitor(_Monitor, trt.IProgressMonitor):  # type: ignore[misc]  # its base is only known now
        def __init__(self) -> None:
            _Monitor.__init__(self, report)
            trt.IProgressMonitor.__init__(self)

    return Monitor()


class _Monitor:
    """The phases under way. A phase's steps are filled by its sub-phases, so its share is steps plus theirs.

    Its methods are those that TensorRT calls, from several threads.
    """

    def __init__(self, report: StepCallback) -> None:
        self.error: BaseException | None = None
        self._report = report
        self._phases: dict[str, _Phase] = {}
        self._highest = 0.0
        self._lock = threading.Lock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
        self._tell(name)

    def step_complete(self, name: str, step: int) -> bool:
        """Returns False to stop the build."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = min(step + 1, phase.steps)
        self._tell(name)
        return self.error is None

    def phase_finish(self, name: str) -> None:
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
            steps = round(self._highest * STEPS)
        try:
            self._report(steps, STEPS, name)
        except BaseException as err:  # it may not pass through TensorRT's C++: `build_engine` raises it
            self.error = self.error or err

"""TensorRT and TensorRT-RTX as installed here, with the one logger that each takes in a process.

Both packages have the same Python API. TensorRT uses only the first logger that a process gives it, so builder, parser
and runtime share one; `LogBook.collect` gives what it logs during a block.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from denseport.runtime.errors import MachineError
from denseport.runtime.system.machine import install_command

__all__ = ["Library", "LogBook", "LogLine", "load_library", "release"]

OLDEST = {"tensorrt": (10, 9), "tensorrt_rtx": (1, 2)}
INSTALL = {
    "tensorrt": f"{install_command('tensorrt')} (TensorRT from NVIDIA; it needs an NVIDIA GPU)",
    "tensorrt_rtx": install_command("tensorrt-rtx"),
}
NOTABLE = ("INTERNAL_ERROR", "ERROR", "WARNING")
KEPT_LINES = 20_000  # of one collection; a verbose build of a large model says more than that


@dataclass(frozen=True)
class LogLine:
    """One line of TensorRT's log."""

    severity: str  # INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE
    text: str

    def __str__(self) -> str:
        return f"[{self.severity}] {self.text}"


class LogBook:
    """Passes TensorRT's log on to those that collect it. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Callable[[LogLine], None]] = []

    def write(self, severity: str, text: str) -> None:
        """Called by TensorRT, from any of its threads."""
        with self._lock:
            for listener in self._listeners:
                listener(LogLine(severity, text))

    @contextmanager
    def collect(self, verbose: Callable[[str], None] | None = None) -> Iterator[deque[LogLine]]:
        """The warnings and errors of a block; all of its lines, passed on as they come, if ``verbose`` is given."""
        lines: deque[LogLine] = deque(maxlen=KEPT_LINES)

        def listen(line: LogLine) -> None:
            if line.severity in NOTABLE:
                lines.append(line)
            if verbose is not None:
                verbose(str(line))

        with self._lock:
            self._listeners.append(listen)
        try:
            yield lines
        finally:
            with self._lock:
                self._listeners.remove(listen)


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    flavour: str
    trt: Any  # the module
    version: str
    cuda: str | None  # CUDA's major version that the package is made for, where it comes from pip
    logger: Any  # trt.ILogger; give this one to every builder, parser and runtime
    log: LogBook  # what the logger writes to


@functools.cache
def load_library(flavour: str) -> Library:
    """Import TensorRT.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx".

    Raises:
        MachineError: it is not installed, cannot be loaded, or is older than what Denseport knows.
    """
    try:
        trt = importlib.import_module(flavour)
    except (ImportError, OSError) as err:  # OSError: a shared library that it needs
        missing = isinstance(err, ModuleNotFoundError) and err.name == flavour
        what = "is not installed" if missing else f"cannot be loaded: {err}"
        raise MachineError(f"the package {flavour} {what}", INSTALL[flavour]) from err
    oldest = OLDEST[flavour]
    if release(trt.__version__) < oldest:
        raise MachineError(
            f"{flavour} {trt.__version__} is too old: Denseport needs {oldest[0]}.{oldest[1]} or newer",
            INSTALL[flavour],
        )
    book = LogBook()
    return Library(flavour, trt, trt.__version__, _cuda_of(flavour), _logger(trt, book), book)


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version: "11.4.0.106" to (11, 4)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _logger(trt: Any, book: LogBook) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is only known now
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            book.write(severity.name, message)

    return Logger()


def _cuda_of(flavour: str) -> str | None:
    """From the pip package's name (``tensorrt_rtx_cu13``); the module itself does not say."""
    for cuda in ("13", "12"):
        with suppress(PackageNotFoundError):
            version(f"{flavour}_cu{cuda}")
            return cuda
    return None

"""Other environments, and programs that stay open in them and do a task whenever they are told to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Program", "environment"]


def environment(folder: Path, packages: Sequence[str]) -> str:
    """The Python of a virtual environment with these packages, made if it is not there."""
    python, complete = folder / "bin/python", folder / "complete"
    if not complete.exists():
        print(f"making {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        complete.touch()
    return str(python)


class Program:
    """A command that answers each line of its standard input with a line of numbers, and ends with the input."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def ask(self, task: str) -> list[float]:
        """The numbers that it answers."""
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes, as asked for
        print(task, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a program that was asked to {task!r} ended with exit code {self._process.wait()}")
        return [float(number) for number in line.split()]

    def close(self) -> None:
        self._process.communicate()

"""What a command left behind, how it refused, and what the function returned that it printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def refused(result: tuple[int, str, str], *words: str, code: int = 2) -> None:
    """The exit code, and an error that holds ``words`` and says how to go on."""
    found, out, err = result
    assert found == code, err
    message = err[err.index("denseport: error: ") :]
    assert not out and "Traceback" not in err
    for word in words:
        assert word in message
    assert len(message.strip().splitlines()) > 1, "no remedy is given"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def returned_by(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """From now on, every result of a module's function, which still does its work."""
    found: list[Any] = []
    function = getattr(module, name)

    def kept(*arguments: Any, **named: Any) -> Any:
        found.append(function(*arguments, **named))
        return found[-1]

    monkeypatch.setattr(module, name, kept)
    return found

"""What is told of long work where nobody watches, by a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from denseport.runtime.system import progress
from denseport.runtime.system.progress import Silent, Terminal


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    terminal = Terminal()
    terminal.say("begin")
    with terminal.phase("measuring") as told:
        for clock.now, done, note in (
            (5.0, 0, ""),
            (30.0, 0, ""),
            (60.0, 10, "mIoU 41.92"),
            (70.0, 20, ""),
            (90.0, 30, ""),
        ):
            told(done, 40, note)
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "begin",
        "measuring: 10 of 40, mIoU 41.92, about 3.0 min left",  # 60 s for 10, so 180 s for 30
        "measuring: 30 of 40, about 0.5 min left",
    ]
    assert out == ""


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    silent.say("x")
    with silent.phase("y") as told:
        told(1, 2)
        told(2, 2, "done")
    assert capsys.readouterr() == ("", "")

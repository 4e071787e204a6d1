"""Who has a turn when, by a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from denseport.runtime.benchmark import turns
from denseport.runtime.benchmark.turns import in_turns


def test_everybody_is_first_once_in_as_many_rounds() -> None:
    diary: list[tuple[str, int]] = []
    found = in_turns({name: lambda turn, name=name: diary.append((name, turn)) for name in "abc"}, 4)
    assert "".join(name for name, _ in diary) == "abc" + "bca" + "cab" + "abc"
    assert [turn for _, turn in diary] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert found == {name: [None] * 4 for name in "abc"}


def test_no_round_begins_late_once_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10)).__next__  # ten seconds pass from look to look
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=clock))
    work = {"a": lambda turn: turn, "b": lambda turn: -turn}
    assert in_turns(work, 100, seconds=25) == {"a": [0, 1, 2], "b": [0, -1, -2]}
    assert len(in_turns(work, 100, least=7, seconds=5)["a"]) == 7
    assert len(in_turns(work, 2, least=7)["a"]) == 2
    assert in_turns({}, 3) == {}

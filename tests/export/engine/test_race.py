"""Engines timed against each other; the GPU is made up, and so is how long an engine takes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import RECORD, FakeContext, FakeEngine, Machine

from denseport.export.engine import race as race_module
from denseport.export.engine.race import race
from denseport.runtime.errors import InputError

SHAPE = (1, 3, 8, 12)


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(FakeEngine):
    """An engine whose contexts take a given time by the clock, and write down when they ran."""

    def __init__(self, machine: Machine, name: str, seconds: float, clock: Clock, diary: list[str]) -> None:
        super().__init__(machine.cuda, machine.book)
        self.name, self.seconds, self.clock, self.diary = name, seconds, clock, diary

    def create_execution_context(self, strategy: str) -> FakeContext:
        context = super().create_execution_context(strategy)
        execute = context.execute_async_v3

        def slowly(stream: int) -> bool:
            self.diary.append(self.name)
            self.clock.now += self.seconds
            return execute(stream)

        context.execute_async_v3 = slowly  # type: ignore[method-assign]
        return context


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "e.engine")


def test_rounds_are_interleaved_and_the_faster_is_seen(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, diary = Clock(), list[str]()
    monkeypatch.setattr(race_module, "time", clock)
    engines = {b"off": Slow(machine, "off", 0.002, clock, diary), b"on": Slow(machine, "on", 0.006, clock, diary)}
    machine._deserialise = engines.__getitem__  # type: ignore[assignment,method-assign]
    for name in ("off", "on"):
        (tmp_path / name).write_bytes(name.encode())
    candidates: Any = {name: (tmp_path / name, RECORD) for name in ("off", "on")}
    monkeypatch.setattr(race_module, "ROUNDS", 4)
    monkeypatch.setattr(race_module, "RUNS", 2)
    times = race(candidates, SHAPE, cuda=machine.cuda)  # type: ignore[arg-type]
    assert times == {"off": 2.0, "on": 6.0}  # milliseconds
    rounds = diary[2:]  # the first run of each makes room for its result
    assert rounds[:4] == ["off", "off", "on", "on"] and rounds[4:8] == ["on", "on", "off", "off"]
    assert len(rounds) == 5 * 2 * 2
    gc.collect()
    assert machine.cuda.alive == 0, "memory, streams and contexts are given back"


def test_a_size_that_an_engine_lacks_is_refused(machine: Machine) -> None:
    with pytest.raises(InputError, match="outside of what the engine was built for"):
        race({"off": (machine.path, RECORD)}, (1, 3, 99, 99), cuda=machine.cuda)  # type: ignore[arg-type]
    assert machine.cuda.alive == 0

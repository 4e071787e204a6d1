"""Racing sessions, with a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.calibration import verdict
from denseport.calibration.search.search import Budget
from denseport.calibration.search.sensitivity import Loss
from denseport.calibration.verdict import Accuracy, race, speed_ratio
from denseport.runtime.benchmark import turns


class Clock:
    """Time that passes only while a session runs, ever slower: the machine throttles."""

    def __init__(self) -> None:
        self.now, self.slowdown = 0.0, 1.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now


class Runner:
    """A session that takes ``seconds`` on a fresh machine."""

    def __init__(self, name: str, seconds: float, clock: Clock) -> None:
        self.name, self.seconds, self.clock = name, seconds, clock

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        self.clock.now += self.seconds * self.clock.slowdown
        self.clock.slowdown *= 1.01
        self.clock.order.append(self.name)
        return image

    @property
    def description(self) -> str:
        return self.name


def test_rounds_are_interleaved_so_that_throttling_hits_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (verdict, turns):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(verdict, "SECONDS", 10.0)
    sessions = {"model.onnx": Runner("model.onnx", 1.0, clock), "int8.onnx": Runner("int8.onnx", 0.5, clock)}
    image = np.zeros((1, 3, 2, 2), np.float32)
    times = race(sessions, [image])
    assert clock.order[:6] == ["model.onnx", "int8.onnx", "model.onnx", "int8.onnx", "int8.onnx", "model.onnx"]
    assert speed_ratio(times["model.onnx"], times["int8.onnx"]) == pytest.approx(2, rel=0.02)
    assert 7 <= len(times["model.onnx"]) == len(times["int8.onnx"]) < 12, (
        "it stops when the time is up, but not before the fewest rounds"
    )


def test_a_measured_mIoU_counts_against_the_budget() -> None:
    accuracy = Accuracy(miou=41.3, fp32_miou=41.9, agreement=0.99, images=100)
    assert accuracy.loss.miou == pytest.approx(0.6)
    assert Budget(miou=0.5).excess(accuracy.loss) == pytest.approx(1.2)
    assert isinstance(accuracy.loss, Loss)

"""Racing sessions, with a clock of our own."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from bundles import verdict as made_verdict
from numpy.typing import NDArray

from denseport.runtime.benchmark import race as race_module
from denseport.runtime.benchmark import turns
from denseport.runtime.benchmark.load import Conditions
from denseport.runtime.benchmark.race import judge_audited, race, speed_ratio
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.verdict import MachineVerdict


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
    for module in (race_module, turns):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(race_module, "SECONDS", 10.0)
    sessions = {"model.onnx": Runner("model.onnx", 1.0, clock), "int8.onnx": Runner("int8.onnx", 0.5, clock)}
    image = np.zeros((1, 3, 2, 2), np.float32)
    times = race(sessions, [image])
    assert clock.order[:6] == ["model.onnx", "int8.onnx", "model.onnx", "int8.onnx", "int8.onnx", "model.onnx"]
    assert speed_ratio(times["model.onnx"], times["int8.onnx"]) == pytest.approx(2, rel=0.02)
    assert 7 <= len(times["model.onnx"]) == len(times["int8.onnx"]) < 12, (
        "it stops when the time is up, but not before the fewest rounds"
    )


def test_a_fast_session_runs_until_the_one_before_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (race_module, turns):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(race_module, "ROUNDS", (1, 1))
    fast, slow = Runner("fast", 0.04, clock), Runner("slow", 0.3, clock)
    race({"fast": fast, "slow": slow}, [np.zeros((1, 3, 2, 2), np.float32)])
    assert clock.order == ["fast", "slow", *["fast"] * 3, "slow"], "a warm-up each; then 0.1 s at least"


class Load:
    """Of a machine on which others take half of the processors, or none."""

    others = 0.0

    def stop(self) -> Conditions:
        return Conditions(1.0, self.others, None, None)


@pytest.mark.parametrize("others", [0.0, 0.5])
@pytest.mark.parametrize(("ratio", "accepted"), [(1.5, True), (1.01, False)])
def test_what_was_timed_is_kept_as_a_verdict(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, ratio: float, accepted: bool, others: float
) -> None:
    monkeypatch.setattr(Load, "others", others)
    monkeypatch.setattr(race_module, "LoadMonitor", Load)
    fp32 = sample_copy.artifact("model.onnx")
    record = {"audit": {"agreement": 0.997}}
    for name in ("fp32.openvino",):
        what = {"target": "openvino", "made_of": "model.onnx", "proof": (), "record": record}
        sample_copy.add(name, dataclasses.replace(fp32, **what))

    def timed(sessions: dict[str, object], images: object) -> dict[str, list[float]]:
        assert list(sessions) == ["model.onnx", "fp32.openvino"]
        return {"model.onnx": [1.0, 2.0, 3.0], "fp32.openvino": [1 / ratio, 2 / ratio, 3 / ratio]}

    monkeypatch.setattr(race_module, "race", timed)
    (verdict,) = judge_audited(sample_copy, ["fp32.openvino"], []).values()
    assert MachineVerdict.of(Bundle(sample_copy.path).artifact("fp32.openvino"), "") == verdict
    assert verdict.accepted is accepted and verdict.speed_ratio == pytest.approx(ratio)
    assert verdict.seconds == {"model.onnx": 2.0, "fp32.openvino": pytest.approx(2 / ratio)}
    assert verdict.agreement == 0.997 and verdict.session.startswith("OpenVINO ")
    ending = ", and passed its audit" if accepted else "; made for OpenVINO on CPUs"
    if others:
        ending += "; other processes used 50 % of the processors during the measurement: "
        ending += "measure again on an idle machine"
    assert verdict.reason == f"{ratio:.2f} times as fast as model.onnx on ONNX Runtime{ending}"


def test_what_is_made_of_a_graph_over_its_budget_is_not_accepted(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INT8 on OpenVINO computes what int8.onnx says: a calibration's budget holds for both."""
    graph = dataclasses.replace(sample_copy.artifact("model.onnx"), precision="int8", made_of="model.onnx", proof=())
    over = made_verdict(within_budget=False, accepted=False)
    sample_copy.add("int8.onnx", dataclasses.replace(graph, record={"verdict": over}))
    what = {"target": "openvino", "made_of": "int8.onnx", "record": {"audit": {"agreement": 0.93}}}
    sample_copy.add("int8.openvino", dataclasses.replace(graph, **what))
    monkeypatch.setattr(race_module, "race", lambda sessions, _: {name: [1 / len(name)] for name in sessions})
    monkeypatch.setattr(race_module, "open_predictor", lambda *_, **__: nullcontext(SimpleNamespace(session=Session())))
    (found,) = judge_audited(sample_copy, ["int8.openvino"], []).values()
    assert found.speed_ratio > 1.1 and not found.within_budget and not found.accepted
    assert found.reason == "int8.onnx, of which it is made, is over its budget"


class Session:
    description = "a session"

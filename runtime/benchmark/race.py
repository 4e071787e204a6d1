"""Networks timed against each other on one machine, and the verdict on those of OpenVINO."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.benchmark.load import LoadMonitor
from denseport.runtime.benchmark.turns import in_turns
from denseport.runtime.bundle.artifact import MADE_FOR
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.verdict import MachineVerdict, kind_of
from denseport.runtime.segmenter.opening import open_predictor
from denseport.runtime.segmenter.predictor import Predictor
from denseport.runtime.system.clock import timestamp
from denseport.runtime.system.machine import inspect_machine

__all__ = ["FASTER", "TIMED", "judge_audited", "measured_here", "race", "speed_ratio"]

TIMED = 4  # images that the networks are timed with
FASTER = 1.02  # so many times as fast as FP32 it must be: less is within the noise of a quiet machine
ROUNDS = (7, 31)  # least and most
# Seconds of a turn, at least, whose last run counts: at its begin the idle threads of ONNX Runtime, which had the turn
# before, still spin, and take processors from the next session.
SETTLED = 0.1
SECONDS = 15.0  # after which no further round starts


def race(sessions: Mapping[str, Session], images: Sequence[NDArray[np.float32]]) -> dict[str, list[float]]:
    """Seconds that each session takes, round by round: in turns, all on the same image.

    A run of each that plans its memory comes first.

    Args:
        images: normalised (N, 3, H, W); one a round, in turn.
    """

    def taken(session: Session, number: int) -> float:
        begin = time.perf_counter()
        while True:
            start = time.perf_counter()
            session.run(images[number % len(images)])
            end = time.perf_counter()
            if end - begin >= SETTLED:
                return end - start

    for session in sessions.values():
        session.run(images[0])
    least, most = ROUNDS
    work = {name: partial(taken, session) for name, session in sessions.items()}
    return in_turns(work, most, least=least, seconds=SECONDS)


def speed_ratio(fp32: Sequence[float], taken: Sequence[float]) -> float:
    """FP32's time / the other one's: the median over the rounds."""
    return statistics.median(f / max(t, 1e-9) for f, t in zip(fp32, taken, strict=True))


def measured_here(*, on_gpu: bool) -> dict[str, Any]:
    """The fields of a `MachineVerdict` that say where and when it was measured."""
    machine = inspect_machine(look_for_gpus=on_gpu)
    return {
        "machine": kind_of(machine, on_gpu=on_gpu),
        "cpus": machine.cpus,
        "versions": machine.summary()["packages"],
        "date": timestamp(),
    }


def judge_audited(
    bundle: Bundle, names: Sequence[str], images: Sequence[NDArray[np.float32]]
) -> dict[str, MachineVerdict]:
    """Time artifacts, whose audits passed, in turns with FP32 on ONNX Runtime, and keep the verdicts in their records.

    One that is made of a graph over its calibration's budget is over it too.

    Args:
        names: artifacts for a CPU, with an audit in their records.
        images: normalised (1, 3, H, W).
    """
    source = bundle.manifest.source
    with ExitStack() as stack:
        opened: dict[str, Predictor[Any]]
        opened = {name: stack.enter_context(open_predictor(bundle, artifact=name)) for name in (source, *names)}
        sessions = {name: segmenter.session for name, segmenter in opened.items()}
        monitor = LoadMonitor()
        times = race(sessions, images)
        doubts = monitor.stop().warnings()
        descriptions = {name: session.description for name, session in sessions.items()}
    where, verdicts = measured_here(on_gpu=False), {}
    for name in names:
        ratio, artifact = speed_ratio(times[source], times[name]), bundle.artifact(name)
        speed = f"{ratio:.2f} times as fast as {source} on ONNX Runtime"
        within = _within_budget(bundle, artifact.made_of)
        accepted = ratio >= FASTER and within
        reason = f"{speed}, and passed its audit" if accepted else f"{speed}; made for {MADE_FOR[artifact.target]}"
        over = f"{artifact.made_of}, of which it is made, is over its budget"
        verdicts[name] = MachineVerdict(
            **where,
            session=descriptions[name],
            seconds={each: statistics.median(taken) for each, taken in times.items()},
            speed_ratio=ratio,
            agreement=artifact.record["audit"]["agreement"],
            miou=None,
            fp32_miou=None,
            labelled=0,
            within_budget=within,
            accepted=accepted,
            reason="; ".join([reason, *doubts]) if within else over,
        )
        bundle.note(name, {"verdict": asdict(verdicts[name])})
    return verdicts


def _within_budget(bundle: Bundle, made_of: str | None) -> bool:
    """What a calibration found of the graph that an artifact is made of; what it has not judged has no budget."""
    graph = bundle.manifest.artifacts.get(made_of or "")
    verdict = None if graph is None else MachineVerdict.of(graph, str(made_of))
    return verdict is None or verdict.within_budget

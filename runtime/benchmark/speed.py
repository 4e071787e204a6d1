"""How fast artifacts are, side by side.

In each round every artifact has its turn, and the order rotates, so that a drift of the machine hits all alike. Ratios
are taken within a round, and their median is given. A percentile is given only where there are enough samples to have
one, a ratio only where there are enough rounds and they agree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.benchmark.turns import in_turns
from denseport.runtime.segmenter.predictor import Predictor
from denseport.runtime.system.arguments import real, several, whole
from denseport.runtime.system.progress import Progress, Silent
from denseport.runtime.system.text import count

__all__ = [
    "FEWEST_ROUNDS",
    "Latency",
    "Plan",
    "Ratio",
    "Result",
    "expected_seconds",
    "run_bench",
    "speed_warnings",
    "synthetic_image",
]

DRIFT = 0.15  # change of a median from the first round to the last before the figures are doubted
FEWEST_ROUNDS = 3  # that make a ratio: of two that differ, none can tell which is the odd one
UNSTEADY = 2.0  # largest of the rounds' ratios / smallest, above which their median is no result


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    rounds: int = 5
    seconds: float = 4.0  # for one artifact in one round, of each kind of measurement; at least one run
    concurrency: tuple[int, ...] = (1, 2, 4)  # callers at once
    batches: tuple[int, ...] = (1, 2, 4)  # images in one run of the session

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, 1)
        real("seconds", self.seconds, 0.001)
        for name in ("concurrency", "batches"):
            for number in several(name, getattr(self, name)):
                whole(name, number, 1)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one artifact is as another."""

    rounds: tuple[float, ...]  # each round's own; at least one

    @property
    def median(self) -> float:
        """Of the rounds, whether it is a result or not."""
        return statistics.median(self.rounds)

    @property
    def doubt(self) -> str:
        """Why the median is no result, in words; empty if it is one."""
        if len(self.rounds) < FEWEST_ROUNDS:
            return f"too few rounds: {len(self.rounds)}; a ratio takes {FEWEST_ROUNDS}"
        low, high = min(self.rounds), max(self.rounds)
        if high > UNSTEADY * low:
            return f"too unsteady: rounds from {low:.2f} to {high:.2f}; measure again on an idle machine"
        return ""


@dataclass(frozen=True)
class Latency:
    """Durations of single runs, milliseconds, round by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def samples(self) -> int:
        """Runs of all rounds."""
        return sum(map(len, self.rounds))

    def percentile(self, percent: float) -> float | None:
        """Milliseconds that so many percent of the runs stay below; None for fewer than 100 / (100 - percent) runs."""
        if self.samples * (100 - percent) < 100:
            return None
        return float(np.percentile(np.concatenate(self.rounds), percent))

    @property
    def median(self) -> float:
        """Milliseconds, of the runs of all rounds."""
        return statistics.median(value for each in self.rounds for value in each)

    @property
    def drift(self) -> float:
        """Of the median from the first round to the last, as a share; 0.1 is ten percent slower."""
        return statistics.median(self.rounds[-1]) / statistics.median(self.rounds[0]) - 1

    def times_as_fast_as(self, other: Latency) -> Ratio:
        """The other's time over this one's, round by round."""
        return Ratio(
            tuple(
                statistics.median(theirs) / statistics.median(ours)
                for ours, theirs in zip(self.rounds, other.rounds, strict=True)
            )
        )


@dataclass(frozen=True)
class Result:
    """What was measured of one artifact, or of a baseline."""

    name: str
    description: str
    session: Latency
    whole: Latency  # image to mask or depth
    throughput: dict[int, float] = field(default_factory=dict)  # callers at once -> images a second
    batches: dict[int, float] = field(default_factory=dict)  # batch -> images a second of the session


def synthetic_image(height: int, width: int) -> NDArray[np.uint8]:
    """An image (height, width, 3), uint8 BGR, always the same: smooth patches and edges, neither uniform nor noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = (int(random.integers(width)), int(random.integers(height)))
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        cv2.circle(image, centre, max(1, min(height, width) // int(random.integers(4, 16))), colour, -1)
    return np.asarray(image, np.uint8)


def run_bench(
    segmenters: Sequence[Predictor[Any]],
    image: NDArray[np.uint8],
    tensor: NDArray[np.float32],
    plan: Plan,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure all segmenters side by side.

    Args:
        image: for the whole way, (H, W, 3) uint8 BGR.
        tensor: the same as the network sees it, (1, 3, h, w) float32.
        progress: told what is measured, and after the warm-up how long it will take.

    Raises:
        DenseportError: a segmenter cannot run the image.
    """
    progress = progress or Silent()
    alone = {each.artifact: partial(each.session.run, tensor) for each in segmenters}
    whole = {each.artifact: partial(each, image) for each in segmenters}
    seconds = expected_seconds(plan, _warm(alone, "session", progress), _warm(whole, "from image to result", progress))
    words = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    progress.say(
        f"measuring takes about {words}; lower --rounds ({plan.rounds}) or --seconds ({plan.seconds:g}) to shorten it"
    )
    progress.say("latency of the sessions")
    sessions = _latencies(alone, plan)
    progress.say("latency from image to result")
    wholes = _latencies(whole, plan)
    throughput: dict[int, dict[str, float]] = {}
    for callers in plan.concurrency:
        progress.say(f"images per second with {count(callers, 'caller')} at once")
        throughput[callers] = _throughputs(whole, callers, plan)
    batches: dict[int, dict[str, Latency]] = {}
    for size in plan.batches:
        progress.say(f"batches of {size}")
        batch = np.repeat(tensor, size, axis=0)
        fitting = [each for each in segmenters if _takes(each, batch, progress)]
        batches[size] = _latencies({each.artifact: partial(each.session.run, batch) for each in fitting}, plan)
    return [
        Result(
            each.artifact,
            each.session.description,
            sessions[each.artifact],
            wholes[each.artifact],
            {callers: rates[each.artifact] for callers, rates in throughput.items()},
            {
                size: 1000 * size / found[each.artifact].median
                for size, found in batches.items()
                if each.artifact in found
            },
        )
        for each in segmenters
    ]


def _takes(segmenter: Predictor[Any], batch: NDArray[np.float32], progress: Progress) -> bool:
    """Whether a network and its session take a batch; says so where they do not."""
    limits = segmenter.session.largest_batch(*batch.shape[2:]), segmenter.manifest.input.shape[0]
    most = min(filter(None, limits), default=len(batch))
    if len(batch) > most:
        progress.say(f"not measured: {segmenter.artifact} takes batches of {most} at most")
    return len(batch) <= most


def expected_seconds(plan: Plan, sessions: Sequence[float], wholes: Sequence[float]) -> float:
    """How long `run_bench` takes once everything is warm.

    Args:
        sessions, wholes: seconds of one run, of each session and from image to mask or depth.
    """

    def turns(times: Sequence[float], at_least: int = 1) -> float:
        """One run to count by, then the rounds."""
        rounds = (max(at_least, round(plan.seconds / one)) * one for one in times)
        return sum(times) + plan.rounds * sum(rounds)

    batches = ([size * one for one in sessions] for size in plan.batches)
    return (
        turns(sessions)
        + turns(wholes)
        + sum(turns(wholes, callers) for callers in plan.concurrency)
        + sum(map(turns, batches))
    )


def _warm(work: Mapping[str, Callable[[], object]], what: str, progress: Progress) -> list[float]:
    """Seconds of each piece of work's second run."""
    found = []
    for name, run in work.items():
        progress.say(f"warming up {name}, {what}")
        run()
        found.append(_milliseconds(run) / 1000)
    return found


def speed_warnings(results: Sequence[Result]) -> list[str]:
    """Where the rounds disagree too much to be trusted, or are too few to tell."""
    rounds, few = len(results[0].session.rounds), list[str]()
    if rounds < FEWEST_ROUNDS:
        what = f"{count(rounds, 'round')}: too few to compare the artifacts, or to notice that the machine slowed down"
        few = [f"{what}: give --rounds {FEWEST_ROUNDS} or more"]
    return few + [
        f"{each.name}: its time changed by {100 * each.session.drift:+.0f} % from the first round to the last: "
        "the processor was throttled, or the machine busy"
        for each in results
        if abs(each.session.drift) > DRIFT
    ]


def _latencies(work: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, Latency]:
    """Each piece of work alone, in rounds."""

    def turn(run: Callable[[], object], runs: int) -> Callable[[int], tuple[float, ...]]:
        return lambda number: tuple(_milliseconds(run) for _ in range(runs))

    found = in_turns({name: turn(run, _count(run, plan.seconds)) for name, run in work.items()}, plan.rounds)
    return {name: Latency(tuple(rounds)) for name, rounds in found.items()}


def _throughputs(work: Mapping[str, Callable[[], object]], callers: int, plan: Plan) -> dict[str, float]:
    """Calls a second with so many callers at once; the median of the rounds."""

    def turn(run: Callable[[], object], runs: int) -> Callable[[int], float]:
        def rate(number: int) -> float:
            start = time.perf_counter()
            for done in [pool.submit(run) for _ in range(runs)]:
                done.result()
            return runs / (time.perf_counter() - start)

        return rate

    counts = {name: max(callers, _count(run, plan.seconds)) for name, run in work.items()}
    with ThreadPoolExecutor(callers) as pool:
        found = in_turns({name: turn(run, counts[name]) for name, run in work.items()}, plan.rounds)
    return {name: statistics.median(rates) for name, rates in found.items()}


def _count(run: Callable[[], object], seconds: float) -> int:
    """How often it runs in so many seconds; at least once."""
    return max(1, round(seconds * 1000 / _milliseconds(run)))


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)

"""Temporal smoothing: a closed form, and what begins anew."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.resample import LogitMap, Placement, whole_map
from denseport.runtime.pipeline.temporal import Smoother
from denseport.runtime.segmenter import Segmenter

FRAME = np.full((60, 80, 3), 100, np.uint8)


def view(value: float, size: tuple[int, int] = (60, 80)) -> list[list[LogitMap]]:
    return [[whole_map(np.full((3, 4, 5), value, np.float32), Placement((32, 40), size))]]


def values(smoother: Smoother, *frames: tuple[float, np.ndarray]) -> list[float]:
    found = []
    for value, frame in frames:
        (field,) = smoother(view(value, frame.shape[:2]), frame)[0]
        assert np.ptp(field.logits) == 0
        found.append(float(field.logits[0, 0, 0]))
    return found


def test_the_mean_follows_the_closed_form() -> None:
    sequence = [1.0, 5.0, -2.0, 8.0, 8.0]
    found = values(Smoother(0.6), *((value, FRAME) for value in sequence))
    for n in range(len(sequence)):
        expected = 0.6**n * sequence[0] + sum(0.4 * 0.6 ** (n - k) * sequence[k] for k in range(1, n + 1))
        assert found[n] == pytest.approx(expected, rel=1e-6)


def test_a_cut_and_another_size_begin_anew() -> None:
    brighter, cut, smaller = FRAME + 10, FRAME + 100, FRAME[:50]
    assert values(Smoother(0.5), (0, FRAME), (8, brighter)) == [0, 4]
    assert values(Smoother(0.5), (0, FRAME), (8, cut), (0, cut)) == [0, 8, 4]
    assert values(Smoother(0.5), (0, FRAME), (8, smaller)) == [0, 8]


def test_logits_already_handed_out_do_not_change() -> None:
    smoother = Smoother(0.5)
    first = smoother(view(1), FRAME)
    smoother(view(3), FRAME)
    smoother(view(9), FRAME)
    assert (first[0][0].logits == 1).all()


@pytest.mark.parametrize("weight", [-0.1, 1.0, float("nan")])
def test_a_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        Smoother(weight)


@pytest.mark.parametrize("protocol", ["reference", "native:64:42"])
def test_a_stream_is_smoothed_and_flickers_less(sample: Bundle, protocol: str) -> None:
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(60, 200, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.int16)
    frames = [np.clip(scene + rng.integers(-25, 26, scene.shape), 0, 255).astype(np.uint8) for _ in range(6)]

    def flicker(smoothing: float) -> float:
        masks = [result.mask for result in segmenter.stream(frames, smoothing=smoothing)]
        return float(np.mean([(a != b).mean() for a, b in pairwise(masks)]))

    with Segmenter(sample, protocol=protocol, threads=1) as segmenter:
        plain, smooth = flicker(0.0), flicker(0.8)
    assert 0 < smooth < 0.8 * plain

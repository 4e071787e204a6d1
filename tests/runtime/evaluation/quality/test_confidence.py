"""The calibration error against a plain loop over bins, as Guo et al. write it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.evaluation.quality.confidence import bin_counts, calibration_error


def by_loops(truth: NDArray[np.uint8], mask: NDArray[np.uint8], scores: NDArray[np.float32]) -> float:
    """Equation 3, pixel by pixel, in percent."""
    labelled = [at for at in np.ndindex(truth.shape) if truth[at] != 255]
    total = 0.0
    for m in range(1, 16):
        inside = [at for at in labelled if (m - 1) / 15 < scores[at] <= m / 15]
        if inside:
            accuracy = sum(truth[at] == mask[at] for at in inside) / len(inside)
            confidence = sum(float(scores[at]) for at in inside) / len(inside)
            total += len(inside) / len(labelled) * abs(accuracy - confidence)
    return 100 * total


@pytest.mark.parametrize("seed", range(4))
def test_the_error_is_that_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(2):
        truth = rng.integers(0, 4, (30, 20)).astype(np.uint8)
        mask = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 6, truth.shape)).astype(np.uint8)
        truth[rng.random(truth.shape) < 0.1] = 255
        scores = rng.beta(4, 1, truth.shape).astype(np.float32)
        scores[:2] = 1.0  # where float32's softmax ends
        images.append((truth, mask, scores))
    counts = sum(bin_counts(*each) for each in images)
    expected = by_loops(*(np.concatenate(each) for each in zip(*images, strict=True)))
    assert calibration_error(np.asarray(counts)) == pytest.approx(expected, abs=1e-4) and expected > 1


def test_scores_that_are_right_as_often_as_they_say_have_no_error() -> None:
    truth, mask = np.zeros((1, 100), np.uint8), np.zeros((1, 100), np.uint8)
    mask[0, :20] = 1
    assert calibration_error(bin_counts(truth, mask, np.full((1, 100), 0.8, np.float32))) == pytest.approx(0, abs=1e-4)
    assert calibration_error(bin_counts(truth, mask, np.ones((1, 100), np.float32))) == pytest.approx(20)


def test_scores_that_are_no_numbers_count_as_zero_and_no_pixels_give_no_error() -> None:
    truth, mask = np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8)
    counts = bin_counts(truth, mask, np.float32([[np.nan, 0.5, 0.5, 0.5]]))
    assert counts[0].sum() == 4 and counts[0, 0] == 1 and counts[2, 0] == 0
    assert math.isnan(calibration_error(bin_counts(np.full((1, 4), 255, np.uint8), mask, np.ones((1, 4), np.float32))))

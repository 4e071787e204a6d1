"""How far what an artifact gives is what FP32 gives: classes, masks, depths."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.evaluation.metrics import agreement, agreement_words

LOGITS = np.array([[[[2.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [3.0, 0.0]]]], np.float32)  # classes 0 1 / 1 0
DEPTH = np.array([[[[1.0, 2.0], [3.0, 0.0]]]], np.float32)


def test_of_classes_it_is_the_share_of_places_that_keep_theirs() -> None:
    assert agreement(LOGITS, LOGITS + 5, "logits") == 1
    other = LOGITS.copy()
    other[0, :, 0, 0] = 0, 9
    assert agreement(LOGITS, other, "logits") == 0.75
    assert agreement(LOGITS.argmax(1), other.argmax(1), "mask") == 0.75
    assert agreement_words(0.75, "logits") == "75.00 % of the pixels get the class that FP32 gives"


@pytest.mark.parametrize(
    ("found", "share"),
    [
        (DEPTH, 1.0),
        (DEPTH * 1.02, 0.98),
        (DEPTH + np.float32(0.15), 0.9),  # of a mean of 1.5, also where FP32 has 0
        (DEPTH * 3, 0.0),  # never below
        (np.full_like(DEPTH, np.nan), 0.0),
        (np.full_like(DEPTH, np.inf), 0.0),
    ],
)
def test_of_depths_it_is_one_less_the_mean_change(found: NDArray[np.float32], share: float) -> None:
    assert agreement(DEPTH, found, "depth") == pytest.approx(share, abs=1e-6)


def test_depths_of_zero_agree_with_themselves_alone() -> None:
    assert agreement(0 * DEPTH, 0 * DEPTH, "depth") == 1 and agreement(0 * DEPTH, DEPTH, "depth") == 0
    assert agreement_words(0.98, "depth") == "depths differ from FP32's by 2.00 % of their mean"

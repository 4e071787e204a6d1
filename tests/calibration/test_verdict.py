"""What a calibration's verdict rests on."""

from __future__ import annotations

import pytest

from denseport.calibration.search.search import Budget
from denseport.calibration.search.sensitivity import Loss
from denseport.calibration.verdict import Accuracy


def test_a_measured_mIoU_counts_against_the_budget() -> None:
    accuracy = Accuracy(miou=41.3, fp32_miou=41.9, agreement=0.99, images=100)
    assert accuracy.loss.miou == pytest.approx(0.6)
    assert Budget(miou=0.5).excess(accuracy.loss) == pytest.approx(1.2)
    assert isinstance(accuracy.loss, Loss)

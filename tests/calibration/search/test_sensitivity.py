"""Losses in a file: taken up for the same measurement alone, and measured again where the file is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from denseport.calibration.search.sensitivity import Loss, LossFile

LOSSES = {"a/b": Loss(0.1, 1 / 3), "ü": Loss(0.0, 1.0, -0.25)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    losses = LossFile(tmp_path / "losses.npz", "model", "images")
    for name, loss in LOSSES.items():
        losses[name] = loss
    return losses.path


def test_what_was_measured_is_known_again(path: Path) -> None:
    losses = LossFile(path, "model", "images")
    assert dict(losses) == LOSSES and not losses.damaged


def test_the_losses_of_something_else_are_not_taken(path: Path) -> None:
    for what in (("model", "others"), ("model",), ("model", "images", "fp8")):
        losses = LossFile(path, *what)
        assert not losses and not losses.damaged
    missing = LossFile(path.with_name("none.npz"), "model", "images")
    assert not missing and not missing.damaged


@pytest.mark.parametrize("data", [b"", b"{}", b"PK\x03\x04"])
def test_a_file_that_is_none_of_ours_is_damage_and_overwritten(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    losses = LossFile(path, "model", "images")
    assert not losses and losses.damaged
    losses["c"] = Loss(0.5, 0.5)
    assert dict(LossFile(path, "model", "images")) == {"c": Loss(0.5, 0.5)}


def test_each_loss_is_written_at_once(path: Path) -> None:
    losses = LossFile(path, "model", "images")
    losses["c"] = Loss(0.5, 0.5)
    assert dict(LossFile(path, "model", "images")) == {**LOSSES, "c": Loss(0.5, 0.5)}

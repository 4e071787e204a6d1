"""Names and comparisons that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPO = Path(__file__).resolve().parent.parent
ASSETS = REPO / "tests" / "assets"
SHARED = Path(os.environ.get("DENSEPORT_SHARED", REPO.parent / "shared"))

ORACLE_MODELS = (
    "tiny_dpt_project",
    "tiny_dpt_add",
    "tiny_dpt_ignore",
    "tiny_dpt_l_project",
    "tiny_upernet_noneck",
    "tiny_upernet_mln",
    "tiny_upernet_ln_mln",
    "runner_real_dpt",
)

LOGITS_TOLERANCE = 1e-4  # the oracle's float32 noise is 2.5e-5
MARGIN = 1e-3  # below it two classes are a tie that rounding may decide either way


def assert_same_classes(mask: NDArray[np.integer], expected: NDArray[np.integer], scores: NDArray[np.floating]) -> None:
    """Masks (…, H, W) are equal but where the two best scores (…, C, H, W) are closer than `MARGIN`."""
    first_two = np.partition(scores, -2, axis=-3)[..., -2:, :, :]
    clear = first_two[..., 1, :, :] - first_two[..., 0, :, :] >= MARGIN
    assert clear.mean() > 0.9, "nearly every pixel is a tie: the comparison would show nothing"
    np.testing.assert_array_equal(mask[clear], expected[clear])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

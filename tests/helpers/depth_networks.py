"""The oracle's small networks for depth, and what their files do not say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# By the folder in ``oracle_families``; None: its own files say everything.
ANSWERS: dict[str, dict[str, Any] | None] = {
    "hf_depth_anything": None,
    "hf_depth_anything_metric": None,
    "hf_dpt_depth": {"depth": "relative"},
    "hf_dpt_depth_add": {"depth": "metres"},
    "hf_dpt_dinov2": {"depth": "metres"},
    "da2_relative": {"num_heads": 2, "out_indices": [2, 5, 8, 11], "depth": "relative"},
    "da2_metric": {"num_heads": 2, "out_indices": [2, 5, 8, 11], "max_depth": 20},
    "isl_depth": {"num_heads": 2, "out_indices": [2, 5, 8, 11], "depth": "relative"},
    "isl_seg": {"num_heads": 2, "out_indices": [2, 5, 8, 11]},
}
TOLERANCE = 1e-4  # of the largest, as the oracle's README says


def checkpoint_of(folder: Path) -> Path:
    """The file of weights, or the folder itself where it is Hugging Face's."""
    return next((file for file in folder.glob("checkpoint.*")), folder)


def config_of(name: str, place: Path) -> Path | None:
    """A file for ``--config`` that says what the network's own files do not, written to the folder ``place``."""
    if (answers := ANSWERS[name]) is None:
        return None
    path = place / f"{name}.json"
    path.write_text(json.dumps(answers))
    return path


def pairs(folder: Path, of: str = "out") -> Iterator[tuple[NDArray[np.float32], str]]:
    """Each input (N, 3, H, W), and the key of what the real class made of it."""
    with np.load(folder / "golden.npz") as golden:
        sizes = [key.removeprefix("in_") for key in golden.files if key.startswith("in_")]
        assert len(sizes) >= 2, "a file without inputs: the comparison would show nothing"
        for size in sizes:
            yield golden[f"in_{size}"], f"{of if f'{of}_{size}' in golden.files else 'sub'}_{size}"


def check(folder: Path, key: str, found: NDArray[np.float32]) -> None:
    """Raises AssertionError unless depths (N, 1, h, w), or logits, are the real class's."""
    with np.load(folder / "golden.npz") as golden:
        wanted = golden[key]
    found = found[..., ::3, ::3] if key.startswith("sub") else found[:, 0]  # large outputs are thinned out
    assert wanted.max() > 0
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * max(1.0, np.abs(wanted).max()), rtol=0)

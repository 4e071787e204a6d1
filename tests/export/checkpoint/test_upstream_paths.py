"""Test paths drawn at random, and what the real mmsegmentation gave for each: files, steps, windows, thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_network
import numpy as np
import postprocess
import pytest
import torch
import upstream
from numpy.typing import NDArray
from support import ASSETS
from torch import Tensor

from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import Checkpoint
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.media.images import decode_image
from denseport.runtime.pipeline.results import RequestedOutputs

STEP = 4  # of the values, every fourth row and column is kept
with np.load(ASSETS / "upstream_test_paths.npz") as _stored:
    STORED = {key: _stored[key] for key in _stored.files}
NAMES = sorted(key.removesuffix("_config") for key in STORED if key.endswith("_config"))


@dataclass(frozen=True)
class Case:
    """A configuration, an image file, and what mmsegmentation made of it."""

    config: dict[str, Any]
    data: bytes
    align_corners: bool
    threshold: float | None  # of one output
    weight: Tensor  # (K, C, 1, 1)
    mask: NDArray[np.uint8]
    sure: NDArray[np.bool_]  # (H, W): a rounding error does not change the class
    values: NDArray[np.float32]  # (K, H / 4, W / 4); 1.x: logits, of one output its sigmoid; 0.x: probabilities

    @classmethod
    def stored(cls, name: str) -> Case:
        align_corners, threshold, channels, outputs = STORED[f"{name}_head"].tolist()
        mask = STORED[f"{name}_mask"]
        return cls(
            parse_config(str(STORED[f"{name}_config"])),
            STORED[f"{name}_file"].tobytes(),
            bool(align_corners),
            threshold or None,
            torch.from_numpy(STORED["weight"])[: int(outputs), : int(channels)],
            mask,
            np.unpackbits(STORED[f"{name}_sure"], count=mask.size).reshape(mask.shape).astype(bool),
            STORED[f"{name}_values"],
        )

    @property
    def tolerance(self) -> float:
        return 1e-3 * max(1.0, float(np.abs(self.values).max()))


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return torch.from_numpy(values).sigmoid().numpy()


def test_there_are_cases_of_both_versions() -> None:
    assert [sum(name.startswith(version) for name in NAMES) for version in ("0x", "1x")] == [18, 30]
    assert all(Case.stored(name).sure.mean() > 0.9 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_gives_what_mmsegmentation_gives(name: str, sample: Bundle) -> None:
    case = Case.stored(name)
    channels = {"backbone.patch_embed.projection.weight": torch.zeros(1, case.weight.shape[1], 1, 1)}
    layout = "mmseg 0.x" if name.startswith("0x") else "mmseg 1.x"
    checkpoint = Checkpoint(Path("c.pth"), "", layout, channels, config=case.config)
    run = fake_network.runner(
        sample, checkpoint, align_corners=case.align_corners, weight=case.weight, threshold=case.threshold
    )
    image = decode_image(case.data, name, loading(run.protocol.preprocess))
    found = run.finish(run.infer(run.prepare(image, RequestedOutputs(scores=True))))
    np.testing.assert_array_equal(found.mask[case.sure], case.mask[case.sure])
    if layout == "mmseg 1.x":
        job = run.infer(run.prepare(image, keep_logits=True))
        assert job.maps is not None
        values = postprocess.logits(job.maps[0])
        values = values if case.threshold is None else sigmoid(values[1:])
        np.testing.assert_allclose(values[:, ::STEP, ::STEP], case.values, rtol=0, atol=case.tolerance)
    else:
        sure, classes = case.sure[::STEP, ::STEP], case.mask[::STEP, ::STEP]
        chances = case.values if len(case.values) > 1 else np.stack([1 - case.values[0], case.values[0]])
        expected = np.take_along_axis(chances, classes[None].astype(np.intp), 0)[0]
        assert found.scores is not None
        np.testing.assert_allclose(found.scores[::STEP, ::STEP][sure], expected[sure], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("1x")])
def test_the_slow_implementation_gives_what_mmsegmentation_gives(name: str) -> None:
    """What other tests draw their expectations from (helpers/upstream.py)."""
    case = Case.stored(name)
    first, *steps, _ = case.config["test_dataloader"]["dataset"]["pipeline"]
    found = upstream.logits_of(
        upstream.load(case.data, first),
        steps,
        case.config["model"],
        lambda tensor: fake_network.network(tensor, case.weight),
        align_corners=case.align_corners,
    )
    found = found if case.threshold is None else sigmoid(found)
    np.testing.assert_allclose(found[:, ::STEP, ::STEP], case.values, rtol=0, atol=case.tolerance)

"""The torch baseline is the network of the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import ASSETS

from denseport.export.errors import CheckpointError
from denseport.export.explain.baseline import torch_baseline
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.segmenter import Segmenter


def test_the_baseline_computes_what_the_artifact_does(sample: Bundle) -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)
    with Segmenter(sample) as segmenter:
        expected = segmenter.session.run(image)
    baseline = torch_baseline(sample.manifest, ASSETS / "dpt_tiny_street.pth")
    np.testing.assert_allclose(baseline.run(image), expected, atol=1e-4)
    random = torch_baseline(sample.manifest, None)
    assert random.run(image).shape == expected.shape and "random weights" in random.description


def test_what_the_weights_do_not_show_is_the_bundles(sample: Bundle, tmp_path: Path) -> None:
    """The number of heads, say, which a file without a configuration leaves to a guess."""
    bare, image = tmp_path / "bare.pth", np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    whole = torch.load(ASSETS / "dpt_tiny_street.pth", weights_only=True)
    torch.save({"state_dict": whole["state_dict"]}, bare)
    expected = torch_baseline(sample.manifest, ASSETS / "dpt_tiny_street.pth").run(image)
    np.testing.assert_array_equal(torch_baseline(sample.manifest, bare).run(image), expected)


def test_a_checkpoint_of_another_network_is_refused(sample: Bundle, oracle: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit a DPT network"):
        torch_baseline(sample.manifest, oracle / "tiny_dpt_project.pth")

"""The torch baseline is the network of the bundle."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support import ASSETS

from denseport.export.baseline import spec_of, torch_baseline
from denseport.export.presets import PRESETS
from denseport.runtime.bundle import Bundle
from denseport.runtime.segmenter import Segmenter


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_spec_survives_the_manifest(name: str) -> None:
    spec = PRESETS[name].spec
    assert spec_of(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_the_baseline_computes_what_the_artifact_does(sample: Bundle) -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)
    with Segmenter(sample) as segmenter:
        expected = segmenter.session.run(image)
    baseline = torch_baseline(sample.manifest, ASSETS / "dpt_tiny_street.pth")
    np.testing.assert_allclose(baseline.run(image), expected, atol=1e-4)
    random = torch_baseline(sample.manifest, None)
    assert random.run(image).shape == expected.shape and "random weights" in random.description

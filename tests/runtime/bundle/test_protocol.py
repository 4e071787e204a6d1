"""What people write and read of a protocol: sizes are width x height."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.bundle.steps import Pad, Resize, ResizeRounded, ResizeToMultiple
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.network_input import network_inputs


def test_a_fixed_size_is_width_by_height(sample: Bundle) -> None:
    protocol = parse_protocol("fixed:96x64", sample.manifest)
    (tensor,) = network_inputs(np.zeros((50, 50, 3), np.uint8), protocol, sample.manifest.patch_size)
    assert tensor.shape == (1, 3, 64, 96)
    assert protocol.description == "whole, fixed 96 x 64"


def test_a_fixed_size_is_sampled_as_the_bundles_own(sample: Bundle) -> None:
    *_, normalise = sample.manifest.preprocess
    own = ResizeRounded((518, 518), "minimal", 14, "bicubic", "pillow")
    depth = replace(sample.manifest, preprocess=(own, ResizeToMultiple((8, 8)), normalise, Pad((600, 600))))
    steps = parse_protocol("fixed:96x64", depth).preprocess
    assert steps == (Resize((96, 64), False, "bicubic", "pillow"), normalise)


def test_windows_are_described_width_by_height(sample: Bundle) -> None:
    slide = replace(sample.manifest, inference=Inference("slide", (64, 128), (40, 80)))  # as arrays: height, width
    assert parse_protocol("reference", slide).description.endswith(", crop 128 x 64, stride 80 x 40")


def test_what_no_protocol_is_called_is_refused_with_the_order_of_sizes(sample: Bundle) -> None:
    with pytest.raises(InputError, match="no protocol 'fixed:96'") as caught:
        parse_protocol("fixed:96", sample.manifest)
    assert "fixed:WIDTHxHEIGHT" in str(caught.value)

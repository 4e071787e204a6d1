"""Specs on their way through a manifest, and what cannot be a network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from denseport.export.models.presets import PRESETS
from denseport.export.models.spec import DPTHeadSpec, ModelSpec, NeckSpec, UPerHeadSpec, ViTSpec, spec_of


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_spec_survives_the_manifest(name: str) -> None:
    spec = PRESETS[name].spec
    assert spec_of(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


VIT = ViTSpec(32, 4, 4, 128, (0, 1, 2, 3), (4, 4), norm_eps=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dataclasses.replace(VIT, num_heads=5), "num_heads 5 does not divide embed_dims 32"),
        (lambda: dataclasses.replace(VIT, out_indices=(0, 1, 2, 4)), "not four layers, in ascending order, of 4"),
        (lambda: dataclasses.replace(VIT, out_indices=(1, 0, 2, 3)), "not four layers, in ascending order"),
        (lambda: dataclasses.replace(VIT, out_indices=(0, 0, 2, 3)), "not four layers, in ascending order"),
        (lambda: dataclasses.replace(VIT, out_indices=(0, 1, 2)), "not four layers"),
        (lambda: NeckSpec(32, (4, 2, 1)), "not four positive numbers"),
        (lambda: DPTHeadSpec(16, (4, 4, 4, 4), "sum"), "readout 'sum' is none of project, add, ignore"),
    ],
)
def test_what_cannot_be_built_is_no_spec(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("head", "neck", "stride"),
    [
        (DPTHeadSpec(16, (4, 4, 4, 4)), None, 2),
        (UPerHeadSpec(16), NeckSpec(32), 4),
        (UPerHeadSpec(16), None, 16),
    ],
    ids=["DPT", "UPerNet with a neck", "UPerNet without"],
)
def test_strides(head: DPTHeadSpec | UPerHeadSpec, neck: NeckSpec | None, stride: int) -> None:
    assert ModelSpec(VIT, neck, head, 7).stride == stride

"""Specs on their way through a manifest, and what cannot be a network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from denseport.export.models.head_spec import DPTHeadSpec, UPerHeadSpec
from denseport.export.models.presets import PRESETS
from denseport.export.models.spec import ModelSpec, NeckSpec, ViTSpec, spec_of
from denseport.runtime.errors import BundleError


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_spec_survives_the_manifest(name: str) -> None:
    spec = PRESETS[name].spec
    assert spec_of(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_a_manifest_whose_parts_do_not_go_together_is_refused() -> None:
    data = json.loads(json.dumps(dataclasses.asdict(PRESETS["upernet_deit-s16_160k"].spec)))
    data["head"]["in_index"] = [0, 4]
    with pytest.raises(
        BundleError, match=r"the manifest: spec: decode_head.in_index \(0, 4\) does not go with 4 levels"
    ):
        spec_of(data)


VIT = ViTSpec(32, 4, 4, 128, (0, 1, 2, 3), (4, 4), norm_eps=1e-6)
DPT, UPERNET = DPTHeadSpec(16, (4, 4, 4, 4)), UPerHeadSpec(16)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dataclasses.replace(VIT, num_heads=5), "num_heads 5 does not divide embed_dims 32"),
        (lambda: dataclasses.replace(VIT, out_indices=(0, 1, 2, 4)), "not layers, in ascending order, of 4"),
        (lambda: dataclasses.replace(VIT, out_indices=(1, 0, 2, 3)), "not layers, in ascending order"),
        (lambda: dataclasses.replace(VIT, out_indices=(0, 0, 2, 3)), "not layers, in ascending order"),
        (lambda: dataclasses.replace(VIT, out_indices=()), "not layers"),
        (lambda: dataclasses.replace(VIT, in_channels=4), "in_channels 4 is neither 3"),
        (lambda: dataclasses.replace(VIT, interpolate_mode="nearest"), "'nearest' is not one of bicubic, bilinear"),
        (lambda: NeckSpec(32, ()), "not positive numbers"),
        (lambda: NeckSpec(32, (4, 2, 1, float("inf"))), "not positive numbers"),
        (lambda: ModelSpec(VIT, NeckSpec(32, (4, 2, 1)), UPERNET, 7), r"\(4, 2, 1\) do not go with 4 layers"),
        (lambda: ModelSpec(VIT, None, UPerHeadSpec(16, in_index=(0, 4)), 7), r"\(0, 4\) does not go with 4 levels"),
        (lambda: ModelSpec(VIT, None, UPerHeadSpec(16, in_index=()), 7), "does not go with 4 levels"),
        (lambda: ModelSpec(VIT, None, UPerHeadSpec(16, threshold=0.3), 7), "divides two classes, not 7"),
        (lambda: UPerHeadSpec(16, threshold=1.0), "threshold 1.0 is not between 0 and 1"),
        (lambda: DPTHeadSpec(16, (4, 4, 4, 4), in_index=(0, 1)), "are not the four levels that DPT fuses"),
        (lambda: ModelSpec(dataclasses.replace(VIT, with_cls_token=False), None, DPT, 7), "class token"),
        (lambda: DPTHeadSpec(16, (4, 4, 4, 4), "sum"), "readout 'sum' is not one of project, add, ignore"),
    ],
)
def test_what_cannot_be_built_is_no_spec(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("head", "neck", "stride"),
    [
        (DPT, None, 2),
        (UPERNET, NeckSpec(32), 4),
        (UPERNET, NeckSpec(32, (0.5, 1, 2, 4)), 32),
        (UPerHeadSpec(16, in_index=(3, 2, 1, 0)), NeckSpec(32, (0.5, 1, 2, 4)), 4),
        (UPERNET, None, 16),
    ],
    ids=["DPT", "UPerNet with a neck", "upstream's default scales", "the other way round", "UPerNet without"],
)
def test_strides(head: DPTHeadSpec | UPerHeadSpec, neck: NeckSpec | None, stride: int) -> None:
    assert ModelSpec(VIT, neck, head, 7).stride == stride

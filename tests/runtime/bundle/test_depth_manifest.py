"""A manifest is of segmentation or of depth, and says what depths mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bundles import depth_manifest

from denseport.runtime.bundle.manifest import DepthOutput, Inference, Manifest
from denseport.runtime.errors import BundleError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": None}, "without depth"),
        ({"classes": ("sky",), "palette": ((0, 0, 0),)}, "classes means nothing for depth"),
        ({"reduce_zero_label": True}, "reduce_zero_label means nothing for depth"),
        ({"scores": False}, "scores means nothing for depth"),
        ({"temperature": 2.0}, "temperature means nothing for depth"),
        ({"ignore_index": 3}, "ignore_index means nothing for depth"),
        ({"inference": Inference("slide", (64, 64), (42, 42))}, "sliding windows"),
        ({"task": "segmentation"}, "depth is said of"),
        ({"task": "normals"}, "not one of segmentation, depth"),
    ],
    ids=str,
)
def test_a_manifest_is_of_one_task(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        depth_manifest(**change)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("feet", "farther", None, "bilinear"), "'feet'"),
        (("metres", "nearer", None, "bilinear"), "'nearer'"),
        (("relative", "larger", None, "bilinear"), "'larger'"),
        (("metres", "farther", 0.0, "bilinear"), "largest 0"),
        (("metres", "farther", None, "nearest"), "'nearest'"),
    ],
    ids=str,
)
def test_what_depths_mean_is_one_of_few_things(fields: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DepthOutput(*fields)


def test_the_source_of_a_depth_bundle_gives_depth() -> None:
    data = json.loads(depth_manifest().to_json())
    data["artifacts"]["model.onnx"]["output"] = "logits"
    with pytest.raises(BundleError, match="gives depth"):
        Manifest.from_json(json.dumps(data), "m.json")

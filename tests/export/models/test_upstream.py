"""Networks with settings that no published model has, against what the real mmsegmentation 1.2.2 computed of them.

``assets/upstream_networks.pth`` and ``upstream_families.pth`` were made by ``MODELS.build(config)`` with random weights
and BatchNorm statistics, both rounded to FP16, and ``_forward`` on a random image.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ASSETS

from denseport.export.checkpoint.file import Checkpoint, parse_config
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.entrance.torch_to_onnx import check_export, export_onnx
from denseport.export.models.spec import ModelSpec

NAMES = (
    *("no_qkv_bias", "bilinear", "no_cls_token", "levels_exchanged", "one_layer", "dpt_aligned", "grey"),
    # Drawn at random; SETR's heads are called up (naive, PUP) and mla.
    *("segformer0", "segformer1", "segformer7", "segmenter0", "segmenter6", "linear5"),
    *("up0", "up4", "mla0", "mla7"),
)


@cache
def networks() -> dict[str, Any]:
    files = ("upstream_networks.pth", "upstream_families.pth")
    return {name: each for file in files for name, each in torch.load(ASSETS / file, weights_only=True).items()}


def checkpoint(name: str) -> Checkpoint:
    given = networks()[name]
    config = parse_config(f"model = {given['config']}")
    return Checkpoint(Path(f"{name}.pth"), "", "mmseg 1.x", given["state_dict"], config=config)


@pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "upstream-order"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_upstreams(name: str, rewrite: bool) -> None:
    source, given = checkpoint(name), networks()[name]
    recognised = recognise(source)
    assert recognised.warnings == ()
    logits = load_model(source, recognised.spec, rewrite=rewrite)(given["image"].float())
    largest = float(given["logits"].abs().max())
    np.testing.assert_allclose(logits.numpy(), given["logits"].numpy(), atol=5e-6 * largest, rtol=0)


def test_every_network_is_compared() -> None:
    assert tuple(networks()) == NAMES


def test_the_export_computes_the_same_of_one_layer(tmp_path: Path) -> None:
    check(*network("one_layer"), tmp_path)


def test_the_export_computes_the_same_of_other_settings(tmp_path: Path) -> None:
    """Those of ``bilinear``, ``no_cls_token`` and ``grey`` in one network; the rest needs no rules in ONNX."""
    source, spec = network("no_cls_token")
    backbone = dataclasses.replace(spec.backbone, interpolate_mode="bilinear", in_channels=1)
    spec = dataclasses.replace(spec, backbone=backbone, head=dataclasses.replace(spec.head, align_corners=True))
    projection = "backbone.patch_embed.projection.weight"
    weights = {**source.state_dict, projection: source.state_dict[projection][:, :1]}
    check(dataclasses.replace(source, state_dict=weights), spec, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bilinear", "no_cls_token", "grey", *NAMES[7:]])
def test_the_export_of_each_computes_the_same(tmp_path: Path, name: str) -> None:
    check(*network(name), tmp_path)


def network(name: str) -> tuple[Checkpoint, ModelSpec]:
    source = checkpoint(name)
    return source, recognise(source).spec


def check(source: Checkpoint, spec: ModelSpec, tmp_path: Path) -> None:
    model = load_model(source, spec)
    export_onnx(model, tmp_path / "model.onnx")
    assert len(check_export(model, tmp_path / "model.onnx")) == 3

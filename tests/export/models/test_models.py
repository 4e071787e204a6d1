"""The re-implemented networks against what the real mmsegmentation computed, and against its key tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from support import ASSETS, LOGITS_TOLERANCE, ORACLE_MODELS, assert_same_classes

from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.models.operators import pyramid_matrix, resize_pos_embed
from denseport.export.models.presets import PRESETS, Preset
from denseport.export.models.segmentor import Segmentor, build
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference

FIRST = [preset for preset in PRESETS.values() if preset.spec.architecture in ("DPT", "UPerNet")]
# Of configs/_base_/models of mmsegmentation 1.2.2.
IMAGENET, MEANS = (123.675, 116.28, 103.53), {"Segmenter": (127.5, 127.5, 127.5)}
OTHERS = [preset for preset in PRESETS.values() if preset not in FIRST]
PATCH_BIAS = "backbone.patch_embed.projection.bias"  # released weights have it, 1.2.2's classes do not


def load(path: Path, *, rewrite: bool = True) -> Segmentor:
    checkpoint = read_checkpoint(path)
    return load_model(checkpoint, recognise(checkpoint).spec, rewrite=rewrite)


def inputs(golden: np.lib.npyio.NpzFile) -> list[str]:
    sizes = [key.removeprefix("in_") for key in golden.files if key.startswith("in_")]
    assert sizes, "a file without inputs: the comparison would show nothing"
    return sizes


def check_logits(golden: np.lib.npyio.NpzFile, size: str, logits: NDArray[np.float32]) -> None:
    """The head's logits within tolerance, and the argmax of the resized logits where it is not a near tie."""
    np.testing.assert_allclose(logits, golden[f"head_{size}"], atol=LOGITS_TOLERANCE, rtol=0)
    if f"argmax_{size}" in golden:
        height, width = map(int, size.split("x"))
        resized = F.interpolate(torch.from_numpy(logits), size=(height, width), mode="bilinear", align_corners=False)
        assert_same_classes(resized.argmax(1).numpy(), golden[f"argmax_{size}"], resized.numpy())


@pytest.mark.parametrize("name", ORACLE_MODELS)
@pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "upstream-order"])
def test_torch_logits_equal_the_oracle(oracle: Path, name: str, rewrite: bool) -> None:
    model, golden = load(oracle / f"{name}.pth", rewrite=rewrite), np.load(oracle / f"{name}.npz")
    for size in inputs(golden):
        check_logits(golden, size, model(torch.from_numpy(golden[f"in_{size}"])).numpy())


@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_onnx_logits_equal_the_oracle(oracle: Path, exported: Callable[[str], Bundle], name: str) -> None:
    session = OnnxRuntimeSession(exported(name).verified("model.onnx"))
    golden = np.load(oracle / f"{name}.npz")
    for size in inputs(golden):
        check_logits(golden, size, session.run(golden[f"in_{size}"]))


def test_intermediate_features_equal_the_oracle(oracle: Path) -> None:
    model, golden = load(oracle / "tiny_dpt_project.pth"), np.load(oracle / "tiny_dpt_project.npz")
    levels = model.backbone(torch.from_numpy(golden["in_64x64"]))
    for i, (features, cls) in enumerate(levels):
        np.testing.assert_allclose(features.numpy(), golden[f"backbone{i}_64x64"], atol=1e-5)
        np.testing.assert_allclose(cls.numpy(), golden[f"backbone_cls{i}_64x64"], atol=1e-5)
    for i, features in enumerate(model.decode_head.reassemble_blocks(levels)):
        np.testing.assert_allclose(features.numpy(), golden[f"reassemble{i}_64x64"], atol=1e-5)


def test_a_dropped_patch_bias_changes_the_result(oracle: Path) -> None:
    """Upstream 1.2 drops the bias of released weights; the oracle kept what that gives. Ours must not."""
    golden = np.load(oracle / "tiny_dpt_project.npz")
    wrong, right = golden["head_nopbias_64x64"], golden["head_64x64"]
    found = load(oracle / "tiny_dpt_project.pth")(torch.from_numpy(golden["in_64x64"])).numpy()
    assert np.abs(found - right).max() < LOGITS_TOLERANCE
    assert np.abs(found - wrong).max() > 0.1


@pytest.mark.parametrize("preset", FIRST, ids=lambda preset: preset.name)
def test_presets_have_upstreams_keys_shapes_and_size(oracle: Path, preset: Preset) -> None:
    spec = json.loads((oracle / "specs" / f"{preset.config}.json").read_text())
    with torch.device("meta"):
        model = build(preset.spec)
    wanted = {key: tuple(shape) for key, shape, _ in spec["state_dict"] + spec["released_checkpoint_extra_keys"]}
    wanted = {key: shape for key, shape in wanted.items() if not key.startswith("auxiliary_head.")}
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == wanted
    parameters = sum(value.numel() for value in model.parameters())
    assert parameters == spec["params_total_with_patch_bias"] - spec["params_aux_head"]
    assert preset.spec.backbone.norm_eps == spec["resolved_defaults"]["backbone"]["ln_eps"]
    assert preset.spec.backbone.num_heads == spec["resolved_defaults"]["backbone"]["num_heads"]
    assert list(preset.spec.backbone.out_indices) == spec["resolved_defaults"]["backbone"]["out_indices"]
    if spec["released"]:
        assert preset.mIoU == spec["released"]["metrics"]["Metrics"]["mIoU"]
        assert preset.mIoU_ms_flip == spec["released"]["metrics"]["Metrics"]["mIoU(ms+flip)"]
        assert spec["released"]["weights"].endswith(f"-{preset.sha256_start}.pth")


def test_every_spec_of_the_oracle_has_a_preset(oracle: Path) -> None:
    assert {path.stem for path in (oracle / "specs").iterdir()} == {preset.config for preset in FIRST}


def published() -> dict[str, dict[str, Any]]:
    """By the name of the configuration: what mmsegmentation 1.2.2's metafiles and classes say; see assets/README.md."""
    return json.loads((ASSETS / "published.json").read_text())


@pytest.mark.parametrize("preset", OTHERS, ids=lambda preset: preset.name)
def test_presets_of_other_families_are_upstreams(preset: Preset) -> None:
    given = published()[preset.config]
    with torch.device("meta"):
        model = build(preset.spec)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if key != PATCH_BIAS}
    text = "\n".join(f"{key} {shape}" for key, shape in sorted(shapes.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == given["keys_sha256"]
    parameters = sum(value.numel() for key, value in model.named_parameters() if key != PATCH_BIAS)
    assert parameters == given["parameters"]
    assert (preset.weights, preset.dataset) == (given["weights"], given["dataset"])
    assert (preset.mIoU, preset.mIoU_ms_flip, preset.memory_gb) == (given["mIoU"], given["ms_flip"], given["memory_gb"])
    window = preset.slide and {"mode": "slide", "crop_size": [preset.slide[0]] * 2, "stride": [preset.slide[1]] * 2}
    assert (list(preset.scale), window or {"mode": "whole"}) == (given["scale"], given["test_cfg"])
    config = {"model": given["model"]}  # what cannot be seen in keys: heads, layers, eps, scales
    checkpoint = Checkpoint(Path("mine.pth"), "0" * 64, "mmseg 1.x", model.state_dict(), config=config)
    assert (recognise(checkpoint).spec, recognise(checkpoint).warnings) == (preset.spec, ())
    bare = Checkpoint(Path("mine.pth"), "0" * 64, "weights only", model.state_dict())
    usual, guessed = recognise(bare, preset).usual, recognise(bare).usual  # how it is tested where nothing says it
    inference = Inference("slide", *(tuple(window[key]) for key in ("crop_size", "stride"))) if window else Inference()
    assert (list(usual.resize.size), usual.resize.keep_ratio, usual.inference) == (given["scale"], True, inference)
    assert usual.normalise.mean == MEANS.get(preset.spec.architecture, IMAGENET) and usual.normalise.bgr_to_rgb
    if preset.spec.architecture != "SegFormer":  # whose keys do not show the size that it was trained on
        assert (guessed.normalise, guessed.inference) == (usual.normalise, usual.inference)
    if preset.dataset == "ADE20K" and preset.spec.architecture == "Segmenter":
        assert guessed == usual


def test_every_published_model_has_a_preset() -> None:
    assert published().keys() == {preset.config for preset in OTHERS}


def test_position_embeddings_resize_as_upstreams(oracle: Path) -> None:
    golden = np.load(oracle / "pos_embed_resize.npz")
    compared = 0
    for key in golden.files:
        if "_to_" not in key:
            continue
        source, target = key.removeprefix("pos_").split("_to_")
        (gh, gw), (h, w) = (tuple(map(int, text.split("x"))) for text in (source, target))
        stored = torch.from_numpy(golden[f"pos_{source}"])
        grid = stored[:, 1:].reshape(1, gh, gw, -1).permute(0, 3, 1, 2)
        np.testing.assert_allclose(resize_pos_embed(grid, h, w).numpy(), golden[key][:, 1:], atol=1e-6)
        compared += 1
    assert compared >= 8


def test_position_embeddings_are_kept_when_only_the_shape_differs() -> None:
    grid = torch.randn(1, 3, 4, 4)
    tokens = resize_pos_embed(grid, 2, 8)
    torch.testing.assert_close(tokens, grid.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (32, 43)])
def test_pooling_by_matrices_is_adaptive_average_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    scales = (1, 2, 3, 6)
    pooled = pyramid_matrix(size[0], scales, x) @ x @ pyramid_matrix(size[1], scales, x).T
    at = 0
    for k in scales:
        torch.testing.assert_close(pooled[:, :, at : at + k, at : at + k], F.adaptive_avg_pool2d(x, k))
        at += k

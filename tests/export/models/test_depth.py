"""Depth Anything and DPT for depth, in all their file formats, against what the real classes computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from depth_networks import ANSWERS, check, checkpoint_of, config_of, pairs
from exports import export_once, shelf

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.entrance.torch_to_onnx import check_export, export_onnx
from denseport.export.graph.fusion import fuse
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DPTDepthHeadSpec
from denseport.export.models.operators import resize_with_offset
from denseport.export.models.presets import DEPTH_PRESETS
from denseport.export.models.segmentor import Segmentor, build
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession

# An export takes seconds: in each run the one with the most that is new is exported, with --slow all of them.
EXPORTED = [
    name if name == "hf_depth_anything_metric" else pytest.param(name, marks=pytest.mark.slow) for name in ANSWERS
]


def load(folder: Path, tmp_path: Path, *, rewrite: bool = True) -> Segmentor:
    checkpoint = read_checkpoint(checkpoint_of(folder), config_of(folder.name, tmp_path))
    recognised = recognise(checkpoint)
    assert recognised.warnings == () and recognised.preset is None
    return load_model(checkpoint, recognised.spec, rewrite=rewrite)


@pytest.fixture(scope="module")
def families(shared: Path) -> Path:
    return shared / "oracle_families"


@pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "upstream-order"])
@pytest.mark.parametrize("name", ANSWERS)
def test_torch_computes_what_the_real_classes_do(families: Path, tmp_path: Path, name: str, rewrite: bool) -> None:
    model = load(families / name, tmp_path, rewrite=rewrite)
    for image, key in pairs(families / name):
        check(families / name, key, model(torch.from_numpy(image)).numpy())


def test_the_inversion_of_isl_gives_metres(families: Path, tmp_path: Path) -> None:
    """``inverted_*`` of the oracle is what its model for NYU returns of the same weights."""
    model = load(families / "isl_depth", tmp_path)
    head = model.spec.head
    assert isinstance(head, DPTDepthHeadSpec)
    head = dataclasses.replace(head, metres=True, inversion=(0.000305, 0.1378))
    inverting = build(dataclasses.replace(model.spec, head=head))
    inverting.load_state_dict(model.state_dict())
    for image, key in pairs(families / "isl_depth", of="inverted"):
        check(families / "isl_depth", key, inverting(torch.from_numpy(image)).detach().numpy())


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_computes_what_the_real_classes_do(
    families: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    if ANSWERS[name] is not None and name == "hf_dpt_depth_add":  # without preprocessor_config.json it is no bundle
        export_onnx(load(families / name, tmp_path), tmp_path / "model.onnx")
        session = OnnxRuntimeSession(tmp_path / "model.onnx")
    else:
        config = config_of(name, tmp_path)
        checkpoint, folder = checkpoint_of(families / name), shelf(tmp_path_factory)
        bundle = export_once(checkpoint, folder, tmp_path / "bundle", config=config)
        session = OnnxRuntimeSession(bundle.verified("model.onnx"))
    for image, key in pairs(families / name):
        check(families / name, key, session.run(image))


def test_two_of_three_upsamplings_fuse_with_their_sums(
    families: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At any size: the third fits the coarsest level to the next, which is not exactly twice as large."""
    name = "hf_depth_anything_metric"
    bundle = export_once(families / name, shelf(tmp_path_factory), tmp_path / "bundle")
    model = ir.load(bundle.verified("model.onnx"))
    assert fuse(model).fused == {"UpsampleAdd": 2}
    ir.save(model, tmp_path / "fused.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 70, 98)).astype(np.float32)
    files = bundle.verified("model.onnx"), tmp_path / "fused.onnx"
    plain, fused = (OnnxRuntimeSession(file).run(image) for file in files)
    assert plain.shape == (1, 1, 70, 98) and plain.std() > 0
    np.testing.assert_array_equal(plain, fused)


@pytest.mark.parametrize("size", [(37, 37), (37, 38), (20, 50), (75, 3), (1, 1)], ids=str)
def test_positions_with_an_offset_are_torchs_own_resize(size: tuple[int, int]) -> None:
    """As Depth Anything's code calls it; a grid of that very size it leaves alone."""
    grid = torch.randn(1, 4, 37, 37, generator=torch.Generator().manual_seed(0))
    factors = tuple((side + 0.1) / 37 for side in size)
    wanted = grid if size == (37, 37) else F.interpolate(grid, scale_factor=factors, mode="bicubic")
    np.testing.assert_allclose(resize_with_offset(grid, *size, 0.1).numpy(), wanted.numpy(), atol=1e-4, rtol=0)


def test_what_no_key_shows_changes_the_depth(families: Path, tmp_path: Path) -> None:
    """So that a wrong guess is a wrong depth: layers, norms, positions, the fit to levels, the end."""
    model = load(families / "da2_relative", tmp_path)
    backbone, head = model.spec.backbone, model.spec.head
    assert isinstance(head, DepthAnythingHeadSpec)
    others = [
        dataclasses.replace(model.spec, backbone=dataclasses.replace(backbone, out_indices=(8, 9, 10, 11))),
        dataclasses.replace(model.spec, backbone=dataclasses.replace(backbone, norm_outputs=False, final_norm=True)),
        dataclasses.replace(model.spec, backbone=dataclasses.replace(backbone, pos_offset=0.0)),
        dataclasses.replace(model.spec, head=dataclasses.replace(head, max_depth=1.0)),
    ]
    image, _ = list(pairs(families / "da2_relative"))[1]
    wanted = model(torch.from_numpy(image)).detach().numpy()
    for spec in others:
        other = build(spec)
        other.load_state_dict(model.state_dict())
        found = other(torch.from_numpy(image)).detach().numpy()
        assert np.abs(found - wanted).max() > 0.01 * wanted.max()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["vits", "vitb", "vitl"])
def test_depth_anything_v2_at_full_size(tmp_path: Path, size: str) -> None:
    """Random weights: the export, and ONNX Runtime beside torch at three sizes, one of them not square."""
    torch.manual_seed(0)
    preset = DEPTH_PRESETS[f"depth_anything_v2_{size}"]
    model = build(preset.spec).requires_grad_(False)
    with torch.no_grad():  # a depth above zero, so that ReLU does not hide what differs
        model.decode_head.output_conv2[2].bias.fill_(1.0)
    files = export_onnx(model, tmp_path / "model.onnx")
    parameters = sum(value.numel() for value in model.parameters())
    assert sum(file.stat().st_size for file in files) == pytest.approx(4 * parameters, rel=0.02), "each weight once"
    shapes = [(1, 3, 518, 518), (1, 3, 518, 686), (2, 3, 280, 392)]
    checks = check_export(model, tmp_path / "model.onnx", shapes)
    for each in checks:
        print(f"  input {each.shape}: depth differs by {each.max_difference:.1e}")
    assert [each.logits for each in checks] == [(n, 1, h, w) for n, _, h, w in shapes]
    assert parameters == pytest.approx({"vits": 24.8e6, "vitb": 97.5e6, "vitl": 335.3e6}[size], rel=0.01)

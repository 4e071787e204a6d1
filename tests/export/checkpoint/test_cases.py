"""Checkpoints as users have them: the network's half of what the real mmsegmentation 1.2.2 computed of each.

Pre-processing is done here as upstream does it, without this project's; `runtime` has tests of the whole way.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import read_model, save_model
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
CASES = (
    "plain", "align_corners", "neck_default", "ema_keys", "no_num_batches", "loss_buffer", "binary", "binary_one_name",
    "full_type_names", "scoped_type_names", "one_channel",
)  # fmt: skip


@cache
def golden(folder: Path) -> dict[str, NDArray[Any]]:
    return dict(np.load(folder / "cases.npz"))


def network_input(folder: Path, grey: bool) -> tuple[torch.Tensor, tuple[int, int]]:
    """The image, resized to fit 256 x 128 and normalised, and its own height and width."""
    image = cv2.imread(str(folder / "image.png"), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    assert image is not None
    height, width = image.shape[:2]
    scale = min(256 / max(height, width), 128 / min(height, width))
    resized = cv2.resize(image, (int(width * scale + 0.5), int(height * scale + 0.5)), interpolation=cv2.INTER_LINEAR)
    x = (resized[None] - np.float32(120)) / np.float32(60) if grey else ((resized[..., ::-1] - MEAN) / STD)
    x = x if grey else x.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))[None], (height, width)


def check(folder: Path, name: str, logits: torch.Tensor, sizes: list[tuple[int, int]], align_corners: bool) -> None:
    """Both of upstream's resizes, then its logits and its mask."""
    for size in sizes:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    found, wanted = logits[0].numpy(), golden(folder)[f"{name}_logits"]
    # Of a head of one output, mmsegmentation keeps the probability; the other class is ours.
    shown = 1 / (1 + np.exp(-found[1:])) if len(wanted) == 1 else found
    np.testing.assert_allclose(shown[:, ::6, ::6], wanted, atol=1e-4, rtol=0)
    sure = golden(folder)[f"{name}_sure"]
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found.argmax(0)[sure], golden(folder)[f"{name}_mask"][sure])


@pytest.mark.parametrize("name", CASES)
def test_the_network_computes_what_mmsegmentation_does(shared: Path, name: str) -> None:
    folder = shared / "cases/mmseg"
    checkpoint = read_checkpoint(folder / f"{name}.pth")
    spec = recognise(checkpoint).spec
    x, size = network_input(folder, name == "one_channel")
    with torch.inference_mode():
        logits = load_model(checkpoint, spec)(x)
    check(folder, name, logits, [tuple(x.shape[2:]), size], spec.head.align_corners)  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["align_corners", "neck_default", "binary_one_name"])
def test_so_does_the_export(shared: Path, tmp_path: Path, name: str) -> None:
    folder, path = shared / "cases/mmseg", tmp_path / "bundle"
    manifest = export_bundle(folder / f"{name}.pth", path).manifest
    is_binary, align_corners = name == "binary_one_name", name == "align_corners"
    assert (manifest.align_corners, manifest.threshold) == (align_corners, 0.3 if is_binary else None)
    x, size = network_input(folder, False)
    logits = torch.from_numpy(OnnxRuntimeSession(path / "model.onnx").run(x.numpy()))
    check(folder, name, logits, [tuple(x.shape[2:]), size], align_corners)  # type: ignore[list-item]
    if is_binary:
        assert (manifest.classes, manifest.palette) == (("background", "crack"), ((0, 0, 0), (255, 0, 0)))
        assert any("'crack'" in warning for warning in manifest.provenance["warnings"])
    model = read_model(path / "model.onnx")
    append_mask(model, align_corners=align_corners)
    save_model(model, tmp_path / "mask.onnx")
    mask = OnnxRuntimeSession(tmp_path / "mask.onnx").run(x.numpy())
    resized = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=align_corners)
    assert (mask == resized.argmax(1).numpy()).mean() > 0.9999
    other = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=not align_corners)
    assert (mask == other.argmax(1).numpy()).mean() < 0.999 or name == "neck_default"  # which finds one class

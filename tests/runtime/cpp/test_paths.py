"""Every way of an image to the network that configurations have, against what the real mmsegmentation gave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_network
import numpy as np
import onnx
import pytest
import torch
from bundles import onnx_artifact
from cpp import built, read_mask, run
from onnx import TensorProto, helper, numpy_helper
from support import ASSETS, SHARED
from torch import Tensor

from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import Checkpoint
from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import needs_pillow
from denseport.runtime.system.files import sha256_of

CASES = SHARED / "cases/mmseg"
NAMES = json.loads((CASES / "cases.json").read_text()) if CASES.is_dir() else {}
with np.load(ASSETS / "upstream_test_paths.npz") as _stored:
    STORED = {key: _stored[key] for key in _stored.files}
PATHS = sorted(key.removesuffix("_config") for key in STORED if key.endswith("_config"))


@pytest.fixture(params=["release", "sanitized"])
def program(request: pytest.FixtureRequest) -> Path:
    return built(f"{request.param}/denseport-cpp")


def network(weight: Tensor, threshold: float | None) -> onnx.ModelProto:
    """`fake_network.network` as an ONNX file."""
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1),
        helper.make_node("Conv", ["pooled", "weight"], ["convolved"]),
    ]
    constants = [numpy_helper.from_array(weight.numpy(), "weight")]
    last = "convolved"
    if threshold is not None:
        level = np.float32(np.log(threshold / (1 - threshold)))
        constants += [numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(level, "level")]
        nodes += [
            helper.make_node("Mul", ["convolved", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "level"], ["first"]),
            helper.make_node("Concat", ["first", "convolved"], ["both"], axis=1),
        ]
        last = "both"
    shape = ["n", weight.shape[1], "h", "w"]
    graph = helper.make_graph(
        nodes,
        "line",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", "k", "a", "b"])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def write_bundle(folder: Path, manifest: Manifest, model: onnx.ModelProto) -> Path:
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    artifact = onnx_artifact({"model.onnx": sha256_of(folder / "model.onnx")})
    written = replace(manifest, artifacts={"model.onnx": artifact}, source="model.onnx")
    (folder / MANIFEST).write_text(written.to_json())
    return folder


def check(program: Path, manifest: Manifest, bundle: Path, image: Path, expected: Any, sure: Any) -> None:
    done = run(program, "run", bundle, image, "-o", image.parent / "mask.png", "--threads", "1")
    if "may differ from OpenCV" in done.stderr:  # tests/runtime/cpp/test_pillow.py has which files these are
        assert done.returncode == 2 and needs_pillow(manifest.preprocess)
        return
    assert done.returncode == 0, done.stderr
    found = read_mask(image.parent / "mask.png")[sure]
    if any(getattr(step, "interpolation", "") == "bicubic" for step in manifest.preprocess):  # docs/cpp.md
        assert np.mean(found != expected[sure]) < 1e-3
    else:
        np.testing.assert_array_equal(found, expected[sure])


@pytest.mark.parametrize("name", PATHS)
def test_a_drawn_test_path_gives_mmsegmentations_mask(program: Path, name: str, sample: Bundle, tmp_path: Path) -> None:
    align_corners, threshold, channels, outputs = STORED[f"{name}_head"].tolist()
    weight = torch.from_numpy(STORED["weight"])[: int(outputs), : int(channels)]
    keys = {"backbone.patch_embed.projection.weight": torch.zeros(1, int(channels), 1, 1)}
    layout = "mmseg 0.x" if name.startswith("0x") else "mmseg 1.x"
    config = parse_config(str(STORED[f"{name}_config"]))
    manifest = fake_network.runner(
        sample,
        Checkpoint(Path("c.pth"), "", layout, keys, config=config),
        align_corners=bool(align_corners),
        weight=weight,
        threshold=threshold or None,
    ).manifest
    bundle = write_bundle(tmp_path / "bundle", manifest, network(weight, threshold or None))
    image, mask = tmp_path / "image", STORED[f"{name}_mask"]
    image.write_bytes(STORED[f"{name}_file"].tobytes())
    sure = np.unpackbits(STORED[f"{name}_sure"], count=mask.size).reshape(mask.shape).astype(bool)
    check(program, manifest, bundle, image, mask, sure)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "label_map"])
def test_a_checkpoint_gives_mmsegmentations_mask(name: str, tmp_path: Path) -> None:
    program = built("release/denseport-cpp")
    golden = np.load(CASES / "cases.npz")
    bundle = export_bundle(CASES / f"{name}.pth", tmp_path / "bundle")
    image = tmp_path / NAMES[name]["image"]
    image.write_bytes((CASES / image.name).read_bytes())
    check(program, bundle.manifest, bundle.path, image, golden[f"{name}_mask"], golden[f"{name}_sure"])

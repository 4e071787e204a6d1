"""Makers of small files that a stranger might send: a bundle of a few kilobytes, and checkpoints that lie."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from bundles import onnx_artifact, steps
from onnx import TensorProto, helper

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import Inference, Manifest, NetworkInput
from denseport.runtime.system.files import sha256_of

__all__ = ["enter", "external", "graph", "repack", "rewrite", "tiny_bundle", "tiny_manifest", "tiny_model"]


def graph(
    *nodes: onnx.NodeProto,
    initializers: tuple[TensorProto, ...] = (),
    domains: tuple[str, ...] = (),
    output: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from ``image`` (N, 3, H, W) to ``logits``."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", output, None)
    made = helper.make_graph(list(nodes), "tiny", [image], [logits], list(initializers))
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def tiny_model() -> onnx.ModelProto:
    """Three classes, of which each is one colour, on a quarter of the pixels."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], [1, 0, 0, 0, 1, 0, 0, 0, 1])
    convolution = helper.make_node("Conv", ["image", "w"], ["logits"], kernel_shape=[1, 1], strides=[4, 4])
    return graph(convolution, initializers=(weights,))


def external(location: str, count: int = 12) -> TensorProto:
    """A tensor ``w`` of ``count`` floats that is said to lie in ``location``."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(4 * count)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def tiny_manifest() -> Manifest:
    return Manifest(
        name="tiny",
        architecture="DPT",
        parameters=9,
        patch_size=4,
        stride=4,
        classes=("red", "green", "blue"),
        palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        reduce_zero_label=False,
        preprocess=steps(size=(64, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        inference=Inference(),
        reference=None,
        provenance={},
        spec={},
        source="model.onnx",
        task="segmentation",
        input=NetworkInput(),
        artifacts={"model.onnx": onnx_artifact({"model.onnx": "0" * 64})},
    )


def tiny_bundle(path: Path) -> Bundle:
    """A bundle whose network tells pixels apart by their strongest colour; about 2 KB."""
    path.mkdir(parents=True)
    (path / MANIFEST).write_text(tiny_manifest().to_json())
    return enter(Bundle(path), tiny_model().SerializeToString())


def enter(bundle: Bundle, model: bytes, **files: bytes) -> Bundle:
    """Put a model into the bundle as its ``model.onnx``, with its right hash, and ``files`` beside it."""
    (bundle.path / "model.onnx").write_bytes(model)
    for name, data in files.items():
        (bundle.path / name).write_bytes(data)
    artifact = onnx_artifact({"model.onnx": sha256_of(bundle.path / "model.onnx")})
    manifest = dataclasses.replace(bundle.manifest, artifacts={"model.onnx": artifact})
    (bundle.path / MANIFEST).write_text(manifest.to_json())
    return Bundle(bundle.path)


def rewrite(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a bundle's manifest as JSON; its folder, since it may be none any more."""
    data = json.loads((bundle.path / MANIFEST).read_text())
    change(data)
    (bundle.path / MANIFEST).write_text(json.dumps(data))
    return bundle.path


def repack(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
    *,
    compression: int = zipfile.ZIP_STORED,
    extra: tuple[tuple[str, bytes], ...] = (),
) -> Path:
    """Write the records of a zip file again, changed, and others after them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
        for name, data in extra:
            new.writestr(name, data)
    return target

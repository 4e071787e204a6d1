"""Plant a fault in a bundle: each function changes one thing and leaves every hash right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from bundles import onnx_artifact
from onnx import helper, numpy_helper

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.system.files import sha256_of


def with_preprocess(bundle: Bundle, **values: object) -> Bundle:
    manifest = bundle.manifest
    steps = [
        dataclasses.replace(step, **{name: value for name, value in values.items() if hasattr(step, name)})  # type: ignore[arg-type]
        for step in manifest.preprocess
    ]
    spoilt = dataclasses.replace(manifest, preprocess=tuple(steps))
    (bundle.path / MANIFEST).write_text(spoilt.to_json())
    return Bundle(bundle.path)


def with_graph(
    bundle: Bundle, change: Callable[[onnx.GraphProto], None], name: str = "model.onnx", precision: str = "fp32"
) -> Bundle:
    """Change the graph of model.onnx and enter it as the artifact ``name``, with a hash that is right."""
    model = onnx.load(bundle.path / "model.onnx")
    change(model.graph)
    onnx.save(model, bundle.path / name)
    bundle.add(name, onnx_artifact({name: sha256_of(bundle.path / name)}, precision))
    return bundle


def set_attribute(graph: onnx.GraphProto, node_name: str, **values: str) -> None:
    (node,) = (node for node in graph.node if node.name == node_name)
    for key, value in values.items():
        (entry,) = (entry for entry in node.attribute if entry.name == key)
        entry.CopyFrom(helper.make_attribute(key, value))


def overflow(graph: onnx.GraphProto, weight: str) -> None:
    """What a weight becomes that is scaled beyond FP16's 65504 and stored in it."""
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values[3] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, weight))

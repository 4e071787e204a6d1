"""Where two graphs of one network part: their tensors compared by name, in the order in which they are computed.

`denseport.export.graph.tidy` names tensors after the model's layers, so a graph that was altered, typed or quantized
still has most names of its origin. ONNX Runtime runs both graphs as they are written, without optimizing them, and
hands out a bounded part of their inner tensors at a time, until the first that differs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from denseport.runtime.backends.onnxruntime import INPUT
from denseport.runtime.evaluation.metrics import json_number

__all__ = ["Difference", "Divergence", "difference", "find_divergence"]

GROUP_BYTES = 2**28  # of inner tensors in memory at a time, for each of the two graphs
WEIGHTS = "weights"  # file of a graph's weights, so that a probe for other tensors need not write them again
CONVERSIONS = ("Cast", "QuantizeLinear", "DequantizeLinear")  # what typing and quantizing put between two nodes


@dataclass(frozen=True)
class Difference:
    """How far one array is from another."""

    relative_error: float  # max |expected - found| / max |expected|; infinite where ``found`` overflowed
    cosine: float  # of the finite values, as one long vector each
    overflow: float | None = None  # largest expected magnitude where ``found`` is infinite or NaN

    def exceeds(self, limit: float) -> bool:
        """Whether the relative error, or what the cosine lacks to 1, is above ``limit``."""
        return not (self.relative_error <= limit and 1 - self.cosine <= limit)

    def __str__(self) -> str:
        if self.overflow is not None:
            return f"overflow: infinite or NaN where FP32 has magnitudes up to {self.overflow:.4g}"
        return f"relative error {self.relative_error:.2g}, cosine {self.cosine:.4f}"


@dataclass(frozen=True)
class Divergence:
    """The tensor at which two graphs part."""

    tensor: str
    node: str  # that computes it in the trusted graph, such as backbone.layers.3.attn.attn/MatMul_2
    operator: str  # of that node, such as MatMul
    difference: Difference
    first: bool  # the first tensor beyond the limit; False: none is, this is the one that differs most
    causes: tuple[str, ...]  # what the two graphs have otherwise at this node; empty where only rounding differs

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON: an infinite error is null."""
        return {
            "tensor": self.tensor,
            "node": self.node,
            "operator": self.operator,
            "relative_error": json_number(self.difference.relative_error),
            "cosine": json_number(self.difference.cosine),
            "overflow": self.difference.overflow,
            "first": self.first,
            "causes": list(self.causes),
        }


def difference(expected: NDArray[Any], found: NDArray[Any]) -> Difference:
    """Compare two arrays of numbers; other shapes are no comparison at all (infinite error, cosine 0)."""
    if expected.shape != found.shape:
        return Difference(math.inf, 0.0)
    a, b = _real(expected), _real(found)
    known = np.isfinite(a)
    lost = known & ~np.isfinite(b)
    overflow = float(np.abs(a[lost]).max()) if lost.any() else None
    compared = known & ~lost
    if not compared.all():
        a, b = a[compared], b[compared]
    scale = float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0))
    if not min(scale):
        same = not max(scale)
        return Difference(0.0 if same and overflow is None else math.inf, float(same), overflow)
    error = float(np.abs(a - b).max()) / scale[0] if overflow is None else math.inf
    a, b = a.ravel() / scale[0], b.ravel() / scale[1]  # no square of them leaves float32
    return Difference(error, float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)), overflow)


def _real(x: NDArray[Any]) -> NDArray[np.floating[Any]]:
    return x.astype(np.float64 if x.dtype.kind in "iu" else np.float32, copy=False)


def find_divergence(
    trusted: Path, suspect: Path, image: NDArray[np.float32], limit: float, *, group_bytes: int = GROUP_BYTES
) -> Divergence | None:
    """The first tensor of ``suspect`` that differs from the tensor of that name in ``trusted``.

    Args:
        trusted: an ONNX file.
        suspect: the same network, altered, typed or quantized; it may have more tensors, or fewer.
        image: (N, 3, H, W) float32, the input of both.
        limit: of the relative error, and of what the cosine lacks to 1.
        group_bytes: of inner tensors that are kept at a time, for each graph.

    Returns:
        Where none exceeds the limit, the tensor that differs most; None if nothing that both have differs.
    """
    worst: tuple[str, Difference] | None = None
    with tempfile.TemporaryDirectory(prefix="denseport-") as folder:
        graphs = _Graph(trusted, Path(folder) / "trusted"), _Graph(suspect, Path(folder) / "suspect")
        for name, expected, found in _common_tensors(*graphs, image, group_bytes):
            if (expected.dtype.kind in "iu") != (found.dtype.kind in "iu"):
                continue  # integers that stand for real numbers: what they stand for is compared behind them
            now = difference(expected, found)
            if now.exceeds(limit):
                return _divergence(*graphs, name, now, limit, first=True)
            if now.relative_error > (worst[1].relative_error if worst else 0.0):
                worst = name, now
        return _divergence(*graphs, *worst, limit, first=False) if worst else None


class _Graph:
    """An ONNX file whose inner tensors can be read, some at a time.

    Args:
        folder: a new one, for the copies that ONNX Runtime opens.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.model = onnx.load(path)
        onnx.save_model(self.model, folder / path.name, save_as_external_data=True, location=WEIGHTS)
        self.nodes = list(self.model.graph.node)
        self.index = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}  # by tensor
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.opset = next(entry.version for entry in self.model.opset_import if entry.domain == "")

    def sizes(self, image: NDArray[np.float32], names: list[str]) -> list[int]:
        """Numbers in each of the tensors, without keeping any of them."""
        shapes = [f"{name}:shape" for name in names]
        probes = [onnx.helper.make_node("Shape", [name], [shape]) for name, shape in zip(names, shapes, strict=True)]
        return [math.prod(shape.tolist()) for shape in self._run(image, shapes, [*self.nodes, *probes])]

    def tensors(self, image: NDArray[np.float32], names: list[str]) -> list[NDArray[Any]]:
        """The values of the tensors; nodes behind the last of them are not run."""
        return self._run(image, names, self.nodes[: 1 + max(self.index[name] for name in names)])

    def _run(self, image: NDArray[np.float32], names: list[str], nodes: list[onnx.NodeProto]) -> list[NDArray[Any]]:
        probe = onnx.ModelProto()
        probe.CopyFrom(self.model)
        del probe.graph.node[:], probe.graph.output[:]
        probe.graph.node.extend(nodes)
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        file = self.folder / "probe.onnx"
        file.write_bytes(probe.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        found: list[NDArray[Any]] = session.run(names, {INPUT: image})
        return found

    def origin(self, name: str) -> str:
        """The tensor that conversions between number formats made ``name`` of."""
        while name in self.index and self.nodes[self.index[name]].op_type in CONVERSIONS:
            name = self.nodes[self.index[name]].input[0]
        return name

    def weight(self, name: str) -> NDArray[Any] | None:
        """A stored constant; None for a tensor that is computed."""
        tensor = self.initializers.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor, str(self.folder))

    def attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        """Of a node, with the defaults of those that it leaves out."""
        values: dict[str, Any] = {}
        if not node.domain:
            schema = onnx.defs.get_schema(node.op_type, self.opset)
            defaults = {key: entry.default_value for key, entry in schema.attributes.items()}
            values = {key: onnx.helper.get_attribute_value(value) for key, value in defaults.items() if value.type}
        values |= {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        return {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}


def _common_tensors(
    trusted: _Graph, suspect: _Graph, image: NDArray[np.float32], group_bytes: int
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """The tensors that both compute, in the trusted graph's order."""
    names = [name for name in trusted.index if name in suspect.index]
    group: list[str] = []
    room = group_bytes
    for name, size in zip(names, trusted.sizes(image, names), strict=True):
        needed = size * np.dtype(np.float32).itemsize
        if group and needed > room:
            yield from zip(group, trusted.tensors(image, group), suspect.tensors(image, group), strict=True)
            group, room = [], group_bytes
        group.append(name)
        room -= needed
    if group:
        yield from zip(group, trusted.tensors(image, group), suspect.tensors(image, group), strict=True)


def _divergence(
    trusted: _Graph, suspect: _Graph, name: str, how: Difference, limit: float, *, first: bool
) -> Divergence:
    node = trusted.nodes[trusted.index[name]]
    causes = tuple(_causes(trusted, suspect, name, limit))
    return Divergence(name, node.name or name, node.op_type, how, first, causes)


def _causes(trusted: _Graph, suspect: _Graph, name: str, limit: float) -> Iterator[str]:
    """What the node that computes a tensor has otherwise in the suspect graph, in words."""
    origin = suspect.origin(name)
    if origin not in suspect.index:
        yield f"it is a constant, {origin}"
        return
    node, other = trusted.nodes[trusted.index[name]], suspect.nodes[suspect.index[origin]]
    if node.op_type != other.op_type:
        yield f"the operator is {other.op_type}, not {node.op_type}"
        return
    wanted, found = trusted.attributes(node), suspect.attributes(other)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            yield f"{key} is {found.get(key)!r}, not {wanted.get(key)!r}"
    if len(node.input) != len(other.input):
        yield f"it has {len(other.input)} inputs, not {len(node.input)}"
    for trusted_input, suspect_input in zip(node.input, other.input, strict=False):
        yield from _input_causes(trusted, suspect, trusted_input, suspect.origin(suspect_input), limit)


def _input_causes(trusted: _Graph, suspect: _Graph, wanted: str, found: str, limit: float) -> Iterator[str]:
    if found != wanted and (found in trusted.index or found in trusted.initializers):
        yield f"an input is {found}, not {wanted}"
        return
    weight, other = trusted.weight(wanted), suspect.weight(found)
    if weight is None or other is None or (weight.dtype.kind in "iu") != (other.dtype.kind in "iu"):
        return
    how = difference(weight, other)
    if weight.shape != other.shape:
        yield f"{wanted} has the shape {other.shape}, not {weight.shape}"
    elif how.exceeds(limit / 10):  # sums of products may magnify what a weight has wrong
        yield f"{wanted} differs: {how}"

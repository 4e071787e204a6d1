"""The first tensor in which two graphs of one network differ: tensors compared by name, in the order of computation.

`denseport.export.graph.tidy` names tensors after the model's layers, so a graph that was altered, typed or quantized
still has most names of its origin. ONNX Runtime runs both graphs as they are written, without optimizing them, and
gives a bounded part of their inner tensors at a time, until the first that differs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.export.graph.edit import weight_of
from denseport.export.graph.model import read_model
from denseport.export.graph.probe import Probe, in_groups
from denseport.runtime.evaluation.metrics import json_number

__all__ = ["Difference", "Divergence", "difference", "find_divergence"]

GROUP_BYTES = 2**28  # of inner tensors in memory at a time, for each of the two graphs
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
    """The tensor in which two graphs differ."""

    tensor: str
    node: str  # that computes it in the trusted graph, such as backbone.layers.3.attn.attn/MatMul_2
    operator: str  # of that node, such as MatMul
    difference: Difference
    first: bool  # the first tensor beyond the limit; False: none is, this is the one that differs most
    causes: tuple[str, ...]  # what the two graphs have otherwise at this node; empty where only rounding differs

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON: an infinite error is null."""
        found = asdict(self)
        how = found.pop("difference")
        how["relative_error"] = json_number(self.difference.relative_error)
        return {**found, **how, "causes": list(self.causes)}


def difference(expected: NDArray[Any], found: NDArray[Any]) -> Difference:
    """Compare two arrays of numbers; other shapes are no comparison at all (infinite error, cosine 0)."""
    if expected.shape != found.shape:
        return Difference(math.inf, 0.0)
    known = np.isfinite(expected)
    lost = known & ~np.isfinite(found)
    overflow = float(np.abs(expected[lost]).max()) if lost.any() else None
    a, b = (array[known & ~lost].astype(np.float64) for array in (expected, found))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norms:
        same = not (a.any() or b.any())
        return Difference(0.0 if same and overflow is None else math.inf, float(same), overflow)
    error = float(np.abs(a - b).max() / np.abs(a).max()) if overflow is None else math.inf
    return Difference(error, float(a @ b) / norms, overflow)


def find_divergence(trusted: Path, suspect: Path, image: NDArray[np.float32], limit: float) -> Divergence | None:
    """The first tensor of ``suspect`` that differs from the tensor of that name in ``trusted``.

    Args:
        trusted: an ONNX file.
        suspect: the same network, altered, typed or quantized; it may have more tensors, or fewer.
        image: (N, 3, H, W) float32, the input of both.
        limit: of the relative error, and of what the cosine lacks to 1.

    Returns:
        Where none exceeds the limit, the tensor that differs most; None if nothing that both have differs.
    """
    worst: tuple[str, Difference] | None = None
    with tempfile.TemporaryDirectory(prefix="denseport-") as folder:
        graphs = _Graph(trusted, Path(folder), "trusted"), _Graph(suspect, Path(folder), "suspect")
        for name, expected, found in _common_tensors(*graphs, image):
            if (expected.dtype.kind in "iu") != (found.dtype.kind in "iu"):
                continue  # integers that stand for real numbers: what they stand for is compared behind them
            now = difference(expected, found)
            if now.exceeds(limit):
                return _divergence(*graphs, name, now, limit, first=True)
            if now.relative_error > (worst[1].relative_error if worst else 0.0):
                worst = name, now
        return _divergence(*graphs, *worst, limit, first=False) if worst else None


class _Graph:
    """A model and its tensors by name."""

    def __init__(self, path: Path, folder: Path, file: str) -> None:
        self.model = read_model(path)
        # The weights go to a file, so that not every probe holds a copy of them.
        ir.external_data.unload_from_model(self.model, folder, file, size_threshold_bytes=1024)
        self.weights = self.model.graph.initializers
        self.tensors = {str(value.name): value for node in self.model.graph for value in node.outputs if value.name}

    def attributes(self, node: ir.Node) -> dict[str, Any]:
        """Of a node, with the defaults of those that it leaves out."""
        protos = [ir.to_proto(attribute) for attribute in node.attributes.values()]
        if not node.domain:
            schema = onnx.defs.get_schema(node.op_type, self.model.opset_imports[""])
            protos = [each.default_value for each in schema.attributes.values() if each.default_value.type] + protos
        values = {proto.name: onnx.helper.get_attribute_value(proto) for proto in protos}
        return {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}


def _common_tensors(
    trusted: _Graph, suspect: _Graph, image: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """The tensors that both compute, in the trusted graph's order."""
    names = [name for name in trusted.tensors if name in suspect.tensors]
    for group in in_groups(trusted.model, image, names, GROUP_BYTES, as_written=True):
        expected, found = (Probe(each.model, group, as_written=True).run(image) for each in (trusted, suspect))
        yield from zip(group, expected, found, strict=True)


def _divergence(
    trusted: _Graph, suspect: _Graph, name: str, how: Difference, limit: float, *, first: bool
) -> Divergence:
    node = trusted.tensors[name].producer()
    assert node is not None  # `tensors` are outputs of nodes
    causes = tuple(_causes(trusted, suspect, node, suspect.tensors[name], limit))
    return Divergence(name, node.name or name, node.op_type, how, first, causes)


def _origin(value: ir.Value) -> ir.Value:
    """The tensor that conversions between number formats made ``value`` of."""
    while (node := value.producer()) is not None and node.op_type in CONVERSIONS and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _causes(trusted: _Graph, suspect: _Graph, node: ir.Node, found: ir.Value, limit: float) -> Iterator[str]:
    """What computes a tensor otherwise in the suspect graph than ``node`` in the trusted one, in words."""
    origin = _origin(found)
    other = origin.producer()
    if other is None:
        yield f"it is a constant, {origin.name}"
        return
    if node.op_type != other.op_type:
        yield f"the operator is {other.op_type}, not {node.op_type}"
        return
    expected, given = trusted.attributes(node), suspect.attributes(other)
    for key in sorted(expected.keys() | given.keys()):
        if expected.get(key) != given.get(key):
            yield f"{key} is {given.get(key)!r}, not {expected.get(key)!r}"
    if len(node.inputs) != len(other.inputs):
        yield f"it has {len(other.inputs)} inputs, not {len(node.inputs)}"
    for wanted, used in zip(node.inputs, other.inputs, strict=False):
        if used is not None:
            yield from _input_causes(trusted, wanted, _origin(used), limit)


def _input_causes(trusted: _Graph, wanted: ir.Value | None, found: ir.Value, limit: float) -> Iterator[str]:
    name = wanted.name if wanted is not None else "nothing"
    if found.name != name and (found.name in trusted.tensors or found.name in trusted.weights):
        yield f"an input is {found.name}, not {name}"
        return
    weight, other = weight_of(wanted), weight_of(found)
    if weight is None or other is None or (weight.dtype.kind in "iu") != (other.dtype.kind in "iu"):
        return
    how = difference(weight, other)
    if weight.shape != other.shape:
        yield f"{name} has the shape {other.shape}, not {weight.shape}"
    elif how.exceeds(limit / 10):  # sums of products may magnify what a weight has wrong
        yield f"{name} differs: {how}"

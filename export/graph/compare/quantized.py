"""Which INT8 layers a back end computes as the graph's Q/DQ says; a graph in which the others are float.

The logits are compared with those of ONNX Runtime without optimizations, which computes Q/DQ in float arithmetic. Only
a few layers at a time are in INT8, so that what differs is theirs: with all of them, one rounding that falls otherwise
changes many behind it, and two right computations end some tenths of INT8's own error apart. An output of each layer
would be cheaper to compare, but back ends compute another graph where inner tensors are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from denseport.export.graph.edit import new_constant, new_node
from denseport.export.graph.probe import Probe
from denseport.runtime.backends.session import Session
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["TOLERANCE", "LayerCheck", "check_layers", "part_concatenations", "quantized_layers", "release"]

TOLERANCE = 0.001  # relative error of the logits; a right layer of DPT DeiT-S differs by 0.00002 or less
TOGETHER = 8  # layers
LOWEST = np.array(-3e38, np.float32)  # that BF16 has too
WHOLE = 2.0  # times what INT8 changes: two right computations of all layers differ by up to 1.4 times that

Array: TypeAlias = NDArray[np.float32]
Opener: TypeAlias = Callable[[ir.Model], AbstractContextManager[Session]]


@dataclass(frozen=True)
class LayerCheck:
    """A back end's INT8 layers beside the arithmetic of Q/DQ.

    Errors are of the logits: norm of the difference / norm of Q/DQ's.
    """

    layers: int
    images: int
    tolerance: float  # for one layer
    floats: dict[str, float]  # layers that the back end computes otherwise, with the error of each alone
    error: float  # all other layers together
    allowed: float  # for that

    @property
    def passed(self) -> bool:
        """Whether the layers that are left compute what they should."""
        return self.error <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, for the manifest."""
        return asdict(self)


def quantized_layers(model: ir.Model) -> list[str]:
    """Names of the nodes that read quantized activations, in the graph's order."""
    return [str(node.name) for node in model.graph if any(_quantizer(value) for value in node.inputs)]


def release(model: ir.Model, layers: Collection[str]) -> None:
    """Let these layers compute on float activations. Their weights stay the numbers that the integers stand for."""
    for node in model.graph:
        if node.name in layers:
            for index, value in enumerate(node.inputs):
                if (quantizer := _quantizer(value)) is not None:
                    node.replace_input_with(index, quantizer.inputs[0])
    RemoveUnusedNodesPass()(model)


def part_concatenations(model: ir.Model) -> int:
    """Put a Max that changes nothing between each Concat and the QuantizeLinear that reads it; how many.

    OpenVINO 2026.4.1 quantizes the parts instead, each with the scale 1.
    """
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear" and _joins(node.inputs[0])]
    for node in quantizers:
        lowest = new_constant(model.graph, f"{node.name}.lowest", LOWEST)
        most = new_node("Max", [node.inputs[0], lowest], name=f"{node.name}.parted", dtype=ir.DataType.FLOAT)
        model.graph.insert_before(node, most)
        node.replace_input_with(0, most.outputs[0])
    return len(quantizers)


def check_layers(
    model: ir.Model,
    images: Sequence[Array],
    opened: Opener,
    *,
    known: Mapping[str, float] | None = None,
    whole: Opener | None = None,
    progress: StepCallback = no_steps,
) -> LayerCheck:
    """Find the layers that a back end computes otherwise than Q/DQ says, and measure the others together.

    Args:
        model: Q/DQ, as a calibration writes it; stays as it is.
        images: normalised (N, 3, H, W).
        opened: a session of the back end for such a graph, with the rest in FP32.
        known: the `LayerCheck.floats` of an earlier check; None: find them.
        whole: the same as the artifact will run, perhaps with the rest in another type; default: ``opened``.
    """
    layers, whole = quantized_layers(model), whole or opened
    groups = [layers[start : start + TOGETHER] for start in range(0, len(layers), TOGETHER)]
    wrong = dict(known or {})
    for done, group in enumerate(groups if known is None else (), start=1):
        wrong |= _wrong_ones(model, images, opened, group)
        progress(done, len(groups))
    exact, found = _both(_with(model, [each for each in layers if each not in wrong]), images, whole)
    floats, found_floats = _both(_with(model, ()), images, whole)
    # What the rest's own type changes, such as BF16, is no fault of the layers.
    allowed = max(TOLERANCE, WHOLE * _error(exact, floats) + _error(floats, found_floats))
    return LayerCheck(len(layers), len(images), TOLERANCE, wrong, _error(exact, found), allowed)


def _wrong_ones(model: ir.Model, images: Sequence[Array], opened: Opener, group: Sequence[str]) -> dict[str, float]:
    """The layers of a group that are computed otherwise, each found by halves, with its error alone."""
    error = _error(*_both(_with(model, group), images, opened))
    if error <= TOLERANCE:  # which what is no number is not
        return {}
    if len(group) == 1:
        return {group[0]: error}
    middle = len(group) // 2
    return _wrong_ones(model, images, opened, group[:middle]) | _wrong_ones(model, images, opened, group[middle:])


def _with(model: ir.Model, layers: Collection[str]) -> ir.Model:
    """A copy in which only these layers read quantized activations."""
    copy = model.clone()
    release(copy, set(quantized_layers(copy)).difference(layers))
    return copy


def _both(model: ir.Model, images: Sequence[Array], opened: Opener) -> tuple[list[Array], list[Array]]:
    """Logits of a graph as it is written, and of the back end."""
    probe = Probe(model, as_written=True)
    with opened(model) as session:
        return [probe.run(image)[0] for image in images], [session.run(image) for image in images]


def _error(expected: Sequence[Array], found: Sequence[Array]) -> float:
    difference = sum(_squares(one - other) for one, other in zip(found, expected, strict=True))
    return float(np.sqrt(difference / max(sum(map(_squares, expected)), 1e-30)))


def _squares(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _joins(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Concat"


def _quantizer(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear of a tensor that was quantized and dequantized again."""
    back = value.producer() if value is not None else None
    if back is None or back.op_type != "DequantizeLinear" or back.inputs[0] is None:
        return None
    quantizer = back.inputs[0].producer()
    return quantizer if quantizer is not None and quantizer.op_type == "QuantizeLinear" else None

"""What all passes over a graph have in common: in place, and a frozen record that says what changed."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from graphs import tiny_model

from denseport.calibration.observe.observers import ChannelMaximum, RowSample
from denseport.calibration.quantize.cpu import lower_for_cpu
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.smoothing import SmoothingRecord, smooth
from denseport.export.graph import fusion
from denseport.export.graph.ends import adapt_ends
from denseport.export.graph.fold import FoldRecord, fold
from denseport.export.graph.fusion import fuse
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import serialise
from denseport.export.graph.opset import lower_opset
from denseport.export.graph.precision import set_types
from denseport.export.graph.rounding import RoundingRecord, emulate_rounding
from denseport.export.graph.tidy import TidyRecord, tidy
from denseport.export.graph.unpack import unpack_projections

PASSES = (
    adapt_ends,
    append_mask,
    emulate_rounding,
    fold,
    fuse,
    lower_for_cpu,
    lower_opset,
    quantize,
    set_types,
    smooth,
    tidy,
    unpack_projections,
)
SIZE = (6, 10)


@pytest.mark.parametrize("each", PASSES, ids=lambda each: each.__name__)
def test_one_signature(each: Callable[..., Any]) -> None:
    first = next(iter(inspect.signature(each).parameters.values()))
    hints = typing.get_type_hints(each)
    assert first.name == "model" and hints["model"] is ir.Model
    record = hints["return"]
    assert dataclasses.is_dataclass(record) and record.__dataclass_params__.frozen  # type: ignore[attr-defined]


def valid(model: ir.Model) -> None:
    onnx.checker.check_model(serialise(model), full_check=True)


def test_one_after_the_other_on_one_graph() -> None:
    """Every pass leaves valid ONNX behind, and its record is what can be counted in the graph."""
    model = tiny_model()
    nodes = model.graph.num_nodes()
    assert len(unpack_projections(model).projections) == 1 and model.graph.num_nodes() == nodes + 1
    valid(model)
    groups = find_groups(model, SIZE)
    chosen = [group for group in groups if group.is_candidate]
    channels, rows = ChannelMaximum(), RowSample(4)
    for observer in (channels, rows):
        observer.update(np.random.default_rng(0).standard_normal((1, 60, 8)).astype(np.float32))
    (tensor,) = smooth(model, {"normed": channels}, {"normed": rows}).tensors
    assert (tensor.tensor, tensor.by) == ("normed", "LayerNormalization")
    source, limits = model.clone(), dict.fromkeys(activations(model, chosen), 1.0)
    names = [group.name for group in chosen]
    record = quantize(model, limits, groups, names)
    assert [group.name for group in record.narrow] == names
    valid(model)
    lowered = lower_for_cpu(model, source, limits)
    kinds = [node.op_type for node in model.graph]
    assert len(lowered.integer) == kinds.count("QLinearConv") + kinds.count("MatMulIntegerToFloat") > 0
    append_mask(source)
    before = source.graph.num_nodes()
    assert fold(source, (1, 3, *SIZE)) == FoldRecord((1, 3, *SIZE), before - source.graph.num_nodes())
    assert fuse(source).fused == {"ResizeArgmax": 1}
    valid(source)


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_mask_resizes_as_the_manifest_says(align_corners: bool) -> None:
    """Checked by torch; the other rule gives other masks."""
    image = np.random.default_rng(3).standard_normal((1, 3, 24, 40), np.float32)
    logits, mask = tiny_model(), tiny_model()
    append_mask(mask, align_corners=align_corners)
    found, classes = (torch.from_numpy(computed(model, image)) for model in (logits, mask))
    shares = [
        float((F.interpolate(found, (24, 40), mode="bilinear", align_corners=rule).argmax(1) == classes).float().mean())
        for rule in (align_corners, not align_corners)
    ]
    assert shares[0] > 0.999 and shares[1] < 0.99


def computed(model: ir.Model, image: np.ndarray) -> np.ndarray:
    result: np.ndarray = onnxruntime.InferenceSession(serialise(model)).run(None, {"image": image})[0]
    return result


def test_typing_and_the_emulation_of_its_rounding() -> None:
    model = tiny_model()
    record = set_types(model, "fp16")
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == record.casts > 0
    half = ir.DataType.FLOAT16
    constants = [value for value in model.graph.initializers.values() if value.dtype == half]
    tensors = [value for node in model.graph for value in node.outputs if value.dtype == half]
    assert emulate_rounding(model) == RoundingRecord(len(constants), len(tensors))
    assert all(value.dtype != half for value in model.graph.initializers.values())
    assert emulate_rounding(tiny_model()) == RoundingRecord(0, 0), "nothing to round"
    valid(model)


def test_records_of_nothing() -> None:
    model = tiny_model()
    before = serialise(model)
    model.graph.inputs[0].shape = ir.Shape(["n", 3, "h", "w"])
    node = next(node for node in model.graph if node.op_type == "LayerNormalization")
    node.outputs[0].name, model.graph.outputs[0].shape = "renamed", ir.Shape(["n", 4, "rows", "columns"])
    found = tidy(model)
    assert found == TidyRecord(folded=0, named=model.graph.num_nodes()) and serialise(model) != before
    bare = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, H, W] image) => (float[N, 3, H, W] logits)'
        " { logits = Relu (image) }"
    )
    before = serialise(bare)
    assert smooth(bare, {}, {}) == SmoothingRecord(()) and not unpack_projections(bare).projections
    assert serialise(bare) == before


def test_sizes_that_are_not_known_are_not_taken_as_equal() -> None:
    """Types of tensors without a shape are None."""
    known = (1, 3, 4, 5)
    assert not fusion._same_size(None, known) and not fusion._same_size(known, None)
    assert fusion._same_size(known, (1, 3, 8, 10))

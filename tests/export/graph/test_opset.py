"""Graphs in older opsets compute the same, and what has no older form is refused by name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import tiny_model
from onnx.reference import ReferenceEvaluator

from denseport.export.errors import ExportError
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import serialise
from denseport.export.graph.opset import OpsetRecord, lower_opset
from denseport.runtime.bundle.bundle import Bundle

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[2, 4, H, 6] image) => (float[N, C, h, w] logits) <float[6] scale = {1.5, -2.0, 3.0, 0.5, 0.25, 1.0},
  float[6] bias = {0.5, 1.0, -1.0, 0.0, 2.0, 3.0}, int64[1] axes = {-1}, int64[2] twice = {2, 1}>
{
  normed = LayerNormalization <axis = -1, epsilon = 0.01> (image, scale, bias)
  bare = LayerNormalization <axis = -1, epsilon = 0.1, stash_type = 1> (image, scale)
  first, second, third = Split <axis = 3, num_outputs = 3> (normed)
  size = Shape <start = 1, end = 3> (image)
  total = ReduceProd <keepdims = 0, noop_with_empty_axes = 0> (size)
  highest = ReduceMax <keepdims = 1> (bare, axes)
  shape = Concat <axis = 0> (twice, size)
  number = Cast <to = 1> (total)
  sums = Add (first, third)
  more = Mul (sums, number)
  whole = Shape (normed)
  grid = Resize <mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch"> (second, , , whole)
  flat = Add (grid, highest)
  logits = Reshape <allowzero = 1> (flat, whole)
}
"""


def graph(text: str = TEXT) -> ir.Model:
    model = ir.from_onnx_text(text)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@pytest.mark.parametrize("opset", [17, 16, 15, 14, 13])
def test_an_older_opset_computes_the_same(opset: int) -> None:
    image = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    (expected,) = ReferenceEvaluator(serialise(graph())).run(None, {"image": image})
    model = graph()
    record = lower_opset(model, opset)
    assert record.opset == opset and record.changed > 0
    proto = onnx.load_from_string(serialise(model))
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": opset}
    (found,) = ReferenceEvaluator(proto).run(None, {"image": image})
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-6)


def test_the_same_opset_changes_nothing() -> None:
    model = tiny_model()
    before = serialise(model)
    assert lower_opset(model, 20) == OpsetRecord(20, 0) and serialise(model) == before


@pytest.mark.parametrize(
    ("node", "opset", "words"),
    [
        ("Gelu (image)", 19, "Gelu came with opset 20"),
        ('Resize <mode = "linear", antialias = 1> (image, , , sizes)', 17, "Resize has no antialias in opset 17"),
        ("ReduceMax (image, sizes)", 17, "at most 1 inputs in opset 17"),
        ("LayerNormalization <axis = 2> (image, image)", 16, "only LayerNormalization over the last axis"),
    ],
)
def test_what_has_no_older_form_is_refused_by_name(node: str, opset: int, words: str) -> None:
    header = '<ir_version: 8, opset_import: ["" : 20]> g (float[1, 3, H, W] image, int64[4] sizes) => (float[N] y)'
    with pytest.raises(ExportError, match=words) as caught:
        lower_opset(graph(f"{header} {{ y = {node} }}"), opset)
    assert "--opset" in str(caught.value)


def test_a_mask_needs_opset_15() -> None:
    model = graph()
    lower_opset(model, 14)
    with pytest.raises(ExportError, match="a mask needs opset 15 or newer; this graph is of 14"):
        append_mask(model)


OLD = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"image": numpy.load(sys.argv[2])})
numpy.save(sys.argv[3], logits)
"""


@pytest.mark.skipif("DENSEPORT_OLD_ONNXRUNTIME" not in os.environ, reason="names a Python with an old ONNX Runtime")
def test_an_old_onnx_runtime_computes_the_same(oracle: Path, tmp_path: Path) -> None:
    from denseport.export.bundle import export_bundle

    old = os.environ["DENSEPORT_OLD_ONNXRUNTIME"]
    (tmp_path / "old.py").write_text(OLD)
    for name in ("tiny_dpt_project", "tiny_upernet_mln", "tiny_upernet_noneck"):
        bundle: Bundle = export_bundle(oracle / f"{name}.pth", tmp_path / name, opset=13, ir_version=7)
        golden = np.load(oracle / f"{name}.npz")
        np.save(tmp_path / "image.npy", golden["in_64x64"])
        arguments = (tmp_path / "old.py", bundle.path / "model.onnx", tmp_path / "image.npy", tmp_path / "logits.npy")
        subprocess.run([old, *arguments], check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), golden["head_64x64"], atol=1e-4)

"""INT8 and FP8 graphs whose float rest is typed FP16: types, values, and engines by the real TensorRT-RTX builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from engine_text import products
from quantizing import write_quantized, write_typed

from denseport.calibration.quantize.qdq import KINDS
from denseport.export.engine.build import EngineOptions, build_engine
from denseport.export.engine.profile import named_profiles
from denseport.runtime.bundle.bundle import Bundle

IMAGE = np.random.default_rng(7).standard_normal((1, 3, 64, 96)).astype(np.float32)


def logits(path: Path) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Optimized, ONNX Runtime refuses FP8 and does not compute this FP16 graph's values (docs/int8.md).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"image": IMAGE})[0]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_float_rest_takes_fp16_and_the_values_stay(sample: Bundle, tmp_path: Path, kind: str) -> None:
    plain, mixed = tmp_path / "plain.onnx", tmp_path / "mixed.onnx"
    write_quantized(sample.verified("model.onnx"), plain, IMAGE, kind)
    record = write_typed(plain, mixed, "fp16")
    expected = logits(plain)
    assert np.linalg.norm(logits(mixed) - expected) < 0.02 * np.linalg.norm(expected)
    typed = write_typed(sample.verified("model.onnx"), tmp_path / "fp16.onnx", "fp16")
    assert record.nodes["fp16"] > record.nodes["fp32"]
    assert record.casts <= typed.casts  # a Q/DQ pair changes the float type on its way, for nothing
    for node in ir.load(mixed).graph:
        if node.op_type == "DequantizeLinear":
            assert node.inputs[1] is not None and node.inputs[1].dtype == node.outputs[0].dtype
            assert {use.op_type for use in node.outputs[0].consumers()} <= {"Conv", "MatMul", "Gemm"}


def test_a_scale_that_fp16_cannot_hold_keeps_its_layer_in_fp32(sample: Bundle, tmp_path: Path) -> None:
    write_quantized(sample.verified("model.onnx"), tmp_path / "plain.onnx", IMAGE)
    model = ir.load(tmp_path / "plain.onnx")
    layer = next(node for node in model.graph if node.op_type == "Conv" and node.name and "res_conv_unit" in node.name)
    scale = layer.inputs[1].producer().inputs[1]  # type: ignore[union-attr]
    assert scale is not None and scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1e-9), name=scale.name)
    ir.save(model, tmp_path / "plain.onnx")
    record = write_typed(tmp_path / "plain.onnx", tmp_path / "mixed.onnx", "fp16")
    assert [island.node for island in record.islands] == [layer.name]
    node = next(node for node in ir.load(tmp_path / "mixed.onnx").graph if node.name == layer.name)
    for value in node.inputs[:2]:
        assert value is not None and value.dtype == ir.DataType.FLOAT
        assert value.producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_rtx_computes_what_was_asked(sample: Bundle, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    plain, mixed, engine = tmp_path / "plain.onnx", tmp_path / "mixed.onnx", tmp_path / "mixed.engine"
    layers = write_quantized(sample.verified("model.onnx"), plain, IMAGE, kind)
    write_typed(plain, mixed, "fp16")
    targets = ("sm_86", "sm_89", "sm_120") if kind == "int8" else ("sm_89", "sm_120")
    build_engine(
        mixed, engine, EngineOptions("tensorrt_rtx", named_profiles("fixed:96x64", "tensorrt_rtx"), targets=targets)
    )
    if kind == "int8":
        asked = {(op, "int8", "int8") for op in ("fully_connected", "corrltn")}
        found = products(engine)
        # Query, key and value become one.
        blocks = sum(node.op_type == "Softmax" for node in ir.load(mixed).graph)
        assert sum(found[each] for each in asked) == layers - 2 * blocks

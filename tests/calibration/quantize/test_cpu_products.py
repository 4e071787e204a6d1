"""Products in integers and the bias behind them, on numbers that nothing rounds: the results are exact."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.parser import parse_model

from denseport.calibration.quantize.cpu import CpuRecord, lower_for_cpu
from denseport.export.graph.model import serialise

# The largest of each column is 127 and no two neighbours along the sum exceed 128: their scale is 1.
WEIGHT = np.float32([[127, -3, 0], [1, 127, 5], [0, -1, 127], [-5, 100, -20]])
BIAS = np.float32([10, -20, 30])
IMAGE = np.float32([[1, -2, 3, 100], [-127, 5, 0, 64]])
QUANTIZED = """
  q = QuantizeLinear ({source}, one, zero)
  given = DequantizeLinear (q, one, zero)
  factor = DequantizeLinear <axis = {axis}> (integers, ones, zeros)
"""


def lowered(
    body: str, *, transposed: bool = False, source: str = "image", more: str = ""
) -> tuple[list[NDArray[np.float32]], Counter[str], CpuRecord]:
    """Run a graph of ``given`` and ``factor`` after lowering: its outputs, its operators, what became integers."""
    weight = WEIGHT.T if transposed else WEIGHT
    text = QUANTIZED.format(source=source, axis=0 if transposed else 1)
    head = '< ir_version: 10, opset_import: ["" : 20] >\ntiny (float[2, 4] image) => (float[2, 3] logits' + more
    proto: onnx.ModelProto = parse_model(f"{head}) {{ {body.partition('|')[0]} {text} {body.partition('|')[2]} }}")
    arrays = {"one": np.float32(1), "zero": np.int8(0), "integers": weight.astype(np.int8)}
    arrays |= {"ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.int8), "bias": BIAS}
    arrays |= {"field": np.outer([1, 2], BIAS).astype(np.float32), "two": np.float32([2])}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in arrays.items())
    for node in proto.graph.node:
        node.name = "weight/DequantizeLinear" if node.output[0] == "factor" else node.output[0]
    model, original = ir.from_proto(proto), ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    original.graph.initializers.add(ir.val("weight", const_value=ir.tensor(weight, name="weight")))
    record = lower_for_cpu(model, original, {})
    assert model.opset_imports["com.microsoft"] == 1
    session = onnxruntime.InferenceSession(serialise(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": IMAGE}), Counter(node.op_type for node in model.graph), record


@pytest.mark.parametrize(
    ("body", "expected", "added"),
    [
        ("| product = MatMul (given, factor) logits = Add (product, bias)", IMAGE @ WEIGHT + BIAS, 0),
        ("| product = MatMul (given, factor) logits = Add (bias, product)", IMAGE @ WEIGHT + BIAS, 0),
        ("| logits = MatMul (given, factor)", IMAGE @ WEIGHT, 0),
        ("| logits = Gemm (given, factor, bias)", IMAGE @ WEIGHT + BIAS, 0),
        ("| logits = Gemm (given, factor)", IMAGE @ WEIGHT, 0),
        ("| product = Gemm (given, factor, bias) logits = Add (product, bias)", IMAGE @ WEIGHT + 2 * BIAS, 1),
        # No bias: not one number for each column, not added, or no constant.
        ("| product = MatMul (given, factor) logits = Add (product, field)", IMAGE @ WEIGHT + [BIAS, 2 * BIAS], 1),
        ("| product = MatMul (given, factor) logits = Add (product, two)", IMAGE @ WEIGHT + 2, 1),
        ("| product = MatMul (given, factor) logits = Mul (product, bias)", IMAGE @ WEIGHT * BIAS, 0),
        ("| product = MatMul (given, factor) logits = Add (product, product)", 2 * IMAGE @ WEIGHT, 1),
    ],
)
def test_a_bias_goes_into_the_product(body: str, expected: NDArray[np.float32], added: int) -> None:
    found, kinds, record = lowered(body)
    np.testing.assert_array_equal(found[0], expected)
    assert (kinds["MatMulIntegerToFloat"], kinds["Add"], kinds["MatMul"] + kinds["Gemm"]) == (1, added, 0)
    assert len(record.integer) == 1 and record.floats == ()


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (
            "| product = MatMul (given, factor) logits = Add (product, bias) other = Neg (product)",
            ", float[2, 3] other",
        ),
        ("| other = MatMul (given, factor) logits = Add (other, bias)", ", float[2, 3] other"),
        ("| other = Gemm (given, factor) logits = Add (other, bias)", ", float[2, 3] other"),
    ],
)
def test_a_product_that_others_read_too_keeps_its_bias_apart(body: str, more: str) -> None:
    (logits, other), kinds, _ = lowered(body, more=more)
    np.testing.assert_array_equal(logits, IMAGE @ WEIGHT + BIAS)
    np.testing.assert_array_equal(other, IMAGE @ WEIGHT * (-1 if "Neg" in body else 1))
    assert kinds["MatMulIntegerToFloat"] == kinds["Add"] == 1


def test_a_gemm_may_have_its_weight_transposed() -> None:
    found, kinds, _ = lowered("| logits = Gemm <transB = 1> (given, factor, bias)", transposed=True)
    np.testing.assert_array_equal(found[0], IMAGE @ WEIGHT + BIAS)
    assert kinds["MatMulIntegerToFloat"] == 1


@pytest.mark.parametrize("scaled", ["alpha = 2.0", "beta = 2.0"])
def test_a_gemm_that_scales_stays_float_and_is_named(scaled: str) -> None:
    found, kinds, record = lowered(f"| logits = Gemm <{scaled}> (given, factor, bias)")
    product = IMAGE @ WEIGHT
    np.testing.assert_array_equal(found[0], 2 * product + BIAS if "alpha" in scaled else product + 2 * BIAS)
    assert kinds["Gemm"] == 1 and kinds["MatMulIntegerToFloat"] == 0 and record.integer == ()
    assert [reason for _, reason in record.floats] == ["a Gemm that scales or transposes its input"]


def test_a_gemm_that_says_what_is_usual_becomes_integers() -> None:
    found, kinds, _ = lowered("| logits = Gemm <alpha = 1.0, beta = 1.0, transA = 0> (given, factor, bias)")
    np.testing.assert_array_equal(found[0], IMAGE @ WEIGHT + BIAS)
    assert kinds["MatMulIntegerToFloat"] == 1


def test_what_cannot_be_negative_has_all_256_levels() -> None:
    found, _, _ = lowered("cut = Relu (image) | logits = MatMul (given, factor)", source="cut")
    np.testing.assert_array_equal(found[0], IMAGE.clip(0) @ WEIGHT)


def test_a_product_of_two_that_are_computed_takes_what_is_quantized() -> None:
    """The second factor is no constant: its integers are taken as they are."""
    body = "turned = Transpose (image) | p = QuantizeLinear (turned, one, zero) r = DequantizeLinear (p, one, zero) "
    found, kinds, _ = lowered(
        body + "logits = MatMul (given, factor) other = MatMul (given, r)", more=", float[2, 2] other"
    )
    np.testing.assert_array_equal(found[1], IMAGE @ IMAGE.T)
    assert kinds["MatMulIntegerToFloat"] == 2

"""Which type a node gets, and why: graphs of a few nodes, for each rule one that it is about and one that it is not."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from denseport.export.graph.precision import PrecisionRecord, precision_table, set_types
from denseport.export.graph.probe import Ranges

ONE = "{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}"
HEAD = f"""<ir_version: 10, opset_import: ["" : 20]>
few (float[4, 4] image) => (float[4, 4] logits)
<float[4] scale = {{1, 1, 1, 1}}, float[4] bias = {{1, 2, 3, 4}}, float[4, 4] w = {ONE}>
"""


def types(body: str, precision: str = "fp16", **largest: float) -> tuple[dict[str, bool], PrecisionRecord]:
    """Of each named node whether it computes in FP32, and the record."""
    model = ir.from_onnx_text(HEAD + "{" + body + "}")
    record = set_types(model, precision, Ranges(largest, images=1) if largest else None)
    nodes = [node for node in model.graph if node.op_type != "Cast"]
    return {str(node.name): node.outputs[0].dtype == ir.DataType.FLOAT for node in nodes}, record


NORM = "n = LayerNormalization (s, scale)"


@pytest.mark.parametrize(
    ("body", "wide"),
    [
        (f"[sum] s = Add (image, image) [norm] {NORM} [end] logits = MatMul (n, w)", True),
        (
            "[sum] a = Add (image, image) [move] s = Transpose (a) [norm] " + NORM + " [end] logits = MatMul (n, w)",
            True,
        ),
        (
            "[sum] a = Add (image, image) [end] s = Mul (a, scale) [norm] " + NORM + " [last] logits = MatMul (n, w)",
            False,
        ),
        ("[sum] a = Add (image, image) [end] logits = MatMul (a, w)", False),
    ],
)
def test_a_sum_before_a_norm_is_of_the_residual_stream(body: str, wide: bool) -> None:
    found, _ = types(body)
    assert found["sum"] is wide and found["end"] is False


@pytest.mark.parametrize(
    ("body", "wide"),
    [
        ("[later] a = Add (s, n)", True),
        ("[move] t = Transpose (s) [later] a = Add (t, n)", True),
        ("[move] t = Transpose (s) [again] u = Identity (t) [later] a = Add (n, u)", True),
        ("[other] t = Mul (s, n) [later] a = Add (t, n)", False),  # no move
        ("[move] t = Transpose (n) [later] a = Add (t, n)", False),  # of something else
        ("[later] a = Add (s, bias)", False),
        ("[first] b = Add (s, n) [later] a = Add (b, n)", True),  # a sum of the stream is the stream
        ("[first] b = Add (s, bias) [later] a = Add (b, n)", False),
    ],
)
def test_sums_on_the_stream_are_of_it(body: str, wide: bool) -> None:
    found, _ = types(f"[sum] s = Add (image, image) [norm] {NORM} {body} [end] logits = MatMul (a, w)")
    assert found["later"] is wide


def test_what_overflows_is_an_island_where_it_would_have_been_narrow() -> None:
    """A move beside it stays FP32 too, but no rule had it otherwise."""
    body = "[product] a = MatMul (image, w) [turn] b = Transpose (a) [end] logits = MatMul (b, w)"
    found, record = types(body, a=1e6, b=1e6, image=1.0, logits=1.0)
    assert found == {"product": True, "turn": True, "end": True}
    assert [island.node for island in record.islands] == ["product", "end"]
    assert record.islands[0].why == "a reaches 1e+06 on calibration images; fp16 ends at 6.55e+04"
    found, record = types(body, a=1.0, b=1.0, image=1.0, logits=1.0)
    assert found == {"product": False, "turn": False, "end": False} and not record.islands


def test_an_operator_without_a_narrow_form_is_no_island() -> None:
    """Conv takes BF16 from opset 22 on."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    few (float[1, 1, 4, 4] image) => (float[1, 1, 4, 4] logits) <float[1, 1, 1, 1] kernel = {1}>
    { [conv] a = Conv (image, kernel) [end] logits = Conv (a, kernel) }"""
    record = set_types(ir.from_onnx_text(text), "bf16")
    assert (record.nodes, record.casts, record.islands) == ({"fp32": 2}, 0, ())
    assert {group.why for group in record.groups} == {"Conv has no bf16 form in this opset"}
    assert set_types(ir.from_onnx_text(text), "fp16").nodes == {"fp16": 2}


def test_a_resize_of_a_constant_is_a_position_embedding() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    few (float[1, 1, 2, 2] image) => (float[1, 1, 4, 4] logits)
    <float[1, 1, 2, 2] grid = {1, 2, 3, 4}, float[4] scales = {1, 1, 2, 2}>
    { [grown] a = Resize (GIVEN, , scales) [other] b = Resize (image, , scales) [end] logits = Mul (a, b) }"""
    for given, wide in (("grid", True), ("image", False)):
        model = ir.from_onnx_text(text.replace("GIVEN", given))
        record = set_types(model, "fp16")
        nodes = {node.name: node for node in model.graph if node.op_type != "Cast"}
        assert (nodes["grown"].outputs[0].dtype == ir.DataType.FLOAT) is wide
        assert nodes["other"].outputs[0].dtype == ir.DataType.FLOAT16
        assert "activations were not observed" in precision_table(record)
        assert model.graph.initializers["scales"].dtype == ir.DataType.FLOAT, "no FP16 form of a scale"


def test_what_follows_from_the_size_of_the_input_alone_stays_fp32() -> None:
    """Places of a grid: FP16 has no number between 2048 and 2050."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    few (float[1, 1, H, 4] image) => (float[1, 1, H, 4] logits)
    <int64 zero = {0}, int64 one = {1}, int64[1] last = {1}, float half = {0.5}, float[4] w = {1, 1, 1, 1}>
    { [shape] s = Shape <start = 2, end = 3> (image) [rows] n = Squeeze (s) [range] r = Range (zero, n, one)
      [floats] f = Cast <to = 1> (r) [place] p = Add (f, half) [scaled] q = Mul (p, p) [column] c = Unsqueeze (q, last)
      [mixed] m = Mul (image, w) [end] logits = Add (m, c) }"""
    model = ir.from_onnx_text(text)
    record = set_types(model, "fp16")
    wide = {str(node.name): node.outputs[0].dtype == ir.DataType.FLOAT for node in model.graph}
    assert wide["place"] and wide["scaled"] and not wide["mixed"] and not wide["end"]
    assert "(of sizes)" in precision_table(record)


def test_the_end_of_a_depth_network_stays_fp32() -> None:
    """And nothing before its last layer, nor the same nodes behind logits."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    few (float[1, 1, 4, 4] image) => (float[1, 1, 4, 4] OUTPUT)
    <float[1, 1, 1, 1] w = {1}, float scale = {0.5}, float shift = {0.25}, float one = {1}>
    { [before] a = Mul (image, scale) [last] b = Conv (a, w) [relu] r = Relu (b) [times] c = Mul (r, scale)
      [plus] d = Add (c, shift) [inverse] OUTPUT = Reciprocal (d) }"""
    for output in ("depth", "logits"):
        model = ir.from_onnx_text(text.replace("OUTPUT", output))
        set_types(model, "fp16")
        wide = {str(node.name): node.outputs[0].dtype == ir.DataType.FLOAT for node in model.graph}
        assert wide["times"] is wide["plus"] is (output == "depth") and not wide["before"] and not wide["last"]


def test_a_table_says_what_was_observed_and_what_is_an_island() -> None:
    _, record = types("[product] a = MatMul (image, w) [end] logits = MatMul (a, w)", a=1e6, image=1.0, logits=1.0)
    lines = precision_table(record).splitlines()
    assert lines[0].split() == ["layers", "operator", "type", "nodes", "why"]
    assert lines[-3:] == [
        "floating-point nodes: 2 fp32; casts between them: 0",
        "island: product: a reaches 1e+06 on calibration images; fp16 ends at 6.55e+04",
        "island: end: a reaches 1e+06 on calibration images; fp16 ends at 6.55e+04",
    ]

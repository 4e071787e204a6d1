"""FP16 graphs with FP32 islands, against FP32, against a plain cast, and against the onnx reference evaluator."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from bundles import onnx_artifact
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from quantizing import write_typed
from support import ORACLE_MODELS

from denseport.export.bundle import export_bundle
from denseport.export.errors import ExportError
from denseport.export.graph.precision import FORMATS, PrecisionRecord, precision_table, set_types
from denseport.export.graph.probe import Ranges, observe
from denseport.export.graph.rounding import emulate_rounding
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.pipeline.preprocess import fit_image, normalise
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.files import sha256_of

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
Image = NDArray[np.float32]


def random_images(*sizes: tuple[int, int], batch: int = 1) -> list[Image]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((batch, 3, *size)).astype(np.float32) for size in sizes]


def prepared(paths: list[Path], manifest: Manifest) -> Iterator[Image]:
    for path in paths:
        image = cv2.imread(str(path))
        assert image is not None
        yield normalise(fit_image(image, manifest.preprocess), manifest.preprocess)


def emulated(path: Path) -> OnnxRuntimeSession:
    """The graph as an FP16 engine rounds; as it is, ONNX Runtime's CPU would leave most roundings out."""
    target = path.with_name(f"emulated-{path.name}")
    model = ir.load(path)
    emulate_rounding(model)
    ir.save(model, target)
    onnx.checker.check_model(target, full_check=True)
    return OnnxRuntimeSession(target, threads=2)


def agreement(found: Image, expected: Image) -> float:
    return float((found.argmax(1) == expected.argmax(1)).mean())


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_the_sample_agrees_with_fp32_on_street_images(shared: Path, sample: Bundle, tmp_path: Path) -> None:
    street, model = shared / "data" / "street" / "images", sample.verified("model.onnx")
    calibration = prepared(sorted(street.glob("training/*"))[::40], sample.manifest)
    record = write_typed(model, tmp_path / "fp16.onnx", "fp16", calibration)
    assert record.observed_images == 4
    assert not record.islands
    full, half = OnnxRuntimeSession(model, threads=2), emulated(tmp_path / "fp16.onnx")
    shares = []
    for image in prepared(sorted(street.glob("validation/*"))[::10], sample.manifest):
        size = image.shape[2:]
        shares.append((argmax_of(full.run(image), size) == argmax_of(half.run(image), size)).mean())
    assert len(shares) == 10
    assert np.mean(shares) >= 0.998
    # What users get on a CPU is nearer still.
    session = OnnxRuntimeSession(tmp_path / "fp16.onnx", threads=2)
    assert agreement(session.run(image), full.run(image)) >= 0.998


def argmax_of(logits: Image, size: tuple[int, ...]) -> NDArray[Any]:
    return F.interpolate(torch.from_numpy(logits), size=size, mode="bilinear").argmax(1).numpy()


@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_oracle_models_agree(exported: Callable[[str], Bundle], tmp_path: Path, name: str) -> None:
    model = exported(name).verified("model.onnx")
    images = random_images((64, 64), (96, 160), (70, 90))
    record = write_typed(model, tmp_path / "fp16.onnx", "fp16", images)
    assert not record.islands
    assert record.nodes["fp16"] > 2 * record.nodes["fp32"]
    full = OnnxRuntimeSession(model, threads=2)
    # ONNX Runtime refuses a node whose inputs have different types, so loading is the test of strong typing.
    for session in (OnnxRuntimeSession(tmp_path / "fp16.onnx", threads=2), emulated(tmp_path / "fp16.onnx")):
        for image in random_images((64, 64), (70, 90), (32, 128), batch=2):
            found, expected = session.run(image), full.run(image)
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() < 0.02 * max(1, np.abs(expected).max())
            assert agreement(found, expected) > 0.98


def test_the_emulation_is_what_fp16_arithmetic_gives(exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    """numpy computes the typed graph in real FP16: same error against FP32, which ONNX Runtime alone does not show."""
    model, typed = exported("tiny_dpt_project").verified("model.onnx"), tmp_path / "fp16.onnx"
    write_typed(model, typed, "fp16")
    (image,) = random_images((64, 80))
    expected = OnnxRuntimeSession(model).run(image)
    reference = ReferenceEvaluator(str(typed)).run(None, {"image": image})[0]
    error = {
        "numpy": np.abs(reference - expected).mean(),
        "emulated": np.abs(emulated(typed).run(image) - expected).mean(),
        "as it is": np.abs(OnnxRuntimeSession(typed).run(image) - expected).mean(),
    }
    assert 0.5 < error["emulated"] / error["numpy"] < 2
    assert error["as it is"] < 0.7 * error["emulated"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["dpt_tiny_street", "dpt_deit-s16_street"])
def test_accuracy_on_the_street_images(shared: Path, tmp_path: Path, checkpoint: str) -> None:
    """100 images: at most 0.1 point of mIoU below FP32, with FP16's rounding emulated; with -s the figures."""
    street = shared / "data" / "street"
    bundle = export_bundle(shared / "data" / "checkpoints" / f"{checkpoint}.pth", tmp_path / "bundle")
    calibration = prepared(sorted(street.glob("images/training/*"))[::20], bundle.manifest)
    name = "emulated-fp16.onnx"
    write_typed(bundle.verified("model.onnx"), bundle.path / "fp16.onnx", "fp16", calibration)
    emulated(bundle.path / "fp16.onnx")
    bundle.add(name, onnx_artifact({name: sha256_of(bundle.path / name)}, "fp16"))
    dataset = open_dataset(street, list_file=street / "val100.txt")
    half, full = (Segmenter(bundle, artifact=artifact, threads=2) for artifact in (name, "model.onnx"))
    with half, full:
        found = measure_dataset(dataset, half, fp32=full)
    assert found.fp32_confusion is not None and found.agreement is not None
    fp16, fp32 = (each.scores(bundle.manifest.classes).mIoU for each in (found.confusion, found.fp32_confusion))
    print(f"{checkpoint}: mIoU {fp16:.3f} (FP32 {fp32:.3f}), {found.agreement:.3%} of the pixels agree")
    assert fp16 > fp32 - 0.1


# --- overflow ---------------------------------------------------------------------------------------------------------


def scaled_up(path: Path, target: Path, factor: float) -> None:
    """The same function with inner activations ``factor`` times as large, in two places where the scale cancels."""
    model = ir.load(path)
    constants = model.graph.initializers

    def multiply(name: str, by: float, columns: slice = slice(None)) -> None:
        array = constants[name].const_value.numpy().copy()
        array[..., columns] *= by
        constants[name].const_value = ir.tensor(array, name=name)

    unit = "decode_head.fusion_blocks.3.res_conv_unit2"  # convolution, ReLU, convolution
    multiply(f"{unit}.conv1.conv.weight", factor)
    multiply(f"{unit}.conv1.conv.weight_bias", factor)
    multiply(f"{unit}.conv2.conv.weight", 1 / factor)
    attention = "backbone.layers.1.attn.attn"  # values, attention, output projection
    dims = constants[f"{attention}.in_proj_bias"].shape[0] // 3
    multiply(f"{attention}/MatMul.constant1", factor, slice(2 * dims, None))
    multiply(f"{attention}.in_proj_bias", factor, slice(2 * dims, None))
    multiply(f"{attention}.out_proj/MatMul.constant1", 1 / factor)
    ir.save(model, target)


def plainly_cast(path: Path, target: Path) -> None:
    """Everything FP16, as `model.half()` or a converter without a policy makes it."""
    model = ir.load(path)
    graph = model.graph
    scales = {node.inputs[2] for node in graph if node.op_type == "Resize" and node.inputs[2] is not None}
    for constant in graph.initializers.values():
        if constant.dtype == FLOAT and constant not in scales:
            with np.errstate(over="ignore"):
                constant.const_value = ir.tensor(constant.const_value.numpy().astype(np.float16), name=constant.name)
            constant.dtype = FLOAT16
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.dtype = FLOAT16
    image, logits = graph.inputs[0], graph.outputs[0]
    first = ir.node("Cast", [image], {"to": FLOAT16}, name="first")
    first.outputs[0].name, first.outputs[0].dtype = "image.fp16", FLOAT16
    image.replace_all_uses_with(first.outputs[0])
    first.replace_input_with(0, image)
    graph.insert_before(graph[0], first)
    logits.name = "logits.fp16"
    last = ir.node("Cast", [logits], {"to": FLOAT}, name="last")
    last.outputs[0].name, last.outputs[0].dtype, last.outputs[0].shape = "logits", FLOAT, logits.shape
    graph.append(last)
    graph.outputs[0] = last.outputs[0]
    ir.save(model, target)


def test_islands_hold_what_overflows_where_a_plain_cast_collapses(
    exported: Callable[[str], Bundle], tmp_path: Path
) -> None:
    original, model = exported("tiny_dpt_project").verified("model.onnx"), tmp_path / "model.onnx"
    scaled_up(original, model, 3e4)
    images = random_images((64, 64), (96, 160))
    full = OnnxRuntimeSession(model, threads=2)
    for image in images:
        np.testing.assert_allclose(full.run(image), OnnxRuntimeSession(original).run(image), atol=1e-3)

    record = write_typed(model, tmp_path / "fp16.onnx", "fp16", images)
    islands = {island.node: island.why for island in record.islands}
    unit, attention = "decode_head.fusion_blocks.3.res_conv_unit2", "backbone.layers.1.attn.attn"
    assert "reaches" in islands[f"{unit}.conv1.bn/Conv"]
    assert f"{unit}.conv2.bn/Conv" in islands
    assert f"{attention}/MatMul" in islands
    assert f"{attention}.out_proj/MatMul" in islands
    assert all(name.startswith((unit, attention)) for name in islands), "islands where nothing overflows"
    assert precision_table(record).count("island: ") == len(islands)

    plainly_cast(model, tmp_path / "plain.onnx")
    half, plain = emulated(tmp_path / "fp16.onnx"), emulated(tmp_path / "plain.onnx")
    for image in images:
        expected = full.run(image)
        assert agreement(half.run(image), expected) > 0.98
        found = plain.run(image)
        assert not np.isfinite(found).all() or agreement(found, expected) < 0.5


def test_without_images_weights_are_checked_and_the_record_says_so(
    exported: Callable[[str], Bundle], tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    scaled_up(exported("tiny_dpt_project").verified("model.onnx"), model, 1e7)
    record = write_typed(model, tmp_path / "fp16.onnx", "fp16")
    assert record.observed_images == 0
    assert "activations were not observed" in precision_table(record)
    reasons = {island.node: island.why for island in record.islands}
    unit = "decode_head.fusion_blocks.3.res_conv_unit2"
    assert "changes the weight" in reasons[f"{unit}.conv1.bn/Conv"]  # too large
    assert "changes the weight" in reasons[f"{unit}.conv2.bn/Conv"]  # too small


def test_ranges_are_the_largest_magnitudes(sample: Bundle) -> None:
    path = sample.verified("model.onnx")
    images = random_images((64, 64), (48, 80))
    ranges = observe(path, iter(images), threads=2)
    session = OnnxRuntimeSession(path)
    assert ranges.images == 2
    assert ranges.largest["image"] == max(np.abs(image).max() for image in images)
    assert ranges.largest["logits"] == pytest.approx(max(np.abs(session.run(image)).max() for image in images), 1e-5)


def test_a_tensor_that_is_no_number_once_stays_none(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    roots (float[N, 3, H, W] image) => (float[N, 3, H, W] logits) { [root] a = Sqrt(image) [sum] logits = Add(a, a) }"""
    model = ir.from_onnx_text(text)
    model.graph[0].outputs[0].dtype = FLOAT
    ir.save(model, tmp_path / "roots.onnx")
    images = [np.full((1, 3, 2, 2), value, np.float32) for value in (4, -1, 9)]
    ranges = observe(tmp_path / "roots.onnx", images, threads=1)
    assert ranges.largest["image"] == 9 and np.isnan(ranges.largest["a"]) and np.isnan(ranges.largest["logits"])
    record = set_types(ir.load(tmp_path / "roots.onnx"), "fp16", ranges)
    assert [island.node for island in record.islands] == ["sum"]


def test_a_value_near_the_end_of_the_range_is_an_island_with_its_consumers() -> None:
    model = ir.from_onnx_text(CHAIN)
    ranges = Ranges({"image": 1.0, "a": 40000.0, "b": 1.0, "c": 1.0, "d": 1.0, "logits": 1.0}, images=1)
    record = set_types(model, "fp16", ranges)
    assert [island.node for island in record.islands] == ["first", "second"]
    record = set_types(ir.from_onnx_text(CHAIN), "bf16", ranges)
    assert not record.islands


def test_activations_too_small_for_all_digits_are_an_island_unless_they_are_added() -> None:
    """FP16 loses digits below 6e-5; beside the bias, which the Add reads too, what is lost does not count."""
    for tensor, islands in (("a", ["first", "second"]), ("d", ["fourth"])):
        ranges = Ranges(
            {"image": 1.0, "a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "logits": 1.0} | {tensor: 3e-5}, images=1
        )
        record = set_types(ir.from_onnx_text(CHAIN), "fp16", ranges)
        assert [island.node for island in record.islands] == islands


@pytest.mark.parametrize(
    ("factor", "bias", "islands"),
    [
        (1.0, 1.0, []),
        (3.13e-6, 1.0, ["first", "second"]),  # FP16's step there is 6e-8: 1 % of the weight is lost
        (1.0, 1e-9, []),  # an addend that vanishes is lost in the sum anyway
        (1.0, 1e6, ["first", "second"]),  # one that overflows is not
    ],
)
def test_weights_are_judged_by_what_fp16_makes_of_them(factor: float, bias: float, islands: list[str]) -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    layers (float[N, 4, H, W] image) => (float[N, 4, H, W] logits)
    {
      [first] a = Conv(image, w, bias)
      [second] logits = ConvTranspose(a, w, bias)
    }""")
    constants = {"w": np.full((4, 4, 1, 1), factor, np.float32), "bias": np.full(4, bias, np.float32)}
    for name, array in constants.items():
        value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.dtype, value.shape = FLOAT, ir.Shape(array.shape)
        model.graph.register_initializer(value)
    record = set_types(model, "fp16")
    assert [island.node for island in record.islands] == islands


def test_formats_are_those_of_ieee_and_google() -> None:
    """(2 - 2^-digits) * 2^highest, 2^lowest, half of the last digit; numpy knows FP16 itself."""
    for name, digits, highest, lowest in (("fp16", 10, 15, -14), ("bf16", 7, 127, -126)):
        kind = FORMATS[name]
        assert (kind.largest, kind.smallest) == ((2 - 2.0**-digits) * 2.0**highest, 2.0**lowest)
        assert kind.rounding == 2.0 ** -(digits + 1)
    info = np.finfo(np.float16)
    assert (FORMATS["fp16"].largest, FORMATS["fp16"].smallest) == (float(info.max), float(info.tiny))


@pytest.mark.parametrize(
    ("largest", "islands"),
    [
        (65504 / 2, []),  # other images may reach twice as far
        (65504 / 2 + 1, ["first", "second"]),
        (2.0**-14, []),  # the smallest number with all its digits
        (2.0**-14 * 0.999, ["first", "second"]),
        (0.0, []),  # nothing is lost of what is 0 everywhere
        (np.inf, ["first", "second"]),
    ],
)
def test_a_range_is_judged_at_the_ends_of_fp16(largest: float, islands: list[str]) -> None:
    ranges = Ranges(dict.fromkeys(("image", "b", "c", "d", "logits"), 1.0) | {"a": largest}, images=1)
    record = set_types(ir.from_onnx_text(CHAIN), "fp16", ranges)
    assert [island.node for island in record.islands] == islands


def test_a_weight_of_zeros_fits_and_what_reads_only_a_shape_is_no_floating_point_node() -> None:
    """Shape and Size read FP32 tensors and compute nothing in FP32; Gather and Div work on integers."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    shapes (float[N, 4] image) => (float[K] logits, int64 size)
    <float[4, 4] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int64[1] two = {2}, int64[1] one = {-1}>
    {
      [product] a = MatMul(image, w)
      [shape] s = Shape(a)
      [half] h = Div(s, two)
      [size] size = Size(a)
      [flat] logits = Reshape(a, one)
    }""")
    for node, kind in zip(model.graph, (FLOAT, *[ir.DataType.INT64] * 3, FLOAT), strict=True):
        node.outputs[0].dtype = kind
    record = set_types(model, "fp16")
    assert record.nodes == {"fp16": 2} and not record.islands


# --- casts ------------------------------------------------------------------------------------------------------------

CHAIN = """<ir_version: 10, opset_import: ["" : 20]>
chain (float[N, 4] image) => (float[N, 4] logits)
<float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, float[4] bias = {1, 2, 3, 4}>
{
  [first] a = MatMul(image, w)
  [second] b = MatMul(a, w)
  [third] c = Softmax(b)
  [fourth] d = MatMul(c, w)
  [fifth] logits = Add(d, bias)
}"""

SHARED_READERS = """<ir_version: 10, opset_import: ["" : 20]>
readers (float[N, 4] image) => (float[N, 4] logits)
<float[4] scale = {1, 1, 1, 1}, float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
{
  [norm] n = LayerNormalization(image, scale)
  [flip] f = Transpose(n)
  [back] g = Transpose(f)
  [left] l = MatMul(g, w)
  [right] r = MatMul(n, w)
  [mul] m = Mul(l, scale)
  [sum] s = Add(m, r)
  [soft] logits = Softmax(s)
}"""


def typed(text: str) -> tuple[ir.Model, PrecisionRecord]:
    model = ir.from_onnx_text(text)
    record = set_types(model, "fp16")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, record


def test_sums_in_the_residual_stream_are_fp32_but_not_a_bias_on_it() -> None:
    model, _ = typed("""<ir_version: 10, opset_import: ["" : 20]>
    stream (float[N, 4] image) => (float[N, 4] logits)
    <float[4] scale = {1, 1, 1, 1}, float[4] bias = {1, 2, 3, 4}>
    {
      [sum] s = Add(image, image)
      [norm] n = LayerNormalization(s, scale)
      [later] l = Add(s, n)
      [shift] t = Add(s, bias)
      [product] logits = Mul(l, t)
    }""")
    types = {node.name: node.outputs[0].dtype for node in model.graph if node.op_type == "Add"}
    assert types == {"sum": FLOAT, "later": FLOAT, "shift": FLOAT16}


def test_casts_of_a_chain() -> None:
    """image down, b up, c down, logits up: four, and none can be left out."""
    model, record = typed(CHAIN)
    assert record.casts == 4
    assert Counter(node.op_type for node in model.graph)["Cast"] == 4
    assert model.graph.outputs[0].dtype == FLOAT
    assert model.graph.initializers["w"].dtype == FLOAT16


def test_a_move_between_input_and_output_keeps_their_type() -> None:
    """Whoever gives the image and reads the logits has FP32: in FP16 the move would cost two casts."""
    _, record = typed("""<ir_version: 10, opset_import: ["" : 20]>
    moves (float[N, 4] image) => (float[4, N] logits) { [flip] logits = Transpose(image) }""")
    assert (record.nodes, record.casts) == ({"fp32": 1}, 0)


def test_readers_share_one_cast_and_a_constant_gets_a_second_type() -> None:
    """The norm's output goes down once, before the moves, and s goes up once; scale is needed in both types."""
    model, record = typed(SHARED_READERS)
    assert record.casts == 2
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {
        "scale": FLOAT,
        "scale.fp16": FLOAT16,
        "w": FLOAT16,
    }
    (image,) = (np.arange(8, dtype=np.float32).reshape(2, 4) ** 2,)
    expected = ReferenceEvaluator(ir.to_proto(ir.from_onnx_text(SHARED_READERS))).run(None, {"image": image})[0]
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, {"image": image})[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_no_cast_is_redundant(exported: Callable[[str], Bundle], tmp_path: Path, name: str, precision: str) -> None:
    path, source = tmp_path / "typed.onnx", exported(name).verified("model.onnx")
    record = write_typed(source, path, precision)  # the checker of onnx runs in it
    before = Counter(node.op_type for node in ir.load(source).graph)
    model = ir.load(path)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == before["Cast"] + record.casts
    floats = [node for node in casts if node.inputs[0].dtype in (FLOAT, FORMATS[precision].dtype)]
    added = [node for node in floats if node.outputs[0].dtype in (FLOAT, FORMATS[precision].dtype)]
    assert len(added) == record.casts
    assert len({node.inputs[0] for node in added}) == len(added), "one value is cast twice"
    for node in added:
        producer = node.inputs[0].producer()
        assert producer is None or producer not in added, "a cast of a cast"
        assert node.inputs[0].dtype != node.outputs[0].dtype, "a cast to the same type"
        assert not node.inputs[0].is_initializer(), "a constant is cast at run time"
        assert node.outputs[0].uses() or node.outputs[0].is_graph_output()


def test_types_of_the_sample(sample: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "fp16.onnx"
    record = write_typed(sample.verified("model.onnx"), path, "fp16")
    graph = ir.load(path).graph
    for node in graph:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert types == {FLOAT}
        elif node.op_type in ("MatMul", "Conv", "ConvTranspose", "Gemm", "Gelu"):
            assert types == {FLOAT16}
        elif node.op_type == "Resize":
            assert all(value is None or value.dtype == FLOAT for value in node.inputs[1:3]), "scales are FP32 in ONNX"
    assert [(value.name, value.dtype) for value in (*graph.inputs, *graph.outputs)] == [
        ("image", FLOAT),
        ("logits", FLOAT),
    ]
    # Image, patches, four encoder layers of six, four levels that the head reads, logits.
    assert record.casts == 1 + 1 + 4 * 6 + 4 + 1
    assert json.loads(json.dumps(dataclasses.asdict(record)))["casts"] == record.casts
    assert sum(record.nodes.values()) == sum(group.count for group in record.groups)
    table = precision_table(record)
    assert "backbone.layers.*.ln1" in table
    assert "TensorRT#4723" in table


def test_bf16_keeps_fp32_where_the_opset_has_no_bf16(sample: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime's CPU back end has no BF16 kernels: the checker and the emulation stand in for it."""
    record = write_typed(sample.verified("model.onnx"), tmp_path / "bf16.onnx", "bf16")
    assert not record.islands
    assert any(group.operator == "Conv" and "no bf16 form" in group.why for group in record.groups)
    assert any(group.operator == "MatMul" and group.type == "bf16" for group in record.groups)
    (image,) = random_images((160, 224))
    found = emulated(tmp_path / "bf16.onnx").run(image)
    assert agreement(found, OnnxRuntimeSession(sample.verified("model.onnx")).run(image)) > 0.98


# --- files and refusals -----------------------------------------------------------------------------------------------


def test_external_data_beside_the_model(sample: Bundle, tmp_path: Path) -> None:
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    write_typed(sample.verified("model.onnx"), one, "fp16")
    write_typed(sample.verified("model.onnx"), two, "fp16", limit=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    (image,) = random_images((64, 64))
    np.testing.assert_array_equal(OnnxRuntimeSession(one).run(image), OnnxRuntimeSession(two).run(image))
    write_typed(sample.verified("model.onnx"), two, "fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]


def test_refusals(sample: Bundle, tmp_path: Path) -> None:
    model = sample.verified("model.onnx")
    with pytest.raises(InputError, match="int4"):
        write_typed(model, tmp_path / "x.onnx", "int4")
    with pytest.raises(InputError, match="no calibration image"):
        write_typed(model, tmp_path / "x.onnx", "fp16", [])
    write_typed(model, tmp_path / "fp16.onnx", "fp16")
    with pytest.raises(ExportError, match="FLOAT16 already"):
        write_typed(tmp_path / "fp16.onnx", tmp_path / "x.onnx", "fp16")
    branch = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N] image, bool c) => (float[N] logits)
    {
      [choice] logits = If(c) <
        then_branch = t () => (y) { y = Abs(image) },
        else_branch = e () => (z) { z = Neg(image) }
      >
    }"""
    with pytest.raises(ExportError, match="choice"):
        set_types(ir.from_onnx_text(branch), "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["fp16.onnx"]


# --- the real builder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [((1, 3, 160, 224),) * 3, ((1, 3, 96, 96), (1, 3, 160, 224), (4, 3, 256, 512))])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_rtx_builds_it(sample: Bundle, tmp_path: Path, precision: str, profile: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install tensorrt-rtx-cu13")
    write_typed(sample.verified("model.onnx"), tmp_path / "typed.onnx", precision)
    builder = trt.Builder(trt_logger(trt))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt_logger(trt))
    assert parser.parse_from_file(str(tmp_path / "typed.onnx")), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float32
    config, shapes = builder.create_builder_config(), builder.create_optimization_profile()
    shapes.set_shape("image", *profile)
    config.add_optimization_profile(shapes)
    assert builder.build_serialized_network(network, config) is not None


LOGGER: list[Any] = []  # TensorRT honours the first one of a process


def trt_logger(trt: Any) -> Any:
    if not LOGGER:
        LOGGER.append(trt.Logger(trt.Logger.ERROR))
    return LOGGER[0]

"""What is fused and what is left; ONNX Runtime's results stay the same to the last bit."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import tiny_model
from onnx.parser import parse_model
from support import REPO

from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.export.engine import build as engine
from denseport.export.engine.build import EngineOptions, build_engine
from denseport.export.engine.profile import named_profiles
from denseport.export.errors import ExportError
from denseport.export.graph.fold import fold
from denseport.export.graph.fusion import DOMAIN, OPERATORS, FusionRecord, fuse, fused_nodes
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import save_model
from denseport.export.graph.precision import set_types
from denseport.export.graph.probe import Probe
from denseport.runtime.backends.tensorrt_library import Library, LogBook
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import MachineError
from denseport.runtime.system.files import sha256_of

DPT = ("tiny_dpt_project", "tiny_dpt_add", "tiny_dpt_ignore", "tiny_dpt_l_project", "runner_real_dpt")
SIZE = (64, 96)
RNG = np.random.default_rng(3)
IMAGE = RNG.standard_normal((1, 3, *SIZE), np.float32)
ODD = RNG.standard_normal((2, 3, 75, 91), np.float32)  # 19 x 23 is no whole factor of it: the graph pads


def run(path: Path, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    result: np.ndarray = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"]).run(
        None, {"image": image}
    )[0]
    return result


def fused_and_equal(model: ir.Model, folder: Path, *images: np.ndarray) -> FusionRecord:
    """Fuse a model; what it computes must not change by one bit."""
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    save_model(model, plain)
    record = fuse(model)
    save_model(model, fused)
    assert record.fused == fused_nodes(ir.load(fused))
    for image in images:
        np.testing.assert_array_equal(run(plain, image), run(fused, image))
    return record


def graph_of(bundle: Bundle, precision: str = "fp32", *, mask: bool = False) -> ir.Model:
    model = ir.load(bundle.verified("model.onnx"))
    if precision != "fp32":
        set_types(model, precision)
    if mask:
        append_mask(model)
    return model


def folded(bundle: Bundle, shape: tuple[int, ...]) -> ir.Model:
    """The graph that gives masks, at one size."""
    model = graph_of(bundle, mask=True)
    fold(model, shape)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("name", DPT)
def test_a_dpt_has_three_upsampled_sums(exported: Callable[[str], Bundle], tmp_path: Path, name: str) -> None:
    record = fused_and_equal(graph_of(exported(name)), tmp_path, IMAGE, ODD)
    assert record == FusionRecord({"UpsampleAdd": 3}, {})


def test_a_dpt_that_gives_masks_has_an_argmax_too(exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = exported("tiny_dpt_project")
    record = fused_and_equal(graph_of(bundle, mask=True), tmp_path, IMAGE, ODD)
    assert record == FusionRecord({"ResizeArgmax": 1, "UpsampleAdd": 3}, {})
    assert fused_and_equal(folded(bundle, IMAGE.shape), tmp_path, IMAGE).fused == {
        "UpsampleAdd": 3,
        "UpsampleArgmax": 1,
    }
    assert fused_and_equal(folded(bundle, ODD.shape), tmp_path, ODD).fused == {"ResizeArgmax": 1, "UpsampleAdd": 3}


@pytest.mark.parametrize(("name", "sums"), [("tiny_upernet_mln", 3), ("tiny_upernet_noneck", 0)])
def test_an_upernet_is_fused_at_one_size(
    exported: Callable[[str], Bundle], tmp_path: Path, name: str, sums: int
) -> None:
    """Its neck makes the pyramid whose levels differ by 2; without one all levels have the same size."""
    with pytest.raises(ExportError, match="nothing to fuse") as caught:
        fuse(graph_of(exported(name)))
    assert "fixed:WxH" in str(caught.value)
    found = fused_and_equal(folded(exported(name), IMAGE.shape), tmp_path, IMAGE).fused
    assert found.pop("UpsampleAdd", 0) == sums and found == {"UpsampleArgmax": 1}


def test_an_fp16_graph_is_fused_in_fp16(exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    model = graph_of(exported("tiny_dpt_project"), "fp16", mask=True)
    record = fused_and_equal(model, tmp_path, IMAGE, ODD)
    assert record.fused == {"ResizeArgmax": 1, "UpsampleAdd": 3}
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    assert {node.inputs[0].dtype for node in nodes if node.inputs[0] is not None} == {ir.DataType.FLOAT16}


def test_bf16_is_left_since_no_kernel_has_it(exported: Callable[[str], Bundle]) -> None:
    with pytest.raises(ExportError, match="BFLOAT16; the kernel has FP32 and FP16"):
        fuse(graph_of(exported("tiny_dpt_project"), "bf16"))


def test_an_int8_graph_is_fused(exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    model = graph_of(exported("tiny_dpt_project"))
    groups = find_groups(model, SIZE)
    chosen = [group for group in groups if group.possible]
    tensors = activations(model, chosen)
    found = Probe(model, tensors).run(IMAGE)
    thresholds = {name: float(np.abs(value).max()) for name, value in zip(tensors, found, strict=True)}
    quantize(model, thresholds, groups, [group.name for group in chosen])
    assert fused_and_equal(model, tmp_path, IMAGE, ODD) == FusionRecord({"UpsampleAdd": 3}, {})
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph}


def test_a_second_time_changes_nothing(exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    model = graph_of(exported("tiny_dpt_project"), mask=True)
    record = fused_and_equal(model, tmp_path, IMAGE)
    again = ir.load(tmp_path / "fused.onnx")
    assert fuse(again) == record
    save_model(again, tmp_path / "again.onnx")
    assert [n.name for n in again.graph] == [n.name for n in model.graph] and len(again.functions) == 2
    np.testing.assert_array_equal(run(tmp_path / "again.onnx", IMAGE), run(tmp_path / "plain.onnx", IMAGE))


def test_the_nodes_are_what_the_plugin_registers(exported: Callable[[str], Bundle]) -> None:
    """Compared with the plugin's own text, since it cannot be imported without TensorRT."""
    text = (REPO / "export/plugin/tensorrt_plugin.py").read_text()
    signatures = {
        name: re.findall(r"(\w+): ([\w.]+)", arguments)
        for name, arguments in re.findall(r'@trtp\.register\("denseport::(\w+)"\)\ndef \w+\(([^)]*)\)', text)
    }
    bundle = exported("tiny_dpt_project")
    dynamic, fixed = graph_of(bundle, mask=True), folded(bundle, IMAGE.shape)
    seen = set()
    for model in (dynamic, fixed):
        fuse(model)
        for node in (node for node in model.graph if node.domain == DOMAIN):
            arguments = signatures[node.op_type]
            tensors = [name for name, kind in arguments if kind == "Tensor"]
            own = {name for name, kind in arguments if kind == "int"}
            function = model.functions[DOMAIN, node.op_type, ""]
            assert [value.name for value in function.inputs] == tensors and len(node.inputs) == len(tensors)
            assert set(node.attributes) == own | {"plugin_namespace", "plugin_version", "aot"}
            assert all(node.attributes.get_int(name) is not None for name in (*own, "aot"))
            assert node.attributes.get_string("plugin_namespace") == "denseport"
            assert node.attributes.get_string("plugin_version") == "1" and node.attributes.get_int("aot") == 1
            seen.add(node.op_type)
    assert seen == set(OPERATORS) == signatures.keys()


# Small graphs: which neighbours are fused, and which are not.

PAIR = """
< ir_version: 10, opset_import: ["" : 20] >
pair (float[N, 4, H, W] image, float[N, 4, P, Q] residual) => (float[N, 4, P, Q] y)
<float[4] scales = {1.0, 1.0, 2.0, 2.0}, float[4] other = {1.0, 1.0, 4.0, 4.0}, float[1, 4, 1, 1] bias = {1.0, 2.0, 3.0, 4.0}> {
  NODES
}
"""  # noqa: E501
UP = 'up = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (image, , scales)'


def pair(nodes: str) -> ir.Model:
    return ir.from_proto(parse_model(PAIR.replace("NODES", nodes)))


@pytest.mark.parametrize("addition", ["Add (up, residual)", "Add (residual, up)"])
@pytest.mark.parametrize("grid", ["align_corners", "half_pixel", "pytorch_half_pixel"])
def test_both_orders_and_every_grid_of_the_kernels(addition: str, grid: str) -> None:
    model = pair(f"{UP.replace('align_corners', grid)}\n y = {addition}")
    x = RNG.standard_normal((2, 4, 5, 7), np.float32)
    residual = RNG.standard_normal((2, 4, 10, 14), np.float32)
    expected = evaluate(model, x, residual)
    assert fuse(model).fused == {"UpsampleAdd": 1} and model.graph.num_nodes() == 1
    (node,) = model.graph
    assert node.attributes.get_int("align_corners") == (grid == "align_corners")
    assert [value.name for value in node.inputs if value] == ["image", "residual"] and node.outputs[0].name == "y"
    np.testing.assert_array_equal(evaluate(model, x, residual), expected)


def evaluate(model: ir.Model, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"image": x, "residual": residual})[0]
    return result


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (UP.replace("scales", "other") + "\n y = Add (up, residual)", ""),
        (UP.replace("linear", "nearest") + "\n y = Add (up, residual)", ""),
        (UP.replace("linear", "cubic") + "\n y = Add (up, residual)", ""),
        (UP.replace("align_corners", "asymmetric") + "\n y = Add (up, residual)", ""),
        (UP.replace("<", "<antialias = 1, ") + "\n y = Add (up, residual)", ""),
        (
            "uneven = Constant <value_floats = [1.0, 1.0, 2.0, 4.0]> ()\n"
            + UP.replace("scales", "uneven")
            + "\n y = Add (up, residual)",
            "",
        ),
        (f"{UP}\n y = Mul (up, residual)", ""),
        (f"{UP}\n y = Add (up, up)", "read more than once"),
        (f"{UP}\n t = Add (up, residual)\n y = Mul (t, up)", "read more than once"),
        (f"{UP}\n y = Add (up, bias)", "bias is not known to have the size"),
        (
            f"rows = Constant <value_ints = [2]> ()\n row = ReduceMean (residual, rows)\n{UP}\n y = Add (up, row)",
            "row is not known to have the size",
        ),
        (f"{UP}\n h = Cast <to = 10> (up)\n w = Cast <to = 1> (h)\n y = Add (w, residual)", "a Cast behind it rounds"),
        (
            f"{UP}\n s = Constant <value_float = 0.1> ()\n q = QuantizeLinear (up, s)\n d = DequantizeLinear (q, s)\n"
            " y = Add (d, residual)",
            "a QuantizeLinear behind it rounds",
        ),
    ],
    ids=[
        "scale",
        "nearest",
        "cubic",
        "grid",
        "antialias",
        "uneven",
        "product",
        "itself",
        "twice",
        "broadcast",
        "row",
        "cast",
        "quantized",
    ],
)
def test_what_no_kernel_computes_is_left(nodes: str, reason: str) -> None:
    model = pair(nodes)
    before = [node.op_type for node in model.graph]
    with pytest.raises(ExportError, match="nothing to fuse") as caught:
        fuse(model)
    assert caught.value.remedy
    _, *left = caught.value.message.splitlines()
    assert len(left) == bool(reason) and all(reason in line for line in left)
    assert [node.op_type for node in model.graph] == before and not model.functions


def test_a_resize_whose_result_is_an_output_stays() -> None:
    model = pair(f"{UP}\n y = Add (up, residual)")
    model.graph.outputs.append(model.graph[0].outputs[0])
    with pytest.raises(ExportError, match="read more than once"):
        fuse(model)


def test_of_two_upsampled_summands_one_is_the_residual() -> None:
    model = pair(f"{UP}\n{UP.replace('up', 'second')}\n y = Add (up, second)")
    record = fuse(model)
    assert record.fused == {"UpsampleAdd": 1}
    assert [node.op_type for node in model.graph] == ["Resize", "UpsampleAdd"]


def test_a_model_has_one_body_of_each_function() -> None:
    """The second grid of a graph that has two is left as it is: a function's name can mean one thing only."""
    other = 'low = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (image, , scales)'
    model = pair(f"{UP}\n a = Add (up, residual)\n{other}\n y = Add (a, low)")
    x, residual = RNG.standard_normal((1, 4, 3, 5), np.float32), RNG.standard_normal((1, 4, 6, 10), np.float32)
    expected = evaluate(model, x, residual)
    record = fuse(model)
    assert record.fused == {"UpsampleAdd": 1} and list(record.left.values()) == [
        "the model's UpsampleAdd has another grid or scale"
    ]
    np.testing.assert_array_equal(evaluate(model, x, residual), expected)


ARGMAX = """
< ir_version: 10, opset_import: ["" : 20] >
mask (float[N, 4, H, W] image) => (int32[N, P, Q] mask)
<float[4] scales = {1.0, 1.0, 4.0, 4.0}, float[4] other = {1.0, 1.0, 8.0, 8.0}> {
  up = Resize <mode = "linear"> (image, , scales)
  winner = ArgMax <axis = 1, keepdims = 0, select_last_index = 0> (up)
  mask = Cast <to = 6> (winner)
}
"""


def test_an_argmax_is_fused_with_the_resize_before_it() -> None:
    model = ir.from_proto(parse_model(ARGMAX))
    assert fuse(model) == FusionRecord({"UpsampleArgmax": 1}, {})
    (node,) = model.graph
    assert node.attributes.get_int("scale") == 4 and node.outputs[0].name == "mask"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("axis = 1", "axis = 2", "not the first maximum over the classes"),
        ("keepdims = 0", "keepdims = 1", "not the first maximum over the classes"),
        ("select_last_index = 0", "select_last_index = 1", "not the first maximum over the classes"),
        ("to = 6", "to = 7", "the classes behind it are not INT32"),
        ('"linear"', '"linear", coordinate_transformation_mode = "align_corners"', "half-pixel centres"),
        ("image, , scales", "image, , other", "neither the input's nor a multiple"),
    ],
)
def test_an_argmax_that_no_kernel_computes_is_left(old: str, new: str, reason: str) -> None:
    assert ARGMAX.count(old) == 1
    with pytest.raises(ExportError, match="nothing to fuse") as caught:
        fuse(ir.from_proto(parse_model(ARGMAX.replace(old, new))))
    assert reason in caught.value.message


def test_a_mask_is_the_first_of_the_highest(tmp_path: Path) -> None:
    model = tiny_model()
    record = append_mask(model)
    assert record.nodes == tuple(node.name for node in model.graph)[-6:]
    (node,) = (node for node in model.graph if node.name == "decode_head.conv_seg/Conv")
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[2] = array[1]  # two classes that are always equal
    weight.const_value = ir.tensor(array, name=weight.name)
    save_model(model, tmp_path / "mask.onnx")
    mask = run(tmp_path / "mask.onnx", RNG.standard_normal((2, 3, 12, 20), np.float32))
    assert mask.shape == (2, 12, 20) and mask.dtype == np.int32
    assert 2 not in mask and 1 in mask
    with pytest.raises(ExportError, match="ends in mask, not in logits"):
        append_mask(model)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize("profile", ["reference", "fixed:96x64"])
def test_rtx_builds_the_body_and_says_so(exported: Callable[[str], Bundle], tmp_path: Path, profile: str) -> None:
    model = graph_of(exported("tiny_dpt_project"), "fp16", mask=True)
    fuse(model)
    save_model(model, tmp_path / "fused.onnx")
    options = EngineOptions("tensorrt_rtx", named_profiles(profile, "tensorrt_rtx"))
    record = build_engine(tmp_path / "fused.onnx", tmp_path / "e.engine", options)
    assert record.plugin == "inlined: TensorRT-RTX takes no plugins"
    assert record.fused == {"ResizeArgmax": 1, "UpsampleAdd": 3} and record.output == "mask"
    assert (tmp_path / "e.engine").stat().st_size > 100_000


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> list[ir.Model]:
    """TensorRT up to its parser, which takes any graph; the graphs that it was given."""
    parsed: list[ir.Model] = []

    def build(library: Library, source: Path, *_: object) -> tuple[bytes, str]:
        parsed.append(ir.load(source))
        return b"engine", "none"

    monkeypatch.setattr(engine, "load_library", lambda _: Library("tensorrt", None, "11.4.0", "13", None, LogBook()))
    monkeypatch.setattr(engine, "_build", build)
    monkeypatch.setattr(engine, "_device", lambda: None)
    monkeypatch.setattr(engine, "compile_ptx", lambda: b"")
    return parsed


def test_tensorrt_reads_the_fused_graph_with_its_plugin_known(
    exported: Callable[[str], Bundle], tmp_path: Path, tensorrt: list[ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "denseport.export.plugin.tensorrt_plugin", SimpleNamespace())  # type: ignore[arg-type]
    model = exported("tiny_upernet_mln").verified("model.onnx")
    options = EngineOptions("tensorrt", named_profiles("fixed:96x64", "tensorrt"), mask=True, plugin=True)
    record = build_engine(model, tmp_path / "e.engine", options)
    assert record.plugin == "on" and record.output == "mask" and record.folded
    assert record.fused == fused_nodes(tensorrt[0]) == {"UpsampleAdd": 3, "UpsampleArgmax": 1}
    native = build_engine(model, tmp_path / "n.engine", dataclasses.replace(options, plugin=False))
    assert native.plugin == "off" and native.fused == fused_nodes(tensorrt[1]) == {}
    assert native.onnx_sha256 == record.onnx_sha256 == sha256_of(model)


def test_a_tensorrt_without_quick_plugins_is_named(
    exported: Callable[[str], Bundle], tmp_path: Path, tensorrt: list[ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "denseport.export.plugin.tensorrt_plugin", None)
    options = EngineOptions("tensorrt", named_profiles("reference", "tensorrt"), plugin=True)
    with pytest.raises(MachineError, match="takes no quick plugins") as caught:
        build_engine(exported("tiny_dpt_project").verified("model.onnx"), tmp_path / "e.engine", options)
    assert "--plugin off" in str(caught.value) and not tensorrt and not (tmp_path / "e.engine").exists()

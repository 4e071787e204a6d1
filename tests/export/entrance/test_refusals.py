"""What cannot become a bundle is refused in words, with exit code 2, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import Graph, segmenting
from onnx import TensorProto, helper

from denseport.runtime.cli.main import main

MEAN = ["--mean", "123.675", "116.28", "103.53", "--std", "58.395", "57.12", "57.375"]
USUAL = ["--classes", "4", *MEAN, "--size", "96x64"]


def refused(folder: Path, model: Path, options: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The message of `denseport import`; the folder is as it was."""
    before = sorted(folder.rglob("*"))
    assert main(["import", str(model), "-o", str(folder / "bundle"), *options]) == code
    assert sorted(folder.rglob("*")) == before
    return capsys.readouterr().err


def two_inputs() -> Graph:
    graph = segmenting()
    graph.inputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    return graph


def two_outputs() -> Graph:
    graph = segmenting()
    graph.output("t1")
    return graph


def classifier() -> Graph:
    graph = segmenting()
    graph.output(graph.node("Flatten", graph.node("GlobalAveragePool", graph.outputs.pop().name)))
    return graph


def behind(operator: str, **attributes: object) -> Callable[[], Graph]:
    """The usual network with one node more at its end."""

    def make() -> Graph:
        graph = segmenting()
        graph.output(graph.node(operator, graph.outputs.pop().name, **attributes))
        return graph

    return make


def random() -> Graph:
    graph = segmenting()
    logits = graph.outputs.pop().name
    graph.output(graph.node("Add", logits, graph.node("RandomNormalLike", logits)))
    return graph


def bomb() -> Graph:
    """A few bytes that ask for a quarter of a terabyte."""
    graph = segmenting()
    zeros = graph.node("ConstantOfShape", graph.constant([2**20, 2**10, 2**6], "int64"))
    graph.output(graph.node("Add", graph.outputs.pop().name, graph.node("ReduceMax", zeros, keepdims=0)))
    return graph


def half() -> Graph:
    graph = segmenting()
    graph.output(graph.node("Add", graph.outputs.pop().name, graph.node("Cast", graph.constant(1, "float16"), to=1)))
    return graph


def quantized() -> Graph:
    graph = segmenting()
    scale, zero = graph.constant(0.1), graph.constant(0, "uint8")
    whole = graph.node("QuantizeLinear", graph.outputs.pop().name, scale, zero)
    graph.output(graph.node("DequantizeLinear", whole, scale, zero))
    return graph


def constant() -> Graph:
    graph = segmenting()
    graph.output(graph.node("Mul", graph.outputs.pop().name, graph.constant(0)))
    return graph


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: segmenting(shape=(1, 4, 64, 96)), USUAL, "takes neither 3 channels nor 1"),
        (lambda: segmenting(shape=(4, 3, 64, 96)), USUAL, "takes batches of 4 images only"),
        (lambda: segmenting(shape=(1, 3, 2**30, 2**30)), USUAL, "takes images of 1073741824 x 1073741824 pixels"),
        (bomb, USUAL, "memory ran out on 320 x 256 pixels"),
        (two_inputs, USUAL, "has 2 inputs (input (n, 3, h, w), other (1))"),
        (two_outputs, USUAL, "Name the one to take: --output-name NAME"),
        (two_outputs, [*USUAL, "--output-name", "aux"], "It has t2, t1."),
        (classifier, USUAL, "gives no class for each pixel"),
        (behind("Transpose", perm=[0, 1, 3, 2]), USUAL, "exchanges height and width: its output has"),
        (behind("Log"), USUAL, "gives NaN for an image of 320 x 256"),
        (behind("Sigmoid"), USUAL, "whose sum is not 1"),
        (segmenting, [*USUAL, "--gives", "probabilities"], "gives numbers beyond 0 to 1: no probabilities"),
        (random, USUAL, "gives something else for the same image"),
        (constant, USUAL, "gives the same for two different images"),
        (half, USUAL, "has weights in FP16"),
        (quantized, USUAL, "is quantized already"),
        (behind("Gelu", domain="com.microsoft"), USUAL, "com.microsoft.Gelu"),
        (segmenting, ["--classes", "a,b,c", *USUAL[2:]], "--classes names 3, but"),
        (segmenting, ["--classes", "a,b,c", *USUAL[2:]], "tells 4 classes apart"),
        (lambda: segmenting("argmax"), ["--classes", "2", *USUAL[2:]], "--classes names 2, from 0 to 1"),
        (lambda: segmenting("argmax"), USUAL[2:], "does not say how many there are"),
        (segmenting, USUAL[:-2], "Give --scale LONG SHORT"),
        (segmenting, ["--classes", "4", "--size", "96x64"], "Give --mean R G B"),
        (segmenting, [*USUAL, "--mean", "1", "--std", "1"], "--mean: 1 numbers, and the network takes 3 channels"),
        (segmenting, [*USUAL, "--scale", "64", "64"], "--scale and --size"),
        (segmenting, [*USUAL, "--threshold", "0.5"], "--threshold 0.5 applies to networks with one output channel"),
        (lambda: segmenting("argmax"), [*USUAL, "--threshold", "0.7"], "--threshold 0.7 applies to probabilities"),
        (segmenting, [*USUAL[:-1], "32768x32768"], "takes images of 32768 x 32768 pixels"),
        (lambda: segmenting(shape=(1, 3, 64, 96)), [*USUAL[:-1], "128x64"], "it takes (1, 3, 64, 96)"),
        (lambda: segmenting(shape=(1, 3, 64, 3)), USUAL, "Say which with --layout"),
        (lambda: segmenting(opset=9, end="logits"), [*USUAL, "--like", "/nowhere"], "/nowhere: no such folder"),
        (segmenting, [*USUAL, "--from-json", "/nowhere"], "--from-json /nowhere: cannot be read"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[], Graph], options: list[str], words: str
) -> None:
    path = make().save(tmp_path / "network.onnx", **({"com.microsoft": 1} if make.__name__ == "make" else {}))
    assert words in refused(tmp_path, path, options, capsys, 3 if make is bomb else 2)


def external(location: str, folder: Path, count: int = 96) -> Path:
    """The usual network, whose first weight lies elsewhere."""
    model = segmenting().model()
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(4 * int(np.prod(weight.dims)))}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    (folder / "short.bin").write_bytes(bytes(count))
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret.bin", "is not a file beside it"),
        ("/etc/passwd", "is not a file beside it"),
        ("link.bin", "is not a file beside it"),
        ("absent.bin", "which is missing"),
        ("short.bin", "is not whole in short.bin"),
    ],
)
def test_weights_of_a_hostile_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], location: str, words: str
) -> None:
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    assert words in refused(tmp_path, external(location, tmp_path), USUAL, capsys)


@pytest.mark.parametrize("data", [b"", b"no model", onnx.ModelProto().SerializeToString(), b"\x3a\xff\xff\xff\xff\x0f"])
def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(data)
    assert "denseport: error: " in refused(tmp_path, path, USUAL, capsys)
    assert "not an ordinary file" in refused(tmp_path, tmp_path, USUAL, capsys)
    assert "no such file" in refused(tmp_path, tmp_path / "absent", USUAL, capsys)


def test_a_bundle_stays_where_the_new_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = segmenting().save(tmp_path / "network.onnx"), ["import", "-o", str(tmp_path / "bundle"), *USUAL]
    assert main([*command, str(path)]) == 0
    assert "compared with the file on 3 sizes" in capsys.readouterr().out
    assert "exists already and is a bundle" in refused(tmp_path, path, USUAL, capsys)
    inside = tmp_path / "bundle" / "model.onnx"
    assert "would be deleted with the old bundle" in refused(tmp_path, inside, [*USUAL, "--force"], capsys)
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    refused(tmp_path, classifier().save(path), [*USUAL, "--force"], capsys)
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before

"""An ONNX file from elsewhere becomes a bundle whose masks are those of the file."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from foreign import MEAN, STD, Graph, computed, normalised, segmenting
from numpy.typing import NDArray
from support import ASSETS

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import import_bundle
from denseport.export.graph.model import save_model
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.steps import Normalise, Pad, Resize
from denseport.runtime.errors import ImageError, InputError
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter

PHOTO = sorted((ASSETS / "street").rglob("*.jpg"))[0]
SIZE = (96, 64)  # width, height


def declared(**fields: Any) -> Declared:
    return Declared(**{"classes": 4, "mean": MEAN, "std": STD, "size": SIZE, **fields})


def made(tmp_path: Path, graph: Graph, about: Declared | None = None, **options: Any) -> tuple[Path, Bundle]:
    path = graph.save(tmp_path / "network.onnx")
    return path, import_bundle(path, tmp_path / "bundle", about or declared(), **options)


def adapted(bundle: Bundle) -> tuple[list[str], list[str]]:
    record = bundle.manifest.artifacts["model.onnx"].record["adapted"]
    return list(record["cut"]), list(record["added"])


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """A photograph of the size that the networks are given, so that nothing is resized."""
    import cv2

    return np.asarray(cv2.resize(read_image(PHOTO), SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def expected(path: Path, image: NDArray[np.uint8], end: str) -> NDArray[np.integer[Any]]:
    """The mask of the file itself, by ONNX Runtime, torch and numpy."""
    found = computed(path, normalised(image))
    if end in ("argmax", "compared"):
        return found.reshape(found.shape[0], *image.shape[:2])[0]
    if end == "nhwc":
        return np.asarray(found[0].argmax(-1))
    if end == "sigmoid":
        found = np.log(found / (1 - found))  # logits are resized, as mmsegmentation does
    resized = F.interpolate(torch.from_numpy(found), image.shape[:2], mode="bilinear")[0].numpy()
    return np.asarray(resized[0] > 0 if end == "sigmoid" else resized.argmax(0))


@pytest.mark.parametrize(
    ("end", "gives", "cut", "added"),
    [
        ("logits", "logits", [], []),
        ("resized", "logits", ["Resize"], []),
        ("softmax", "probabilities", ["Softmax", "Resize"], []),
        ("argmax", "classes", ["ArgMax", "Resize"], []),
        ("nhwc", "probabilities", ["Transpose", "Softmax", "Resize"], []),
        ("probabilities", "probabilities", [], ["Max", "Log"]),
        ("compared", "classes", [], ["Cast", "Unsqueeze", "Equal", "Cast"]),
        ("sigmoid", "probabilities", ["Sigmoid"], ["Mul", "Add", "Concat"]),
    ],
)
def test_every_end_gives_the_masks_of_the_file(
    tmp_path: Path, image: NDArray[np.uint8], end: str, gives: str, cut: list[str], added: list[str]
) -> None:
    classes = {"sigmoid": 1, "compared": 2}.get(end, 4)
    path, bundle = made(tmp_path, segmenting(end, classes=classes), declared(classes=max(2, classes)))
    manifest = bundle.manifest
    source = manifest.artifacts["model.onnx"]
    assert source.record["interface"]["gives"] == gives and adapted(bundle) == (cut, added)
    assert manifest.input.shape == (None, 3, None, None) and manifest.input.divisor == 1
    assert manifest.stride == (1 if end in ("probabilities", "compared") else 4)
    assert [each.against for each in source.proof] == ["onnx"] and len(source.record["checks"]) == 3
    assert len({tuple(check["shape"][2:]) for check in source.record["checks"]}) == 3
    assert "none with torch" in manifest.provenance["parity"]
    (output,) = onnx.load(bundle.path / "model.onnx").graph.output
    assert output.name == "logits" and len(output.type.tensor_type.shape.dim) == 4
    with Segmenter(bundle) as segment:
        found = segment(image).mask
        assert (found == expected(path, image, end)).mean() > 0.999 and len(np.unique(found)) > 1
        assert manifest.scores == (end != "compared")
        if manifest.scores:
            assert segment(image, scores=True).scores is not None
        else:
            with pytest.raises(InputError, match="there are no scores"):
                segment(image, scores=True)


def test_scores_are_the_probabilities_of_the_file(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path, bundle = made(tmp_path, segmenting("softmax"))
    with Segmenter(bundle) as segment:
        scores = segment(image, scores=True).scores
    np.testing.assert_allclose(scores, computed(path, normalised(image))[0].max(0), atol=1e-5)


def test_several_sigmoids_have_a_largest_but_no_scores(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    graph = segmenting("resized")
    graph.output(graph.node("Sigmoid", graph.outputs.pop().name))
    path, bundle = made(tmp_path, graph, gives="logits")
    assert not bundle.manifest.scores and adapted(bundle) == ([], [])
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == computed(path, normalised(image))[0].argmax(0)).mean() > 0.999


def test_aligned_corners_are_found(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path, bundle = made(tmp_path, segmenting("argmax", rule="align_corners"))
    assert bundle.manifest.align_corners and adapted(bundle)[0] == ["ArgMax", "Resize"]
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == expected(path, image, "argmax")).mean() > 0.999


def test_a_resize_by_another_rule_stays(tmp_path: Path) -> None:
    _, bundle = made(tmp_path, segmenting("resized", rule="asymmetric"))
    assert adapted(bundle) == ([], []) and bundle.manifest.stride == 1


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_channels_may_be_last_and_levels_whole(tmp_path: Path, image: NDArray[np.uint8], dtype: str) -> None:
    graph = segmenting("nhwc", shape=(1, 64, 96, 3), dtype=dtype)
    about = declared(size=None) if dtype == "float32" else Declared(classes=("a", "b", "c", "d"))
    path, bundle = made(tmp_path, graph, about)
    manifest = bundle.manifest
    assert manifest.input.shape == (1, 3, 64, 96) and manifest.preprocess[0] == Resize(SIZE, keep_ratio=False)
    assert adapted(bundle)[1] == ["Transpose"]  # the file's own cast of whole numbers takes floats
    given = normalised(image).transpose(0, 2, 3, 1) if dtype == "float32" else image[None, ..., ::-1]
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == computed(path, given)[0].argmax(-1)).mean() > 0.999
        assert segment(PHOTO).mask.shape == read_image(PHOTO).shape[:2]  # of any size


def test_a_layout_that_the_file_leaves_open_is_found(tmp_path: Path) -> None:
    _, bundle = made(tmp_path, open_layout())
    assert bundle.manifest.artifacts["model.onnx"].record["interface"]["layout"] == "NHWC"


def open_layout() -> Graph:
    graph = segmenting("nhwc", shape=("n", 64, 96, 3))
    for dim in graph.inputs[0].type.tensor_type.shape.dim:
        dim.ClearField("dim_value")
        dim.dim_param = f"d{id(dim)}"
    return graph


def test_one_size_only(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    """`reference` resizes to it by itself; other sizes are refused in words."""
    _, bundle = made(tmp_path, segmenting("argmax", shape=(1, 3, 64, 96)), declared(size=None))
    assert bundle.manifest.input.shape == (1, 3, 64, 96)
    with Segmenter(bundle) as segment:
        assert segment(PHOTO).mask.shape == read_image(PHOTO).shape[:2]
    for protocol in ("ms-flip", "native", "fixed:128x64"):
        with Segmenter(bundle, protocol=protocol) as segment, pytest.raises(ImageError, match="fixed:96x64"):
            segment(PHOTO)


def tied(side: int) -> Graph:
    """A graph that is declared free, and adds a map of a fixed size, as a position embedding would be."""
    graph = Graph(("n", 3, "h", "w"))
    features = graph.node("Relu", graph.conv("input", (3, 8), 4))
    places = graph.constant(graph.rng.standard_normal((1, 8, side // 4, side // 4)))
    graph.output(graph.conv(graph.node("Add", features, places), (8, 4)))
    return graph


def test_a_size_that_was_fixed_without_a_word_is_found(tmp_path: Path) -> None:
    _, bundle = made(tmp_path, tied(224), declared(size=None))
    assert bundle.manifest.input.shape == (None, 3, 224, 224)
    assert "taken as fixed" in bundle.manifest.provenance["warnings"][0]


def test_an_output_of_one_size_is_refused_unless_its_input_is_named(tmp_path: Path) -> None:
    graph = Graph(("n", 3, "h", "w"))
    logits = graph.conv(graph.conv("input", (3, 8), 2), (8, 4))
    empty, scales = graph.constant([]), graph.constant([1, 4, 64, 96], "int64")
    graph.output(graph.node("Resize", logits, empty, empty, scales, mode="linear"))
    with pytest.raises(InputError, match="its exporter fixed it"):
        made(tmp_path, graph, declared(size=None, scale=(96, 64)))
    _, bundle = made(tmp_path, graph)
    assert bundle.manifest.input.shape[2:] == (64, 96)


def test_multiples_only(tmp_path: Path) -> None:
    """A sum of what was halved twice and doubled again takes multiples of 4: images are padded, and cut again."""
    graph = Graph(("n", 3, "h", "w"))
    first = graph.conv("input", (3, 4))
    small = graph.conv(graph.conv(first, (4, 4), 2), (4, 4), 2)
    up = graph.constant(graph.rng.standard_normal((4, 4, 4, 4)))
    doubled = graph.node("ConvTranspose", small, up, kernel_shape=[4, 4], strides=[4, 4])
    graph.output(graph.conv(graph.node("Add", first, doubled), (4, 4)))
    _, bundle = made(tmp_path, graph, declared(size=None, scale=(90, 61)))
    assert bundle.manifest.input.divisor == 4 and bundle.manifest.preprocess[-1] == Pad(divisor=4, crop=True)
    with Segmenter(bundle) as segment:
        assert segment(PHOTO).mask.shape == read_image(PHOTO).shape[:2]
    with Segmenter(bundle, protocol="fixed:90x60") as segment, pytest.raises(ImageError, match="multiples of 4"):
        segment(PHOTO)


@pytest.mark.parametrize(("end", "divisor"), [("logits", 32), ("resized", 1)])
def test_an_input_that_is_cut_down_in_silence_is_padded(tmp_path: Path, end: str, divisor: int) -> None:
    """A patch of 32 pixels drops what is left over at the edges: its own grid shows it, a resize hides it."""
    graph = Graph(("n", 3, "h", "w"))
    weight = graph.constant(graph.rng.standard_normal((8, 3, 32, 32)) / 32)
    patches = graph.node("Conv", "input", weight, kernel_shape=[32, 32], strides=[32, 32])
    fine = graph.node(
        "ConvTranspose",
        patches,
        graph.constant(graph.rng.standard_normal((8, 4, 16, 16))),
        strides=[16, 16],
        kernel_shape=[16, 16],
    )
    graph.output(fine if end == "logits" else graph.resize(fine))
    _, bundle = made(tmp_path, graph, declared(size=(100, 70)))
    assert bundle.manifest.input.divisor == divisor


def test_a_batch_that_is_mixed_is_fixed_to_one(tmp_path: Path) -> None:
    graph = segmenting("logits")
    logits = graph.outputs.pop().name
    mean = graph.node("ReduceMean", logits, axes=[0])
    graph.output(graph.node("Sub", logits, graph.node("Mul", mean, graph.constant(0.5))))
    _, bundle = made(tmp_path, graph)
    assert bundle.manifest.input.shape[0] == 1 and "two images together" in bundle.manifest.provenance["warnings"][0]


def test_weights_in_a_second_file_and_an_old_opset(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    model, path = segmenting("argmax", opset=11).model(), tmp_path / "network.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="network.bin", size_threshold=256)
    bundle = import_bundle(path, tmp_path / "bundle", declared())
    assert bundle.artifact("model.onnx").files.keys() == {"model.onnx"}
    assert {each.version for each in onnx.load(bundle.path / "model.onnx").opset_import} == {20}
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == expected(path, image, "argmax")).mean() > 0.999


def test_a_network_beyond_2_gib_keeps_its_weights_beside_it(
    tmp_path: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a small one is taken for: nothing loads it whole, and its opset stays."""
    monkeypatch.setattr("denseport.export.entrance.onnx_file.weight_bytes", lambda model: 2**40)
    monkeypatch.setattr("denseport.export.entrance.foreign.save_model", partial(save_model, limit=10))
    path = tmp_path / "network.onnx"
    onnx.save_model(
        segmenting("argmax").model(), path, save_as_external_data=True, location="network.bin", size_threshold=256
    )
    bundle = import_bundle(path, tmp_path / "bundle", declared())
    assert bundle.artifact("model.onnx").files.keys() == {"model.onnx", "model.onnx.data"}
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == expected(path, image, "argmax")).mean() > 0.999


def test_settings_of_another_bundle_and_of_a_file(tmp_path: Path) -> None:
    _, first = made(
        tmp_path, segmenting(), declared(classes=("a", "b", "c", "d"), palette=[(i, i, i) for i in range(4)])
    )
    file = tmp_path / "settings.json"
    file.write_text(
        json.dumps({"reduce_zero_label": True, "inference": {"mode": "slide", "crop": [64, 64], "stride": [32, 32]}})
    )
    about = Declared(like=first, from_json=file, classes=("e", "f", "g", "h"))
    second = import_bundle(tmp_path / "network.onnx", tmp_path / "second", about, name="street").manifest
    same = {each.name for each in dataclasses.fields(Manifest)} - {"name", "classes", "provenance", "artifacts"}
    same -= {"reduce_zero_label", "inference"}
    assert {name: getattr(second, name) for name in same} == {name: getattr(first.manifest, name) for name in same}
    assert second.name == "street" and second.classes == ("e", "f", "g", "h")
    assert second.reduce_zero_label and second.inference.crop == (64, 64)


def test_a_network_of_one_size_resizes_to_it_whatever_the_other_bundle_does(tmp_path: Path) -> None:
    _, first = made(tmp_path, segmenting(), declared(size=None, scale=(2048, 512)))
    path = segmenting(shape=(1, 3, 64, 96)).save(tmp_path / "fixed.onnx")
    assert import_bundle(path, tmp_path / "whole", Declared(like=first)).manifest.preprocess[0] == Resize(SIZE, False)
    file = tmp_path / "slide.json"
    file.write_text('{"inference": {"mode": "slide", "crop": [64, 96], "stride": [32, 48]}}')
    windows = import_bundle(path, tmp_path / "slide", Declared(like=first, from_json=file))
    assert windows.manifest.preprocess[0] == Resize((2048, 512), True)
    with Segmenter(windows) as segment:
        assert segment(PHOTO).mask.shape == read_image(PHOTO).shape[:2]


def test_units_of_mean_and_std(tmp_path: Path) -> None:
    units = Declared(classes=4, mean=(0.5, 0.25, 0), std=(0.5, 1, 1), value_range=1, bgr=True, size=SIZE)
    _, bundle = made(tmp_path, segmenting(), units)
    assert bundle.manifest.preprocess[-1] == Normalise((127.5, 63.75, 0.0), (127.5, 255.0, 255.0), bgr_to_rgb=False)
    with pytest.raises(InputError, match="may be of images in"):
        made(tmp_path, segmenting(), dataclasses.replace(units, value_range=None), replace=True)

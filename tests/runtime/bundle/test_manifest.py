"""Manifests come back as they were written, and what does not fit the format is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
from bundles import depth_manifest, manifest, onnx_artifact, proof
from support import REPO

from denseport.runtime.bundle.artifact import TARGETS, Artifact
from denseport.runtime.bundle.manifest import Inference, Manifest
from denseport.runtime.bundle.steps import Step
from denseport.runtime.errors import BundleError


def artifact_of(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["artifacts"]["model.onnx"]
    return found


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(manifest().to_json())
    change(data)
    return json.dumps(data)


LEAST = {"model.onnx": onnx_artifact({"model.onnx": "0" * 64})}


@pytest.mark.parametrize(
    "original",
    [manifest(), manifest(reference=None, inference=Inference(), artifacts=LEAST), depth_manifest()],
    ids=["full", "least", "depth"],
)
def test_what_is_written_comes_back(original: Manifest) -> None:
    text = original.to_json()
    assert Manifest.from_json(text, "m.json") == original
    assert ("天" in text) == bool(original.classes) and json.loads(text)["format_version"] == 2
    assert text.startswith('{\n "name": "tiny",\n "architecture"') and text.endswith("}\n")


def test_whole_numbers_stand_for_floats() -> None:
    text = changed(lambda data: data["preprocess"][1].update(mean=[1, 2, 3]))
    mean = Manifest.from_json(text, "m.json").preprocess[1].mean
    assert mean == (1.0, 2.0, 3.0) and all(isinstance(value, float) for value in mean)


@pytest.mark.parametrize("name", json.loads(manifest().to_json()))
def test_every_field_without_a_default_is_needed(name: str) -> None:
    text = changed(lambda data: data.pop(name))
    defaults = {
        "depth": None,
        "augmentation": None,
        "budgets": {},
        "align_corners": False,
        "via_input": True,
        "threshold": None,
        "scores": True,
        "temperature": 1.0,
        "label_map": {},
        "ignore_index": 255,
    }
    if name in defaults:
        assert getattr(Manifest.from_json(text, "m.json"), name) == defaults[name]
        return
    words = {"format_version": "format version None", "artifacts": "manifest.source: 'model.onnx' is not an artifact"}
    with pytest.raises(BundleError, match=words.get(name, f"missing {name}")):
        Manifest.from_json(text, "m.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(extra=1), "manifest: unknown extra"),
        (lambda data: data["preprocess"][1].update(gamma=2), "manifest.preprocess[1]: unknown gamma"),
        (lambda data: data["inference"].update(crop=[64]), "manifest.inference.crop: expected 2 values, found [64]"),
        (lambda data: data["inference"].update(crop=None), "manifest.inference: mode 'slide' needs crop and stride"),
        (lambda data: data["inference"].update(stride=None), "manifest.inference: mode 'slide' needs crop and stride"),
        (lambda data: data["inference"].update(mode="tiles"), "mode 'tiles' is neither"),
        (lambda data: data["inference"].update(crop=[99, 64], stride=[65, 65]), "stride (65, 65) is above the crop"),
        (lambda data: data["inference"].update(crop=[64, 99], stride=[65, 65]), "stride (65, 65) is above the crop"),
        (lambda data: data["inference"].update(stride=[0, 1]), "manifest.inference: stride (0, 1)"),
        (lambda data: data["inference"].update(stride=[42, 65]), "stride (42, 65) is above the crop (64, 64)"),
        (lambda data: data["inference"].update(crop=[64, 15], stride=[9, 9]), "crop (64, 15) is below one patch of 16"),
        (lambda data: data.update(source="nope"), "manifest.source: 'nope' is not an artifact of kind onnx"),
        (lambda data: data.update(artifacts={}), "manifest.source: 'model.onnx' is not an artifact"),
        (lambda data: artifact_of(data).update(kind="engine"), "manifest.source: 'model.onnx' is no"),
        (lambda data: artifact_of(data).update(precision="int8"), "manifest.source: 'model.onnx' is no"),
        (lambda data: artifact_of(data).update(output="mask"), "manifest.source: 'model.onnx' is no"),
        (lambda data: artifact_of(data).update(made_of="model.onnx"), "manifest.source: 'model.onnx' is no"),
        (lambda data: data.update(budgets={"int8": 1e9}), "budget 'int8': 1000000000.0 is not 0..100 points"),
        (lambda data: data.update(budgets={"int8": -5}), "budget 'int8': -5.0 is not"),
        (lambda data: data.update(budgets={"int4": 1}), "budget 'int4': 1.0 is not 0..100 points of a known precision"),
        (lambda data: artifact_of(data)["proof"][0].update(date="yesterday"), "isoformat string: 'yesterday'"),
        (lambda data: artifact_of(data)["proof"][0].update(figures="audit"), "figures 'audit' is not one of checks"),
        (lambda data: data.update(parameters="many"), 'manifest.parameters: expected int, found "many"'),
        (lambda data: data.update(parameters=1.5), "manifest.parameters: expected int, found 1.5"),
        (lambda data: data.update(parameters=True), "manifest.parameters: expected int, found true"),
        (lambda data: data.update(budgets={"int8": 100.5}), "budget 'int8': 100.5 is not 0..100 points"),
        (lambda data: data.update(threshold=0), "threshold 0.0 is not a probability that divides two classes"),
        (lambda data: data.update(temperature=0.01), "temperature 0.01 is not in 0.05..20"),
        (lambda data: data.update(temperature=21), "temperature 21.0 is not in 0.05..20"),
        (lambda data: data.update(temperature=2, scores=False), "temperature 2.0 means nothing without scores"),
        (lambda data: data.update(threshold=1), "threshold 1.0 is not a probability that divides two classes"),
        (lambda data: data.update(threshold=1.5), "threshold 1.5 is not a probability that divides two classes"),
        (
            lambda data: data.update(threshold=0.5, classes=["a", "b", "c"], palette=[[0, 0, 0]] * 3),
            "threshold 0.5 is not a probability that divides two classes",
        ),
        (
            lambda data: data.update(threshold=0.5, classes=["a"], palette=[[0, 0, 0]]),
            "threshold 0.5 is not a probability that divides two classes",
        ),
        (lambda data: data.update(ignore_index=-1), "ignore_index -1 is not in 0..255"),
        (lambda data: data.update(ignore_index=256), "ignore_index 256 is not in 0..255"),
        (lambda data: data.update(label_map={"1": 1, "256": 1}), "does not map labels in 0..255 to such"),
        (lambda data: data.update(label_map={"1": 1, "2": 256}), "does not map labels in 0..255 to such"),
        (lambda data: data.update(label_map={"1": -1}), "does not map labels in 0..255 to such"),
        (lambda data: data.update(label_map={"-1": 1}), "does not map labels in 0..255 to such"),
        (lambda data: data.update(label_map={"wall": 1}), "label_map {'wall': 1} does not map labels in 0..255"),
        (lambda data: data["input"].update(name="pixels"), "the network's input 'pixels' has shape"),
        (lambda data: data["input"].update(shape=[None, 2, None, None]), "not 'image' with 3 or 1 channels"),
        (lambda data: data["input"].update(shape=[None, 3, 1, 2**15 + 1]), "a size that is not in 1..32768"),
        (lambda data: data.update(classes=["wall", "a\tb"]), "the name 'a\\tb' holds control characters"),
        (lambda data: data.update(name="\ud800"), "not JSON: 'utf-8' codec can't encode"),
        (lambda data: data.update(patch_size=0), "patch_size 0 is below 1"),
        (lambda data: data.update(stride=-2), "stride -2 is below 1"),
        (lambda data: data.update(reduce_zero_label=1), "manifest.reduce_zero_label: expected bool, found 1"),
        (lambda data: data.update(name=None), "manifest.name: expected str, found null"),
        (lambda data: data.update(preprocess={}), "manifest.preprocess: expected tuple"),
        (
            lambda data: data.update(preprocess=[]),
            "preprocess needs at most one load, which is first, and one normalise",
        ),
        (lambda data: data["preprocess"].reverse(), "after normalise comes nothing but pads of mode constant"),
        (lambda data: data["preprocess"].append(data["preprocess"][1]), "and one normalise"),
        (lambda data: data["preprocess"].insert(1, {"kind": "load"}), "one load, which is first"),
        (lambda data: data["preprocess"].insert(1, {"kind": "pad"}), "needs a size or a divisor, or is square"),
        (
            lambda data: data["preprocess"].append({"kind": "pad", "divisor": 8, "mode": "edge"}),
            "pads of mode constant",
        ),
        (lambda data: data["preprocess"].append({"kind": "pad", "divisor": 0}), "divisor (0,) is not in 1..32768"),
        (
            lambda data: data["preprocess"].insert(0, {"kind": "load", "library": "gd"}),
            "library 'gd' is not one of opencv",
        ),
        (
            lambda data: (
                data.update(
                    preprocess=[{"kind": "load", "float32": True}, data["preprocess"][0], data["preprocess"][1]]
                )
                or data["preprocess"][1].update(library="pillow")
            ),
            "Pillow does not resize images of float32",
        ),
        (lambda data: data["preprocess"][1].update(mean=[1], std=[1]), "mean and std are of 1 channels, the network"),
        (lambda data: data.update(augmentation={"scales": [], "flip": True}), "at least one scale"),
        (
            lambda data: data.update(augmentation={"scales": [{"kind": "pad", "divisor": 8}], "flip": True}),
            "manifest.augmentation.scales[0].kind: expected one of resize, resize_by, resize_shortest_edge",
        ),
        (lambda data: data["preprocess"][0].pop("kind"), "preprocess[0].kind: expected one of load, resize, "),
        (lambda data: data["preprocess"][0].update(kind="Pad"), 'pad, normalise, found "Pad"'),
        (lambda data: data["preprocess"][0].update(kind=[]), "pad, normalise, found []"),
        (lambda data: data["preprocess"].append("flip"), "manifest.preprocess[2]: expected an object of kind load"),
        (lambda data: data["preprocess"][0].pop("size"), "manifest.preprocess[0]: missing size"),
        (
            lambda data: data["preprocess"][0].update(interpolation="box"),
            "opencv's interpolation 'box' is not one of nearest",
        ),
        (lambda data: data["preprocess"][0].update(library="gd"), "library 'gd' is not one of opencv, pillow"),
        (lambda data: data.update(task="normals"), "task 'normals' is not one of segmentation, depth"),
        (lambda data: data.update(input=None), "manifest.input: expected NetworkInput, found null"),
        (lambda data: data["input"].update(shape=[1, 4, None, None]), "not 'image' with 3 or 1 channels"),
        (lambda data: data["input"].update(shape=[None, 3, 0, None]), "a size that is not in 1..32768"),
        (lambda data: data["input"].update(divisor=0), "divisor 0 is not in 1..32768"),
        (lambda data: data["input"].update(divisor=2**15 + 1), "divisor 32769 is not in 1..32768"),
        (lambda data: data.update(source="a\nb"), "holds control characters"),
        (lambda data: data.update(classes="wall"), "manifest.classes"),
        (lambda data: data.update(classes=[1, 2]), "manifest.classes[0]: expected str, found 1"),
        (lambda data: data.update(classes=[], palette=[]), "at least one class"),
        (lambda data: data.update(palette=[[1, 2, 3]]), "1 colours for 2 classes"),
        (lambda data: data.update(palette=[[1, 2], [3, 4]]), "manifest.palette[0]: expected 3 values"),
        (lambda data: data.update(palette=[[1, 2, 3], [1, 2, 256]]), "the palette is not within 0..255"),
        (lambda data: data["preprocess"][0].update(size=[0, 5]), "size (0, 5) has a side that is not in 1..32768"),
        (lambda data: data["preprocess"][0].update(size=[5, 0]), "size (5, 0) has a side that is not in 1..32768"),
        (lambda data: data["preprocess"][0].update(size=[1, 2**15 + 1]), "a side that is not in 1..32768 pixels"),
        (lambda data: data["preprocess"][0].update(size=[2**15 + 1, 1]), "a side that is not in 1..32768 pixels"),
        (lambda data: data["inference"].update(crop=[1, 2**15 + 1]), "a side that is not in 1..32768 pixels"),
        (lambda data: data.update(parameters=2**63), "manifest.parameters: expected a smaller number"),
        (lambda data: data.update(parameters=-(2**63)), "manifest.parameters: expected a smaller number"),
        (lambda data: data["palette"][0].__setitem__(0, -1), "the palette is not within 0..255"),
        (lambda data: data["preprocess"][1].update(std=[1, 1, 0]), "std (1.0, 1.0, 0.0) is not as many positive"),
        (lambda data: data["preprocess"][1].update(std=[1, 1, math.nan]), "std[2]: expected a finite number"),
        (lambda data: data["preprocess"][1].update(mean=[1, 1, math.inf]), "mean[2]: expected a finite number"),
        (lambda data: data["preprocess"][1].update(mean=[1, 1, 10**400]), "manifest.preprocess"),
        (lambda data: data["artifacts"].update(x={}), "manifest.artifacts.x: missing files, float_precision, fused"),
        (lambda data: data["artifacts"]["model.onnx"].update(files=["a"]), "manifest.artifacts.model.onnx.files"),
        (lambda data: data["artifacts"]["model.onnx"]["files"].update(a=1), "files.a: expected str, found 1"),
        (
            lambda data: artifact_of(data).update(target="gpu"),
            "model.onnx: target 'gpu' is not one of any,",
        ),
        (lambda data: artifact_of(data).update(kind="ir"), "kind 'ir' is not one of onnx, engine"),
        (lambda data: artifact_of(data).update(precision="int4"), "precision 'int4' is not one of fp32, fp16"),
        (lambda data: artifact_of(data).update(float_precision="fp16"), "float_precision 'fp16' is not one of fp32"),
        (lambda data: artifact_of(data).update(output="boxes"), "output 'boxes' is not one of logits, mask, depth"),
        (lambda data: artifact_of(data).update(main="b.onnx"), "main 'b.onnx' is not one of model.onnx"),
        (lambda data: artifact_of(data).update(files={}), "main 'model.onnx' is not one of"),
        (lambda data: artifact_of(data).update(fused="no"), 'fused: expected bool, found "no"'),
        (lambda data: artifact_of(data)["proof"][0].update(against="hope"), "against 'hope' is not one of torch,"),
        (lambda data: artifact_of(data)["proof"][0].update(arithmetic="fp8"), "arithmetic 'fp8' is not one of fp32"),
        (lambda data: artifact_of(data)["proof"][0].pop("date"), "model.onnx.proof[0]: missing date"),
        (lambda data: data["reference"].update(mIoU="high"), "manifest.reference.mIoU: expected float"),
        (lambda data: data.update(format_version=1), "format version 1; this Denseport reads version 2"),
        (lambda data: data.update(format_version="2"), "format version '2'"),
        (lambda data: data.update(format_version=True), "format version True; this Denseport reads version 2"),
        (lambda data: data["inference"].update(mode="whole"), "mode 'whole' has neither crop nor stride"),
        (lambda data: data["inference"].update(mode="whole", crop=None), "mode 'whole' has neither crop nor stride"),
        (lambda data: data.update(format_version=2.0), "manifest.format_version: expected int, found 2.0"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(changed(change), "some/manifest.json")
    message = str(caught.value)
    assert message.startswith("some/manifest.json: ") and words in message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", "null", "3", "[" * 100_000, "\ufeff{}", '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"^m\.json: (not JSON|format version None)"):
        Manifest.from_json(text, "m.json")


def test_the_largest_values_are_read() -> None:
    text = changed(lambda data: (data["preprocess"][0].update(size=[1, 2**15]), data.update(parameters=2**63 - 1)))
    read = Manifest.from_json(text, "m.json")
    assert read.preprocess[0].size == (1, 2**15) and read.parameters == 2**63 - 1
    text = changed(lambda data: data["inference"].update(crop=[16, 2**15], stride=[1, 2**15]))
    assert Manifest.from_json(text, "m.json").inference == Inference("slide", (16, 2**15), (1, 2**15))


@pytest.mark.parametrize(
    "limits",
    [
        {"parameters": 1, "patch_size": 1, "stride": 1},
        {"inference": {"mode": "slide", "crop": [16, 17], "stride": [16, 17]}},
        {"inference": {"mode": "slide", "crop": [16, 17], "stride": [1, 1]}},
        {"input": {"name": "image", "shape": [1, 3, 1, 2**15], "divisor": 2**15}},
        {"budgets": {"int8": 100.0, "fp32": 0.0, "bf16": 0.5}},
        {"threshold": 0.999},
        {"threshold": 0.001},
        {"temperature": 0.05},
        {"temperature": 20},
        {"ignore_index": 0},
        {"ignore_index": 255},
        {"label_map": {"0": 0, "255": 255}},
        {"palette": [[0, 0, 0], [255, 255, 255]]},
    ],
    ids=str,
)
def test_what_lies_just_inside_is_read(limits: dict[str, Any]) -> None:
    text = changed(lambda data: data.update(limits))
    read = json.loads(Manifest.from_json(text, "m.json").to_json())
    assert {name: read[name] for name in limits} == limits


def test_a_network_of_one_channel_has_one_mean() -> None:
    one = {"input": {"name": "image", "shape": [None, 1, None, None]}}
    text = changed(lambda data: (data.update(one), data["preprocess"][1].update(mean=[1], std=[1])))
    assert Manifest.from_json(text, "m.json").input.shape[1] == 1


def test_the_graph_of_a_precision_is_found_by_what_it_is_and_not_by_its_name() -> None:
    quantized = {"float_precision": "fp16", "target": "tensorrt", "made_of": "h"}
    artifacts = {
        "a": onnx_artifact({"a": ""}, "fp16", fused=True),
        "b": onnx_artifact({"b": ""}, "fp16", output="mask"),
        "c": onnx_artifact({"c": ""}, "fp16", kind="engine", target="tensorrt"),
        "fp16.onnx": onnx_artifact({"d": ""}, "bf16"),
        "e": onnx_artifact({"e": ""}, "fp16"),
        "f": onnx_artifact({"f": ""}, "int8", **quantized),
        "int8.onnx": onnx_artifact({"g": ""}, "int8", target="onnxruntime-cpu"),
        "h": onnx_artifact({"h": ""}, "int8"),
    }
    found = manifest(artifacts=artifacts, source="s")
    assert (found.graph("fp32"), found.graph("fp16"), found.graph("bf16")) == ("s", "e", "fp16.onnx")
    assert (found.graph("int8"), found.graph("int8", "fp16"), found.graph("fp8")) == ("h", "f", None)
    with pytest.raises(BundleError, match="several fp16 graphs: e, i"):
        manifest(artifacts={**artifacts, "i": onnx_artifact({"i": ""}, "fp16")}).graph("fp16")


@pytest.mark.parametrize(
    ("precision", "floats", "arithmetic", "compared"),
    [
        ("fp32", "fp32", ["fp32"], True),
        ("fp16", "fp16", [], False),
        ("fp16", "fp16", ["fp32"], False),  # ONNX Runtime on a CPU
        ("fp16", "fp16", ["fp32", "fp16"], True),
        ("bf16", "bf16", ["fp16"], False),
        ("int8", "fp32", ["fp32"], True),
        ("int8", "fp16", ["fp32"], False),
    ],
)
def test_a_proof_is_of_an_arithmetic(precision: str, floats: str, arithmetic: list[str], compared: bool) -> None:
    proofs = tuple(map(proof, arithmetic))
    artifact = onnx_artifact({"a": ""}, precision, float_precision=floats, proof=proofs, record={"audit": {}})
    assert artifact.is_compared == compared


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [("## manifest.json", [Manifest]), ("### Steps", list(get_args(Step))), ("### Artifacts", [Artifact])],
)
def test_the_document_has_the_fields_that_there_are(heading: str, kinds: list[Any]) -> None:
    section = (REPO / "docs/bundle.md").read_text(encoding="utf-8").partition(heading)[2].split("\n#")[0]
    table = section.partition("\n|---")[2].split("\n\n")[0]
    shown = set()
    for row in table.splitlines()[1:]:
        *_, names, _kind, _meaning, _end = row.split("|")  # a step's rows have its kind in front
        before = "" if names.strip().startswith("`.") else "`"
        shown |= {re.split(r"[.\[]", name)[0] for name in re.findall(rf"{before}(\w[\w.\[\]]*)`", names)}
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert shown == fields - ({"kind"} if len(kinds) > 1 else set())
    assert heading != "### Artifacts" or all(f"| `{target}` |" in section for target in TARGETS)

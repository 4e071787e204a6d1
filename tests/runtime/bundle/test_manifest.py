"""Manifests come back as they were written, and what does not fit the format is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from denseport.runtime.bundle.manifest import Artifact, Inference, Manifest, Preprocess, Reference
from denseport.runtime.errors import BundleError


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "tiny",
        "architecture": "DPT",
        "parameters": 1000,
        "patch_size": 16,
        "stride": 2,
        "classes": ("wall", "ciel bleu é 天"),
        "palette": ((1, 2, 3), (4, 5, 255)),
        "reduce_zero_label": True,
        "preprocess": Preprocess((1024, 240)),
        "inference": Inference("slide", (64, 64), (42, 42)),
        "reference": Reference("dpt", "ADE20K", "whole", 46.97, None, "hash"),
        "provenance": {"warnings": [], "iterations": None},
        "spec": {"neck": None},
        "artifacts": {"model.onnx": Artifact("onnx", "fp32", {"model.onnx": "0" * 64}, {"checks": [1.5]})},
    }
    return Manifest(**{**fields, **changes})


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(manifest().to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "original", [manifest(), manifest(reference=None, inference=Inference(), artifacts={})], ids=["full", "least"]
)
def test_what_is_written_comes_back(original: Manifest) -> None:
    text = original.to_json()
    assert Manifest.from_json(text, "m.json") == original
    assert "天" in text and json.loads(text)["format_version"] == 1


def test_whole_numbers_stand_for_floats() -> None:
    text = changed(lambda data: data["preprocess"].update(mean=[1, 2, 3]))
    mean = Manifest.from_json(text, "m.json").preprocess.mean
    assert mean == (1.0, 2.0, 3.0) and all(isinstance(value, float) for value in mean)


@pytest.mark.parametrize("name", json.loads(manifest().to_json()))
def test_every_field_without_a_default_is_needed(name: str) -> None:
    text = changed(lambda data: data.pop(name))
    if name in ("artifacts", "budgets"):
        assert getattr(Manifest.from_json(text, "m.json"), name) == {}
        return
    with pytest.raises(BundleError, match=f"missing {name}" if name != "format_version" else "format version None"):
        Manifest.from_json(text, "m.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(extra=1), "manifest: unknown extra"),
        (lambda data: data["preprocess"].update(gamma=2), "manifest.preprocess: unknown gamma"),
        (lambda data: data["inference"].update(crop=[64]), "manifest.inference.crop: expected 2 values, found [64]"),
        (lambda data: data["inference"].update(crop=None), "manifest.inference: mode 'slide' needs crop and stride"),
        (lambda data: data["inference"].update(mode="tiles"), "mode 'tiles' is neither"),
        (lambda data: data["inference"].update(stride=[0, 1]), "manifest.inference: stride (0, 1)"),
        (lambda data: data.update(parameters="many"), 'manifest.parameters: expected int, found "many"'),
        (lambda data: data.update(parameters=1.5), "manifest.parameters: expected int, found 1.5"),
        (lambda data: data.update(parameters=True), "manifest.parameters: expected int, found true"),
        (lambda data: data.update(patch_size=0), "patch_size 0 is below 1"),
        (lambda data: data.update(stride=-2), "stride -2 is below 1"),
        (lambda data: data.update(reduce_zero_label=1), "manifest.reduce_zero_label: expected bool, found 1"),
        (lambda data: data.update(name=None), "manifest.name: expected str, found null"),
        (lambda data: data.update(preprocess=[]), "manifest.preprocess: expected Preprocess, found []"),
        (lambda data: data.update(classes="wall"), "manifest.classes"),
        (lambda data: data.update(classes=[1, 2]), "manifest.classes[0]: expected str, found 1"),
        (lambda data: data.update(classes=[], palette=[]), "at least one class"),
        (lambda data: data.update(palette=[[1, 2, 3]]), "1 colours for 2 classes"),
        (lambda data: data.update(palette=[[1, 2], [3, 4]]), "manifest.palette[0]: expected 3 values"),
        (lambda data: data.update(palette=[[1, 2, 3], [1, 2, 256]]), "the palette is not within 0..255"),
        (lambda data: data["preprocess"].update(scale=[0, 5]), "a side below 1 pixel"),
        (lambda data: data["preprocess"].update(scale=[5, 0]), "a side below 1 pixel"),
        (lambda data: data["preprocess"].update(scale=[1, 2**15 + 1]), "a side above 32768 pixels"),
        (lambda data: data["preprocess"].update(scale=[2**15 + 1, 1]), "a side above 32768 pixels"),
        (lambda data: data["inference"].update(crop=[1, 2**15 + 1]), "a side that is not in 1..32768 pixels"),
        (lambda data: data.update(parameters=2**63), "manifest.parameters: expected a smaller number"),
        (lambda data: data.update(parameters=-(2**63)), "manifest.parameters: expected a smaller number"),
        (lambda data: data["palette"][0].__setitem__(0, -1), "the palette is not within 0..255"),
        (lambda data: data["preprocess"].update(std=[1, 1, 0]), "std (1.0, 1.0, 0.0) is not three positive"),
        (lambda data: data["preprocess"].update(std=[1, 1, math.nan]), "std[2]: expected a finite number"),
        (lambda data: data["preprocess"].update(mean=[1, 1, math.inf]), "mean[2]: expected a finite number"),
        (lambda data: data["preprocess"].update(mean=[1, 1, 10**400]), "manifest.preprocess"),
        (lambda data: data["artifacts"].update(x={}), "manifest.artifacts.x: missing files, kind, precision"),
        (lambda data: data["artifacts"]["model.onnx"].update(files=["a"]), "manifest.artifacts.model.onnx.files"),
        (lambda data: data["artifacts"]["model.onnx"]["files"].update(a=1), "files.a: expected str, found 1"),
        (lambda data: data["reference"].update(mIoU="high"), "manifest.reference.mIoU: expected float"),
        (lambda data: data.update(format_version=2), "format version 2; this Denseport reads version 1"),
        (lambda data: data.update(format_version="1"), "format version '1'"),
        (lambda data: data.update(format_version=True), "manifest.format_version: expected int, found true"),
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
    text = changed(lambda data: (data["preprocess"].update(scale=[1, 2**15]), data.update(parameters=2**63 - 1)))
    read = Manifest.from_json(text, "m.json")
    assert read.preprocess.scale == (1, 2**15) and read.parameters == 2**63 - 1
    text = changed(lambda data: data["inference"].update(crop=[1, 2**15], stride=[2**15, 1]))
    assert Manifest.from_json(text, "m.json").inference == Inference("slide", (1, 2**15), (2**15, 1))

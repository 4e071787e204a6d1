"""What is wrong is refused as in Python, in the same words."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from build_records import build_record
from bundles import engine_artifact, verdict
from cpp import OPENVINO, Library, built, colour_depth, for_openvino, run
from hostile import enter, external, graph, rewrite, tiny_bundle, tiny_manifest, tiny_model
from onnx import helper

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.steps import (
    Augmentation,
    Load,
    Pad,
    Resize,
    ResizeBy,
    ResizeRounded,
    ResizeShortestEdge,
    ResizeToMultiple,
)
from denseport.runtime.errors import DenseportError
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.segmenter.depth import DepthEstimator
from denseport.runtime.selection import select_artifact
from denseport.runtime.system.machine import inspect_machine

WRONG = (None, True, 0, -1, 40000, 2**64 - 1, 0.5, "x", "a\nb", [], [[]], {}, {"x": []}, [0, 0], [1] * 4)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def full_manifest() -> dict[str, Any]:
    """A manifest with every field and every step, as JSON has it."""
    manifest = tiny_manifest()
    first, last = manifest.preprocess
    every = (
        *(Load(), first, ResizeBy((0.5, 2.0)), ResizeShortestEdge(20, 90), ResizeToMultiple((4, 8))),
        *(ResizeRounded((8, 8), "minimal", 4), Pad(divisor=4), last, Pad(size=(8, 8), centred=True)),
    )
    views = Augmentation((Resize((8, 8), True),), True)
    data: dict[str, Any] = json.loads(
        replace(manifest, preprocess=every, augmentation=views, label_map={"1": 2}, budgets={"int8": 1.0}).to_json()
    )
    data["reference"] = dict.fromkeys(("preset", "dataset", "protocol", "recognised_by"), "x")
    data["reference"] |= {"mIoU": 1.0, "mIoU_ms_flip": None}
    (artifact,) = data["artifacts"].values()
    artifact["record"] = {"audit": {"passed": True}, "verdict": None}
    found = {"against": "fp32", "arithmetic": "fp32", "machine": "m", "date": "2026-11-27", "figures": "audit"}
    artifact["proof"] = [found]
    return data


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a document stands."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places(item, (*at, key))


def damaged() -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest with one thing wrong: each value left out, replaced, or with an unknown field beside it."""
    full = full_manifest()
    for number, place in enumerate(places(full)):
        for odd in ("left out", "unknown", *(WRONG[(number * k + k) % len(WRONG)] for k in (1, 4))):
            data = copy.deepcopy(full)
            parent = data
            for key in place[:-1]:
                parent = parent[key]
            if odd == "left out":
                del parent[place[-1]]
            elif odd == "unknown" and isinstance(parent, dict):
                parent["new"] = 1
            else:
                parent[place[-1]] = odd
            yield f"{'.'.join(map(str, place))}: {odd!r}", data


def said_by_python(bundle: Path, **options: Any) -> str:
    try:
        Segmenter(bundle, **options).close()
    except DenseportError as err:
        return str(err)
    return ""


def said(library: Library, bundle: Path, *options: str | None) -> str:
    code, segmenter = library.try_open(bundle, *options)
    if code == 0:
        library.close(segmenter)
        return ""
    assert code in (2, 3)
    return library.error()


def told(text: str) -> str:
    """The first line, without what is of one language: an exception's name, blanks in a list of JSON."""
    return text.partition("\n")[0].partition("record is damaged")[0].replace(", ", ",")


def test_manifests_are_refused_as_python_refuses_them(library: Library, tmp_path: Path) -> None:
    bundle, refused, differ = tiny_bundle(tmp_path / "bundle").path, 0, []
    model = tiny_model().SerializeToString()
    digest = enter(Bundle(bundle), model).manifest.artifacts["model.onnx"].files["model.onnx"]
    for what, data in damaged():
        text = json.dumps(data).replace("0" * 64, digest)
        (bundle / MANIFEST).write_text(text)
        expected, found = said_by_python(bundle), said(library, bundle)
        refused += bool(expected)
        if told(found) != told(expected):
            differ.append(f"{what}\n  Python: {expected}\n  C++: {found}")
    assert refused > 200
    assert not differ, "\n".join(differ)


@pytest.mark.parametrize("scores", [True, False])
def test_a_temperature_is_read_and_refused_as_in_python(library: Library, tmp_path: Path, scores: bool) -> None:
    bundle = tiny_bundle(tmp_path / "bundle").path
    whole, refused = json.loads((bundle / MANIFEST).read_text()), 0
    for value in (1, 1.0, 0.05, 0.779, 20, 0.0499, 20.01, 0, -1, True, None, "1", [1.0]):
        (bundle / MANIFEST).write_text(json.dumps({**whole, "scores": scores, "temperature": value}))
        expected, found = said_by_python(bundle), said(library, bundle)
        assert told(found) == told(expected), value
        refused += bool(expected)
    assert refused == (8 if scores else 11)


def test_what_has_no_meaning_for_depth_is_refused_as_in_python(library: Library, tmp_path: Path) -> None:
    bundle = colour_depth(tmp_path / "bundle", ())
    whole = json.loads((bundle.path / MANIFEST).read_text())
    views = {"scales": [{"kind": "resize", "size": [8, 8], "keep_ratio": True}], "flip": False}
    slide = {"mode": "slide", "crop": [64, 64], "stride": [32, 32]}
    changes: list[dict[str, Any]] = [
        *({"depth": {**whole["depth"], **each}} for each in (
            {"unit": "feet"}, {"larger_is": "nearer"}, {"larger_is": 1}, {"largest": 0}, {"interpolation": "area"}
        )),
        *({"depth": None}, {"depth": {}}, {"classes": ["a"]}, {"palette": [[0, 0, 0]]}, {"threshold": 0.5}),
        *({"threshold": 0.0}, {"reduce_zero_label": True}, {"label_map": {"1": 2}}, {"label_map": {}}),
        *({"augmentation": views}, {"scores": False}, {"ignore_index": 3}, {"inference": slide}),
    ]  # fmt: skip
    refused = 0
    for change in changes:
        (bundle.path / MANIFEST).write_text(json.dumps({**whole, **change}))
        try:
            DepthEstimator(bundle.path).close()
            expected = ""
        except DenseportError as err:
            expected = str(err)
        code, estimator = library.try_open(bundle.path, depth=True)
        if code == 0:
            library.close(estimator, depth=True)
        assert told("" if code == 0 else library.error()) == told(expected)
        refused += bool(expected)
    assert refused == len(changes) - 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format_version": 1}', '{"format_version": "2"}', "[" * 5000, '{"a": "\\ud800"}', "nul", "\x00"],
    ids=range(9),
)
def test_what_is_no_manifest_is_refused(library: Library, tmp_path: Path, text: str) -> None:
    bundle = tiny_bundle(tmp_path / "bundle").path
    (bundle / MANIFEST).write_text(text)
    found, expected = said(library, bundle), said_by_python(bundle)
    assert found.split(":")[:2] == expected.split(":")[:2]
    assert found.splitlines()[1:] == expected.splitlines()[1:]  # the remedy


def test_python_and_cpp_refuse_the_same_folders_and_files(library: Library, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").touch()
    bundle = tiny_bundle(tmp_path / "bundle").path
    for path in (tmp_path / "nothing", tmp_path / "empty", tmp_path / "model.onnx", bundle / MANIFEST):
        assert said(library, path) == said_by_python(path) != ""


def test_altered_and_unlisted_files_are_never_opened(library: Library, tmp_path: Path) -> None:
    altered = tiny_bundle(tmp_path / "altered").path
    (altered / "model.onnx").write_bytes((altered / "model.onnx").read_bytes() + b"\x00")
    missing = tiny_bundle(tmp_path / "missing").path
    (missing / "model.onnx").unlink()
    link = tiny_bundle(tmp_path / "link").path
    (link / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (link / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    convolution = helper.make_node("Conv", ["image", "w"], ["logits"], kernel_shape=[1, 1])
    stranger = graph(convolution, initializers=(external("../../etc/passwd"),))
    unlisted = enter(tiny_bundle(tmp_path / "unlisted"), stranger.SerializeToString()).path
    no_model = enter(tiny_bundle(tmp_path / "no_model"), b"\x0b\x0c").path
    for bundle in (altered, missing, link, unlisted, no_model):
        assert said(library, bundle) == said_by_python(bundle) != ""


@pytest.mark.parametrize(
    "protocol", ["", "whole", "slide:2:1", "slide:64:65", "fixed:0x0", "fixed:99999x1", "native:64"]
)
def test_protocols_that_do_not_exist_are_refused(library: Library, tmp_path: Path, protocol: str) -> None:
    bundle = tiny_bundle(tmp_path / "bundle").path
    assert said(library, bundle, None, protocol) == said_by_python(bundle, protocol=protocol) != ""


def test_images_that_the_network_does_not_take_are_refused(tmp_path: Path) -> None:
    program, bundle = built("release/denseport-cpp"), tiny_bundle(tmp_path / "bundle").path
    rewrite(Bundle(bundle), lambda data: data["input"].update(shape=[1, 3, 32, None]))
    image = tmp_path / "image.png"
    image.write_bytes(b"no image")
    for file, words in (
        (image, "damaged, or not an image"),
        (tmp_path / "none.png", "there is no such file"),
        (tmp_path, "this is a folder, not a file"),
    ):
        done = run(program, "run", bundle, file, "-o", tmp_path / "out")
        assert done.returncode == 2 and words in done.stderr


def test_what_this_runtime_lacks_is_refused_by_name(library: Library, tmp_path: Path) -> None:
    bundle = Bundle(tiny_bundle(tmp_path / "bundle").path)
    source = bundle.artifact("model.onnx")
    for name, changes, words in (
        ("masks", {"output": "mask"}, "gives masks of the network's input"),
        ("bf16", {"precision": "bf16", "float_precision": "bf16"}, "no BF16 operators"),
        ("fused", {"fused": True}, "nodes of Denseport's plugin"),
    ):
        bundle.add(name, replace(source, made_of="model.onnx", **changes))  # type: ignore[arg-type]
        assert words in said(library, bundle.path, name)
    bundle.add("engine", engine_artifact("engine", build_record()))
    assert "engine: TensorRT is not in this build of the library" in said(library, bundle.path, "engine")
    assert "no artifact 'other'; it has" in said(library, bundle.path, "other")


@pytest.mark.parametrize("seconds", [0.5, 2.0])
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("here", [True, False])
def test_the_artifact_is_chosen_as_python_chooses(tmp_path: Path, seconds: float, accepted: bool, here: bool) -> None:
    """By the verdict on this machine's kind, beside the artifact that would run else."""
    program = built("release/denseport-cpp")
    bundle = for_openvino(tiny_bundle(tmp_path / "bundle"))
    found = verdict(
        machine=inspect_machine().processor if here else "another one",
        accepted=accepted,
        seconds={OPENVINO: seconds, "model.onnx": 1.0},
        reason="it was told so",
    )
    bundle.note(OPENVINO, {"verdict": found})
    expected = select_artifact(bundle)
    done = run(program, "inspect", bundle.path)
    assert f"runs: {expected.name} on " in done.stdout, done.stderr
    for name, reason in expected.others.items():
        assert f"not {name}: {reason}" in done.stdout


def test_a_run_leaves_nothing_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime does unless it is told otherwise (docs/security.md)."""
    program, bundle = built("release/denseport-cpp"), tiny_bundle(tmp_path / "bundle").path
    (tmp_path / "home").mkdir()
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert run(program, "inspect", bundle).returncode == 0
    assert not list((tmp_path / "home").iterdir())


def test_nothing_printed_acts_on_the_terminal(tmp_path: Path) -> None:
    program, bundle = built("release/denseport-cpp"), for_openvino(tiny_bundle(tmp_path / "bundle"))
    evil = "\x1b[2J\u202e\x9bA\u2066"
    found = verdict(machine=inspect_machine().processor, accepted=False, reason=evil, seconds={})
    bundle.note(OPENVINO, {"verdict": found})
    done = run(program, "inspect", bundle.path)
    assert "not used by itself on this CPU: ?[2J??A?" in done.stdout


def test_bytes_that_are_no_text_are_not_printed(tmp_path: Path) -> None:
    """Alone, 0x9B begins a command of older terminals."""
    program, bundle = built("release/denseport-cpp"), tiny_bundle(tmp_path / "bundle").path
    image = tmp_path / os.fsdecode(b"a\x9b2J\xc3\xa9\xe2\x82.png")
    done = run(program, "run", bundle, image, "-o", tmp_path / "out")
    assert done.returncode == 2 and "/a?2J\u00e9?.png: there is no such file" in done.stderr

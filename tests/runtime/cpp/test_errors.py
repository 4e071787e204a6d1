"""What is wrong is refused as in Python, with the same words and remedies."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import verdict
from cpp import OPENVINO, built, for_openvino, run
from hostile import enter, external, graph, rewrite, tiny_bundle, tiny_manifest
from onnx import helper

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.steps import Augmentation, Load, Pad, Resize, ResizeBy, ResizeShortestEdge, ResizeToMultiple
from denseport.runtime.errors import DenseportError
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.selection import select_artifact

WRONG = (None, True, 0, -1, 40000, 2**70, 0.5, "x", "a\nb", [], [[]], {}, {"x": []}, [0, 0], [1] * 4)


@pytest.fixture
def program() -> Path:
    return built("sanitized")


def full_manifest() -> dict[str, Any]:
    """A manifest with every field and every step, as JSON has it."""
    manifest = tiny_manifest()
    first, last = manifest.preprocess
    every = (
        *(Load(), first, ResizeBy((0.5, 2.0)), ResizeShortestEdge(20, 90), ResizeToMultiple((4, 8))),
        *(Pad(divisor=4), last, Pad(size=(8, 8))),
    )
    full = replace(manifest, preprocess=every, augmentation=Augmentation((Resize((8, 8), True),), True), label_map={"1": 2})
    data: dict[str, Any] = json.loads(full.to_json())
    data["reference"] = dict.fromkeys(("preset", "dataset", "protocol", "recognised_by"), "x")
    data["reference"] |= {"mIoU": 1.0, "mIoU_ms_flip": None}
    (artifact,) = data["artifacts"].values()
    artifact["record"] = {"audit": {"passed": True}}
    artifact["proof"] = [
        {"against": "fp32", "arithmetic": "fp32", "machine": "m", "date": "2026-11-27", "figures": "audit"}
    ]
    return data


def places(value: Any, *, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a document stands."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places(item, at=(*at, key))


def damaged() -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest with one thing wrong: each value in turn left out or replaced, and an unknown field beside it."""
    full = full_manifest()
    for number, place in enumerate(places(full)):
        for odd in ("left out", "unknown", WRONG[number % len(WRONG)], WRONG[(3 * number + 1) % len(WRONG)]):
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


def said(program: Path, bundle: Path, *options: str) -> str:
    done = run(program, "inspect", bundle, *options)
    return done.stderr.removeprefix("error: ").rstrip("\n")


def test_manifests_are_refused_as_python_refuses_them(program: Path, tmp_path: Path) -> None:
    bundle, compared, differ = tiny_bundle(tmp_path / "bundle").path, 0, []
    for what, data in damaged():
        if not (data.get("artifacts") or {}):
            continue
        (bundle / MANIFEST).write_text(json.dumps(data))
        expected = said_by_python(bundle)
        found = said(program, bundle)
        compared += 1
        if found.splitlines()[:1] != expected.splitlines()[:1]:
            differ.append(f"{what}\n  Python: {expected}\n  C++: {found}")
    assert compared > 300
    assert not differ, "\n".join(differ)

"""The programs of the C++ runtime, and how their masks are compared with Python's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from denseport.runtime.bundle.artifact import FOR_OPENVINO
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.pipeline.results import Segmentation

__all__ = ["BUILDS", "OPENVINO", "assert_same_mask", "built", "for_openvino", "read_mask", "run", "segment"]

BUILDS = ("release", "sanitized")
OPENVINO = "fp32.openvino"
TIE = 1e-3  # between the probabilities of the two likeliest classes: rounding may decide either way
PATIENCE = 300.0  # seconds
# OpenVINO and its threads keep what they allocate once.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def built(build: str, name: str = "denseport-cpp") -> Path:
    """A program of a build, or a skipped test."""
    folder = os.environ.get("DENSEPORT_CPP")
    if folder is None:
        pytest.skip("DENSEPORT_CPP names no builds of the C++ runtime: scripts/test --cpp makes them")
    path = Path(folder) / build / name
    if not path.exists():
        pytest.skip(f"{path} was not built: scripts/cpp")
    return path


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What the program did; its exit code is of its own (a sanitizer's finding or a crash is not)."""
    command = [program, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode in (0, 2, 3), f"exit code {done.returncode}: {done.stderr}"
    return done


def segment(program: Path, bundle: Path, images: Sequence[Path], folder: Path, *options: str) -> list[NDArray[np.uint8]]:
    """The masks of images, whose names differ."""
    done = run(program, "run", bundle, *images, "-o", folder, "--threads", "1", *options)
    assert done.returncode == 0, done.stderr
    return [read_mask(folder / f"{image.stem}.png") for image in images]


def read_mask(file: Path) -> NDArray[np.uint8]:
    """The values of an indexed PNG, read by Pillow: OpenCV 5 gives colours."""
    with Image.open(file) as image:
        assert image.mode == "P"
        return np.asarray(image)


def assert_same_mask(found: NDArray[np.uint8], expected: Segmentation) -> None:
    """The classes of a result that was asked for its two likeliest, but where these are as likely."""
    assert found.shape == expected.mask.shape
    assert expected.top_scores is not None
    sure = expected.top_scores[0] - expected.top_scores[-1] > TIE
    np.testing.assert_array_equal(found[sure], expected.mask[sure])
    assert np.mean(found != expected.mask) < 1e-3


def for_openvino(bundle: Bundle) -> Bundle:
    """The bundle with its source as an artifact for OpenVINO too."""
    source = bundle.artifact(bundle.manifest.source)
    changed = replace(source, target=FOR_OPENVINO, made_of=bundle.manifest.source, proof=(), record={})
    bundle.add(OPENVINO, changed)
    return bundle

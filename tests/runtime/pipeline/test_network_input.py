"""One way from an image to the network: running, calibrating, observing ranges and auditing see the same arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from denseport.export import artifacts, audit
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced, network_inputs
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.progress import Silent

HEIGHT, WIDTH = 600, 1200  # under 2048 x 512 and a crop of 512 it is resized to 1024 x 512: two windows and one between
PROTOCOLS = ("reference", "slide:512:341", "slide:64:50", "native:512:341", "ms-flip", "fixed:96x64")


class Recorder(Session):
    """Keeps what it is given; its logits are zero but for one class."""

    description = "a recorder"

    def __init__(self, classes: int) -> None:
        self.classes, self.seen = classes, list[np.ndarray[Any, Any]]()

    def run(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.seen.append(image)
        return np.zeros((len(image), self.classes, 4, 4), np.float32)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "wide.png"
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_segmenter_gives_its_network_just_these(sample: Bundle, photo: Path, protocol: str) -> None:
    recorder = Recorder(len(sample.manifest.classes))
    with Segmenter(sample, session=recorder, protocol=protocol, threads=1) as segmenter:
        segmenter(photo)
        told = segmenter.protocol
    image = np.asarray(cv2.imread(str(photo)), np.uint8)
    expected = list(network_inputs(image, told, sample.manifest.patch_size))
    assert [each.shape for each in recorder.seen] == [each.shape for each in expected]
    for seen, each in zip(recorder.seen, expected, strict=True):
        np.testing.assert_array_equal(seen, each)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_of_them_stands_for_each_image(sample: Bundle, photo: Path, protocol: str) -> None:
    """Another one from image to image, the first view's windows in turn."""
    told = parse_protocol(protocol, sample.manifest)
    image = np.asarray(cv2.imread(str(photo)), np.uint8)
    every = list(network_inputs(image, told, sample.manifest.patch_size))
    first_view = every[: len(every) // 12] if protocol == "ms-flip" else every
    inputs = NetworkInputs([photo] * 9, told)
    assert len(inputs) == 9
    for i, found in enumerate(inputs):
        np.testing.assert_array_equal(found, first_view[i % len(first_view)])
    assert isinstance(inputs[2:4], NetworkInputs)


def test_items_are_spread_from_the_first_to_the_last() -> None:
    assert evenly_spaced(range(10), 4) == [0, 3, 6, 9] and evenly_spaced(range(3), 4) == [0, 1, 2]
    assert evenly_spaced(range(10), 1) == [0]
    with pytest.raises(InputError, match="limit cannot be 0"):
        evenly_spaced(range(10), 0)


def test_ranges_and_audits_of_sliding_windows_see_windows(
    sample_copy: Bundle, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole image, which the network never gets, was what they saw before."""
    manifest = sample_copy.manifest
    slide = Inference("slide", (160, 160), (107, 107))  # of an image that is resized to 320 x 160
    sample_copy.__dict__["manifest"] = replace(manifest, inference=slide)
    monkeypatch.setattr(Bundle, "verified", lambda self, name: self.path / "model.onnx")
    shapes = list[tuple[int, ...]]()

    def observed(model: Any, *arguments: Any, **options: Any) -> Any:
        given = next(each for each in (*arguments, *options.values()) if isinstance(each, NetworkInputs))
        shapes.extend(each.shape for each in given)
        raise InterruptedError

    monkeypatch.setattr(artifacts, "observe", observed)
    with pytest.raises(InterruptedError):
        artifacts.ArtifactWriter(sample_copy, [photo] * 3, Silent()).typed("fp16")
    assert shapes == [(1, 3, 160, 160)] * 3

    shapes.clear()
    monkeypatch.setattr(audit, "_compare", lambda reference, suspect, inputs, *_: observed(None, inputs))
    with pytest.raises(InterruptedError):
        audit.audit_graph(sample_copy, sample_copy.path / "model.onnx", "fp16", [photo] * 3, Silent())
    assert shapes == [(1, 3, 160, 160)] * 3

"""The C functions, called from Python: masks, classes, threads, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cpp import OPENVINO, Library, assert_same_mask, for_openvino
from hostile import tiny_bundle
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter

STREET = sorted((ASSETS / "street/images").rglob("*.jpg"))


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def test_it_knows_the_classes(library: Library, tmp_path: Path) -> None:
    with library.opened(tiny_bundle(tmp_path / "bundle").path) as segmenter:
        assert library.classes(segmenter) == [("red", 0xFF0000), ("green", 0x00FF00), ("blue", 0x0000FF)]


def test_an_image_may_be_a_part_of_a_larger_one(library: Library, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)[5:45, 10:70]
    with library.opened(bundle.path) as segmenter, Segmenter(bundle, threads=1) as python:
        assert_same_mask(library.segment(segmenter, image), python(image.copy(), top_k=2))


@pytest.mark.parametrize("artifact", ["model.onnx", OPENVINO])
def test_threads_share_a_segmenter(library: Library, sample_copy: Bundle, artifact: str) -> None:
    bundle = for_openvino(sample_copy)
    images = [read_image(path)[: 240 + 8 * i] for i, path in enumerate(STREET[:4])]
    with library.opened(bundle.path, artifact) as segmenter:
        alone = [library.segment(segmenter, image) for image in images]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda image: library.segment(segmenter, image), images * 3))
    for found, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(found, expected)

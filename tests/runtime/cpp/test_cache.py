"""Weights that ONNX Runtime laid out for this processor, kept and mapped: the same masks to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cpp import OPENVINO, Library, for_openvino
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media.images import read_image
from denseport.runtime.system.files import sha256_of

STREET = sorted((ASSETS / "street/images").rglob("*.jpg"))


@pytest.fixture
def library(tmp_path: Path, sample: Bundle) -> Library:
    found = Library()
    code, segmenter = found.try_open(sample.path, "model.onnx", cache=tmp_path / "probe")
    if code == 0:
        found.close(segmenter)
    elif "does not run on ONNX Runtime" in found.error():
        pytest.skip("this build has no ONNX Runtime: DENSEPORT_ONNXRUNTIME_INCLUDE names its headers")
    assert code == 0, found.error()
    return found


def test_masks_are_those_without_it_and_the_weights_are_mapped(
    library: Library, sample: Bundle, tmp_path: Path
) -> None:
    image, cache = read_image(STREET[0]), tmp_path / "new/cache"
    with library.opened(sample.path, "model.onnx") as segmenter:
        expected = library.segment(segmenter, image)
    for _ in ("made", "kept"):
        with library.opened(sample.path, "model.onnx", cache=cache) as segmenter:
            np.testing.assert_array_equal(library.segment(segmenter, image), expected)
            assert f"{cache}/" in Path("/proc/self/maps").read_text()
    (folder,) = cache.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["model.onnx", "sha256", "weights.bin"]
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["model.onnx", "sha256", "weights.bin"])
def test_what_was_altered_is_made_again(library: Library, sample: Bundle, tmp_path: Path, name: str) -> None:
    with library.opened(sample.path, "model.onnx", cache=tmp_path / "cache"):
        pass
    (file,) = (tmp_path / "cache").rglob(name)
    whole = file.read_bytes()
    file.write_bytes(altered := whole[:-1] + bytes([whole[-1] ^ 1]))
    with library.opened(sample.path, "model.onnx", cache=tmp_path / "cache"):
        pass
    (file,) = (tmp_path / "cache").rglob(name)
    assert file.read_bytes() != altered
    hashes = [sha256_of(file.parent / each) for each in ("model.onnx", "weights.bin")]
    assert (file.parent / "sha256").read_text().split() == hashes


def test_a_folder_that_others_can_fill_is_refused(library: Library, sample: Bundle, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "file").touch()
    for name, words in (
        ("open", "it can be written by other users"),
        ("link", "not a folder itself"),
        ("file", "not a folder itself"),
    ):
        assert library.try_open(sample.path, "model.onnx", cache=tmp_path / name)[0] == 2
        assert f"{tmp_path / name}: {words}" in library.error()
    assert library.try_open(sample.path, "model.onnx", cache=Path("/proc/none"))[0] == 2
    assert "cache /proc/none: cannot be used" in library.error()


def test_openvino_does_not_use_it_and_says_so(library: Library, sample_copy: Bundle, tmp_path: Path) -> None:
    bundle = for_openvino(sample_copy)
    assert library.try_open(bundle.path, OPENVINO, cache=tmp_path / "cache")[0] == 2
    assert f"{OPENVINO} does not run on ONNX Runtime" in library.error()

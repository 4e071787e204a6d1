"""Depths are found as NYUv2, KITTI and people lay them out, and read in metres; what is not a depth is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from denseport.runtime.errors import DatasetError, ImageError
from denseport.runtime.evaluation.depth.dataset import DepthReading, open_depth_dataset
from denseport.runtime.evaluation.depth.metrics import valid_pixels

DEPTH = np.array([[0.0, 1.5], [2.25, 9.0]], np.float32)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((2, 2, 3), np.uint8))


def depth(path: Path, scale: float = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.where(DEPTH > 0, DEPTH, np.nan))
    else:
        assert cv2.imwrite(str(path), (DEPTH * scale).astype(np.uint16))


@pytest.mark.parametrize(
    ("images", "depths", "reading", "words"),
    [
        ("images/a.jpg", "depths/a.png", DepthReading(1000.0), "images and depths"),
        ("rgb/a.png", "depth/a.npy", DepthReading(), "rgb and depth"),
        ("kitchen/rgb_00045.jpg", "kitchen/sync_depth_00045.png", DepthReading(1000.0, most=10.0), "NYUv2"),
        (
            "image/2011_09_26_drive_0002_sync_image_0000000005_image_02.png",
            "groundtruth_depth/2011_09_26_drive_0002_sync_groundtruth_depth_0000000005_image_02.png",
            DepthReading(256.0, most=80.0),
            "KITTI",
        ),
    ],
    ids=["folders", "arrays", "nyu", "kitti"],
)
def test_layouts_are_found(tmp_path: Path, images: str, depths: str, reading: DepthReading, words: str) -> None:
    image(tmp_path / images)
    depth(tmp_path / depths, reading.scale or 1)
    given = DepthReading(1000.0) if words == "images and depths" else None
    found = open_depth_dataset(tmp_path, settings=given)
    assert found.reading == reading and words in found.found
    (sample,) = found.samples
    assert (sample.image, sample.mask) == (tmp_path / images, tmp_path / depths)
    np.testing.assert_allclose(found.read_depth(sample), DEPTH, atol=0.002)


def test_two_folders_and_endings(tmp_path: Path) -> None:
    image(tmp_path / "photos/a_left.png")
    depth(tmp_path / "measured/a_depth.npy")
    ends = {"image_suffix": "_left.png", "depth_suffix": "_depth.npy"}
    found = open_depth_dataset(tmp_path / "photos", depths=tmp_path / "measured", **ends)
    assert [sample.name for sample in found.samples] == ["a"]
    np.testing.assert_array_equal(found.read_depth(found.samples[0]), DEPTH)


def test_a_list_as_of_the_eigen_split(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png"):
        image(tmp_path / "raw" / name)
    depth(tmp_path / "gt/x/1.png", 256)
    text = "x/1.png x/1.png 721.5377\n# a comment\nx/2.png None 721.5377\n"
    (tmp_path / "list.txt").write_text(text)
    gt = tmp_path / "gt/x/1.png"
    options: dict[str, Any] = {"list_file": tmp_path / "list.txt", "settings": DepthReading(256.0, most=80.0)}
    (tmp_path / "pairs.txt").write_text(f"x/1.png {gt}\n")
    found = open_depth_dataset(tmp_path / "raw", **{**options, "list_file": tmp_path / "pairs.txt"})
    assert [sample.mask for sample in found.samples] == [gt]
    np.testing.assert_allclose(found.read_depth(found.samples[0]), DEPTH, atol=0.004)
    (tmp_path / "raw/x/1.png").rename(tmp_path / "raw/x/3.png")
    (tmp_path / "list.txt").write_text(text.replace("x/1.png x", "x/3.png x"))
    found = open_depth_dataset(tmp_path / "raw", depths=tmp_path / "gt", **options)
    assert len(found) == 1 and "1 without a depth left out" in found.found and found.reading.most == 80


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        (["images/a.png", "depths/a.png"], {}, "nothing says how many of its values are a metre"),
        (["images/a.png", "images/b.png", "depths/a.npy"], {}, "1 of 2 images have no depth .such as b."),
        (["images/a.png", "depths/a.npy", "rgb/a.png", "depth/a.npy"], {}, "can be read in 2 ways"),
        (["images/a.png", "depths/a.png", "depths/a.npy"], {}, "a.png and a.npy are depths of the same name"),
        (["images/a.png", "depths/a.npy"], {"settings": DepthReading(1000.0)}, "--depth-scale applies to PNGs"),
        (["other/a.png"], {}, "has none of"),
        (["images/a.png"], {"depths": "nowhere"}, "there is no such folder"),
    ],
    ids=str,
)
def test_what_cannot_be_paired_is_refused(tmp_path: Path, files: list[str], options: Any, words: str) -> None:
    for name in files:
        (depth if name.startswith("depth") else image)(tmp_path / name)
    if "depths" in options:
        options = {"depths": tmp_path / options["depths"]}
    with pytest.raises(DatasetError, match=words):
        open_depth_dataset(tmp_path, **options)


def test_lists_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for text, words in (("a.png b.png", "no 'b.png'"), ("a.png", "expected 'image depth'"), ("", "is empty")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DatasetError, match=words):
            open_depth_dataset(tmp_path, list_file=tmp_path / "list.txt")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_depth_dataset(tmp_path, list_file=tmp_path / "none.txt")
    for option in ("image_suffix", "depth_suffix"):
        with pytest.raises(DatasetError, match=f"--{option.replace('_', '-')} pairs the files of folders"):
            open_depth_dataset(tmp_path, list_file=tmp_path / "list.txt", **{option: ".png"})


def test_files_that_hold_no_depths_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    for data, error, words in (
        (cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes(), DatasetError, "not a grey PNG of 16 bits"),
        (b"nothing", ImageError, "damaged"),
        (b"", ImageError, "cannot be decoded"),
    ):
        (tmp_path / "depths").mkdir(exist_ok=True)
        (tmp_path / "depths/a.png").write_bytes(data)
        found = open_depth_dataset(tmp_path, settings=DepthReading(1000.0))
        with pytest.raises(error, match=words):
            found.read_depth(found.samples[0])
    (tmp_path / "depths/a.png").unlink()
    for array, error in ((np.zeros((2, 2, 3), np.float32), DatasetError), (np.zeros((2, 2), int), DatasetError)):
        np.save(tmp_path / "depths/a.npy", array)
        found = open_depth_dataset(tmp_path)
        with pytest.raises(error, match=r"nor \(H, W\) floats"):
            found.read_depth(found.samples[0])
    for reading in ({"scale": -1.0}, {"crop": "middle"}):
        with pytest.raises(DatasetError):
            DepthReading(**reading)  # type: ignore[arg-type]


def headed(header: str, data: bytes = b"") -> bytes:
    """A .npy with any header."""
    return np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header.encode() + data


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, depth=DEPTH)
    return buffer.getvalue()


SHAPED = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
NO_NPY = {
    "nonsense": b"\x93NUMPY nonsense",
    "empty": b"",
    "an archive": archive(),
    "half an archive": archive()[:50],
    "a pickle": pickle.dumps(DEPTH),
    "larger than memory": headed(SHAPED % "(1000000, 1000000)"),
    "larger than the file": headed(SHAPED % "(2, 3)", DEPTH.tobytes()),
    "larger than an integer": headed(SHAPED % f"({10**30}, 2)"),
    "negative": headed(SHAPED % "(-2, 2)", DEPTH.tobytes()),
    "no end": headed("{'descr"),
    "no key": headed("{[]: 1}"),
    "nested": headed("(" * 3000 + ")" * 3000),
    "objects": headed(SHAPED.replace("<f4", "|O") % "(2, 2)", pickle.dumps(DEPTH)),
}


@pytest.mark.parametrize("name", NO_NPY)
def test_a_damaged_npy_is_refused_by_name(tmp_path: Path, name: str) -> None:
    image(tmp_path / "images/a.png")
    (tmp_path / "depths").mkdir()
    (tmp_path / "depths/a.npy").write_bytes(NO_NPY[name])
    found = open_depth_dataset(tmp_path)
    with pytest.raises(ImageError, match=r"depths/a\.npy: (cannot be decoded|damaged)") as caught:
        found.read_depth(found.samples[0])
    assert caught.value.remedy and len(str(caught.value)) < 500


def test_what_no_float32_holds_is_not_measured(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    (tmp_path / "depths").mkdir()
    np.save(tmp_path / "depths/a.npy", np.array([[1e300, -1e300], [2.0, np.inf]]))
    found = open_depth_dataset(tmp_path)
    np.testing.assert_array_equal(found.read_depth(found.samples[0]), [[0, 0], [2, 0]])
    assert valid_pixels(found.read_depth(found.samples[0]), 1e-3, 1e39).tolist() == [[False, False], [True, False]]

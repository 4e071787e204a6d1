"""What a segmentation can say of itself, and the files that it is saved in."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import ImageError, InputError, OutputError
from denseport.runtime.media.images import read_image
from denseport.runtime.media.overlay import overlay
from denseport.runtime.pipeline.results import Segmentation
from denseport.runtime.segmenter import Segmenter

PHOTO = next((ASSETS / "street").rglob("*.jpg"))
CLASSES, PALETTE = ("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142))


@pytest.fixture
def found() -> Segmentation:
    """48 pixels of road, 30 of sky, 2 of none."""
    mask = np.zeros((8, 10), np.uint8)
    mask[:3], mask[7, :2] = 1, 255
    image = np.full((8, 10, 3), 90, np.uint8)
    return Segmentation(mask, "model.onnx", image, CLASSES, PALETTE, scores=np.full((8, 10), 0.25, np.float32))


def test_classes_by_index_and_by_name(found: Segmentation) -> None:
    assert found.shares() == {"road": 0.6, "sky": 0.375}
    assert [found.area(each) for each in ("road", 0, np.int64(1), "car")] == [48, 48, 30, 0]
    np.testing.assert_array_equal(found.region("sky"), found.mask == 1)
    assert found.rle("sky") == found.rle(1) and found.rle("sky")["size"] == [8, 10]
    ((ring,),) = found.polygons("sky", simplify=0.5)
    assert sorted(ring.tolist()) == [[0, 0], [0, 3], [10, 0], [10, 3]]
    assert repr(found) == "<Segmentation 10 x 8 by model.onnx: road 60.0 %, sky 37.5 %>"


@pytest.mark.parametrize("which", [3, -1, True, 1.0, None, "Road", ""])
def test_a_class_that_does_not_exist_is_refused_with_those_that_do(found: Segmentation, which: object) -> None:
    with pytest.raises(InputError) as caught:
        found.area(which)  # type: ignore[arg-type]
    assert "0 to 2" in caught.value.remedy or "road, sky, car" in caught.value.remedy


def test_classes_of_one_name_share_it_and_are_told_apart_by_index(found: Segmentation) -> None:
    twins = replace(found, classes=("road", "road", "car"))
    assert twins.shares() == {"road": pytest.approx(0.975)} and twins.area(1) == 30
    with pytest.raises(InputError, match="several classes are called 'road'"):
        twins.area("road")


def test_documents_are_of_this_mask(found: Segmentation) -> None:
    document = found.to_coco(file_name="a.jpg", image_id=3)
    assert [each["area"] for each in document["annotations"]] == [48, 30] and document["images"][0]["id"] == 3
    moved = found.to_geojson(transform=(1, 0, 100, 0, 1, 0), simplify=0.5)
    assert min(x for x, _ in moved["features"][1]["geometry"]["coordinates"][0][0]) == 100


def test_each_ending_has_its_format(found: Segmentation, tmp_path: Path) -> None:
    for ending in ("png", "jpg", "json", "geojson", "npz", "PNG"):
        found.save(tmp_path / f"a.{ending}")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), found.mask)
        assert image.getpalette()[3:6] == list(PALETTE[1])
    drawn = overlay(found.image, found.mask, CLASSES, PALETTE)
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == drawn.shape
    np.testing.assert_array_equal(found.overlay(), drawn)
    assert json.loads((tmp_path / "a.json").read_text()) == found.to_coco()
    assert json.loads((tmp_path / "a.geojson").read_text()) == found.to_geojson()
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {"mask", "scores"}
        np.testing.assert_array_equal(arrays["mask"], found.mask)
    found.save(str(tmp_path / "text.png"))


def test_a_png_in_memory_is_the_file(found: Segmentation, tmp_path: Path) -> None:
    found.save(tmp_path / "a.png")
    assert found.to_png() == (tmp_path / "a.png").read_bytes()
    many = replace(found, mask=found.mask + np.uint16(300), palette=((1, 2, 3),) * 310)
    with Image.open(io.BytesIO(many.to_png())) as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), many.mask)


@pytest.mark.parametrize("name", ["a.bmp", "a", "no/such/folder.txt"])
def test_another_ending_is_refused_and_nothing_written(found: Segmentation, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="no result is"):
        found.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_taken_in_every_form_that_it_comes_in(sample: Bundle) -> None:
    pixels, data = read_image(PHOTO), PHOTO.read_bytes()
    with Segmenter(sample, protocol="fixed:64x48", threads=1) as segment, PHOTO.open("rb") as opened:
        expected = segment(pixels).mask
        pillow = Image.fromarray(pixels[:, :, ::-1])
        for image in (PHOTO, str(PHOTO), data, bytearray(data), memoryview(data), io.BytesIO(data), opened, pillow):
            np.testing.assert_array_equal(segment(image).mask, expected)
        assert [each.mask.shape for each in segment.stream([data, pillow])] == [expected.shape] * 2
        grey = segment(pillow.convert("L"))
        np.testing.assert_array_equal(grey.image[..., 0], grey.image[..., 2])


def test_forms_that_hold_no_image_are_refused(sample: Bundle, tmp_path: Path) -> None:
    with Segmenter(sample, protocol="fixed:64x48", threads=1) as segment:
        with pytest.raises(ImageError, match="the image: damaged, or not an image"):
            segment(b"no image at all")
        with pytest.raises(ImageError, match="the image: the file is empty"):
            segment(io.BytesIO())
        with pytest.raises(ImageError, match="open for reading str") as caught:
            segment(io.StringIO("text"))  # type: ignore[arg-type]
        assert 'open(path, "rb")' in caught.value.remedy
        with PHOTO.open(encoding="utf-8") as text, pytest.raises(ImageError, match="cannot be read: 'utf-8'"):
            segment(text)  # type: ignore[arg-type]
        (tmp_path / "cut.jpg").write_bytes(PHOTO.read_bytes()[:3000])
        with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises(ImageError, match="Pillow cannot decode it"):
            segment(cut)
        deep = Image.fromarray(np.full((48, 64), 30000, np.uint16))  # all white, were it converted to 8 bits by Pillow
        with pytest.raises(ImageError, match="mode I;16: more than 8 bits"):
            segment(deep)
        with pytest.raises(ImageError, match="a int is not an image"):
            segment(5)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="15 bytes is one image"):
            segment.batch(b"no image at all")  # type: ignore[arg-type]

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, ImageError, InputError
from denseport.runtime.evaluation.dataset import Dataset, Sample, open_dataset
from denseport.runtime.evaluation.metrics import ConfusionMatrix
from denseport.runtime.media.images import encode_palette_png

LABELS = np.array([[0, 1, 2], [3, 3, 255]], np.uint8)


def write_png(path: Path, image: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", image)
    assert done
    path.write_bytes(data.tobytes())
    return path


def ade_layout(root: Path, **splits: tuple[str, ...]) -> Path:
    """Tiny images and masks in ADE20K's layout, by split."""
    for split, stems in splits.items():
        for stem in stems:
            write_png(root / "annotations" / split / f"{stem}.png", LABELS)
            image = root / "images" / split / f"{stem}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    return root


def mask_of(path: Path, reduce_zero_label: bool = False, ignore_index: int = 255) -> tuple[Dataset, Sample]:
    sample = Sample("a", path, path)
    return Dataset((sample,), reduce_zero_label, ignore_index), sample


def names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset.samples]


# Layouts


@pytest.mark.parametrize("options", [{}, {"masks": Path("m")}, {"list_file": Path("list.txt")}], ids=str)
def test_a_name_that_no_folder_has_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a\n")
    with pytest.raises(DatasetError, match="cannot be searched: File name too long"):
        open_dataset(Path("n" * 300), **options)


@pytest.mark.parametrize("below", ["", "ADEChallengeData2016"])
def test_ade20k_is_found_in_its_folder_or_above(tmp_path: Path, below: str) -> None:
    root = ade_layout(tmp_path / below, validation=("b", "a"), training=("c",))
    (root / "images/validation/.DS_Store").touch()
    (root / "images/validation/._a.jpg").touch()
    dataset = open_dataset(tmp_path)
    assert names(dataset) == ["a", "b"]
    assert dataset.samples[0].image == root / "images/validation/a.jpg"
    assert dataset.samples[0].mask == root / "annotations/validation/a.png"
    assert (dataset.reduce_zero_label, dataset.ignore_index) == (True, 255)
    assert names(open_dataset(tmp_path, split="training")) == ["c"]


def test_a_missing_layout_or_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="images/ and annotations/"):
        open_dataset(tmp_path)
    ade_layout(tmp_path, validation=("a",))
    with pytest.raises(DatasetError, match=r"images/test: there is no such folder"):
        open_dataset(tmp_path, split="test")
    (tmp_path / "images/test").mkdir()
    (tmp_path / "annotations/test").mkdir()
    with pytest.raises(DatasetError, match="there are no images"):
        open_dataset(tmp_path, split="test")


def test_what_does_not_pair_is_counted_and_listed(tmp_path: Path) -> None:
    ade_layout(tmp_path, validation=tuple(f"p{i}" for i in range(9)))
    for i in range(7):
        (tmp_path / f"annotations/validation/p{i}.png").unlink()
    write_png(tmp_path / "annotations/validation/lone.png", LABELS)
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert "7 of 9 images have no mask (such as p0, p1, p2, p3, p4, …)" in caught.value.message
    assert "1 of 3 masks have no image (such as lone)" in caught.value.message


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    ade_layout(tmp_path, validation=("a",))
    (tmp_path / "images/validation/a.png").touch()
    with pytest.raises(DatasetError, match=r"a\.jpg and a\.png"):
        open_dataset(tmp_path)


def test_a_dataset_needs_samples_and_a_possible_ignored_label(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="empty"):
        Dataset(())
    for label in (-1, 65536):
        with pytest.raises(InputError, match=f"ignore_index cannot be {label}\n  Give a whole number from 0 to 65535"):
            mask_of(tmp_path, ignore_index=label)
    assert [mask_of(tmp_path, ignore_index=label)[0].ignore_index for label in (0, 65535)] == [0, 65535]


# List files


def test_a_list_of_names_finds_their_split_and_keeps_its_order(tmp_path: Path) -> None:
    root = ade_layout(tmp_path / "data", validation=("a", "b"), training=("c",))
    listed = tmp_path / "list.txt"
    listed.write_text("\ufeff# chosen by hand\nc\n\nb  # the difficult one\n", encoding="utf-8")
    dataset = open_dataset(root, list_file=listed)
    assert names(dataset) == ["c", "b"]
    assert dataset.samples[0].mask == root / "annotations/training/c.png"
    assert dataset.reduce_zero_label


def test_a_list_of_pairs_is_relative_to_the_root_or_to_itself(tmp_path: Path) -> None:
    root = ade_layout(tmp_path / "data", validation=("a",))
    write_png(tmp_path / "my images/x.png", LABELS)
    listed = tmp_path / "list.txt"
    listed.write_text("images/validation/a.jpg\tannotations/validation/a.png\nmy images/x.png \t my images/x.png\n")
    dataset = open_dataset(root, list_file=listed)
    assert names(dataset) == ["images/validation/a", "my images/x"]
    assert dataset.samples[0].image == root / "images/validation/a.jpg"
    assert dataset.samples[1].mask == tmp_path / "my images/x.png"
    image, mask = (
        tmp_path.parent / f"{tmp_path.name}{end}.png" for end in ("i", "m")
    )  # whole paths, of neither folder
    write_png(image, LABELS)
    write_png(mask, LABELS)
    (elsewhere := tmp_path / "whole.txt").write_text(f"{image}\t{mask}\n")
    assert [(each.image, each.mask) for each in open_dataset(root, list_file=elsewhere).samples] == [(image, mask)]
    assert not dataset.reduce_zero_label
    assert open_dataset(root, list_file=listed, reduce_zero_label=True).reduce_zero_label
    assert {each.ignore_index for each in (dataset, open_dataset(root, list_file=listed), open_dataset(root))} == {255}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("# nothing\n", "the list is empty"),
        ("a\nmissing\n", "line 2: 'missing' is in no split"),
        ("both\n", "line 1: 'both' is in .*training.*validation"),
        ("a\n\n# again\na\n", "line 4: 'a' is on line 1 too"),
        ("nomask\n", "line 1: 'nomask' has no mask"),
        ("a\na b\n", "line 2: expected one name or 'image mask'"),
        ("a b c\n", "line 1: expected .* found 3 fields"),
        ("images/validation/a.jpg no.png\n", "line 1: there is no file 'no.png'"),
        ("images/validation annotations/validation/a.png\n", "line 1: there is no file 'images/validation'"),
    ],
)
def test_a_bad_list_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    ade_layout(tmp_path, validation=("a", "both", "nomask"), training=("both",))
    (tmp_path / "annotations/validation/nomask.png").unlink()
    listed = tmp_path / "list.txt"
    listed.write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path, list_file=listed)


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="list cannot be read"):
        open_dataset(tmp_path, list_file=tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="list cannot be read"):
        open_dataset(tmp_path, list_file=tmp_path / "binary.txt")


# Options


def test_options_choose_the_form(tmp_path: Path) -> None:
    root = ade_layout(tmp_path / "data", validation=("a", "b"))
    images, masks = root / "images/validation", root / "annotations/validation"
    listed = tmp_path / "list.txt"
    listed.write_text("a\n")

    both = tuple(Sample(name, images / f"{name}.jpg", masks / f"{name}.png") for name in "ab")
    assert open_dataset(root) == Dataset(both, reduce_zero_label=True)
    assert open_dataset(root, reduce_zero_label=False) == Dataset(both)
    assert open_dataset(images, masks=masks, ignore_index=7) == Dataset(both, ignore_index=7)
    assert open_dataset(images, masks=masks, reduce_zero_label=True).reduce_zero_label
    assert not open_dataset(images, masks=masks).reduce_zero_label
    assert open_dataset(root, list_file=listed) == Dataset(both[:1], reduce_zero_label=True)
    with pytest.raises(DatasetError, match="exclude each other"):
        open_dataset(images, masks=masks, list_file=listed)


# Masks


def test_zero_is_reduced_as_mmsegmentation_does(oracle: Path, tmp_path: Path) -> None:
    arrays = np.load(oracle / "iou_metric.npz")
    for i in range(3):
        dataset, sample = mask_of(write_png(tmp_path / f"{i}.png", arrays[f"raw_label_{i}"]), reduce_zero_label=True)
        truth = dataset.read_mask(sample, 7)
        assert truth.dtype == np.uint8
        np.testing.assert_array_equal(truth, arrays[f"label_{i}"])


@pytest.mark.parametrize(
    ("reduce", "ignored", "expected"),
    [
        (False, 255, [[0, 1, 2], [3, 3, 255]]),
        (True, 255, [[255, 0, 1], [2, 2, 255]]),
    ],
)
def test_the_depth_of_the_file_changes_nothing(
    tmp_path: Path, reduce: bool, ignored: int, expected: list[list[int]]
) -> None:
    for dtype in (np.uint8, np.uint16):
        dataset, sample = mask_of(write_png(tmp_path / "m.png", LABELS.astype(dtype)), reduce, ignored)
        np.testing.assert_array_equal(dataset.read_mask(sample, 4), np.array(expected, np.uint8), strict=True)


def test_another_label_can_be_ignored(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", np.array([[0, 1, 9]], np.uint8))
    np.testing.assert_array_equal(Dataset(*_with(path, 9)).read_mask(Sample("a", path, path), 2), [[0, 1, 255]])
    np.testing.assert_array_equal(Dataset(*_with(path, 0)).read_mask(Sample("a", path, path), 10), [[255, 1, 9]])


def _with(path: Path, ignore_index: int) -> tuple[tuple[Sample, ...], bool, int]:
    return (Sample("a", path, path),), False, ignore_index


def test_many_classes_give_sixteen_bits(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", np.array([[0, 255, 299, 65535]], np.uint16))
    dataset, sample = mask_of(path, ignore_index=65535)
    np.testing.assert_array_equal(
        dataset.read_mask(sample, 300), np.array([[0, 255, 299, 65535]], np.uint16), strict=True
    )
    for classes, kind, ignored in ((255, np.uint8, 255), (256, np.uint16, 65535)):
        few, sample = mask_of(write_png(tmp_path / "few.png", np.array([[0, 254, ignored]], np.uint16)), False, ignored)
        expected = np.array([[0, 254, ignored]], kind)
        np.testing.assert_array_equal(few.read_mask(sample, classes), expected, strict=True)
    dataset, sample = mask_of(path)
    with pytest.raises(DatasetError, match="255 is a class too"):
        dataset.read_mask(sample, 256)
    with pytest.raises(DatasetError, match="255 is a class too") as caught:
        dataset.read_mask(sample, 300)
    assert "--ignore-index 65535" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("labels", "reduce", "ignored", "message", "remedy"),
    [
        ([0, 150], False, 255, "labels 150 are outside 0..149", "--reduce-zero-label"),
        ([0, 200], False, 255, "labels 200 are outside 0..149", "--ignore-index 200"),
        ([0, 255], False, 0, "labels 255 are outside 0..149", "--ignore-index 255"),
        ([0, 151, 160], True, 255, "labels 151, 160 are outside 1..150", "bundle"),
        (list(range(151, 156)), True, 255, "labels 151, 152, 153, 154, 155 are outside", "bundle"),
        (list(range(151, 160)), True, 255, "labels 151, 152, 153, 154, 155, … are outside", "bundle"),
    ],
)
def test_labels_outside_the_classes_name_the_file_and_the_remedy(
    tmp_path: Path, labels: list[int], reduce: bool, ignored: int, message: str, remedy: str
) -> None:
    dataset, sample = mask_of(write_png(tmp_path / "m.png", np.array([labels], np.uint8)), reduce, ignored)
    with pytest.raises(DatasetError) as caught:
        dataset.read_mask(sample, 150)
    assert str(sample.mask) in caught.value.message
    assert message in caught.value.message
    assert remedy in str(caught.value.remedy)


def test_an_indexed_mask_gives_its_indices(tmp_path: Path) -> None:
    """OpenCV alone would give the colours of the palette."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, (7, 13), dtype=np.uint8)
    path = tmp_path / "m.png"
    path.write_bytes(encode_palette_png(labels, rng.integers(0, 256, (20, 3)).tolist()))
    dataset, sample = mask_of(path)
    np.testing.assert_array_equal(dataset.read_mask(sample, 20), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_masks_of_few_bits_keep_their_labels(tmp_path: Path, bits: int, colour_type: int) -> None:
    """Written here bit by bit: OpenCV would spread 0..3 over 0, 85, 170, 255."""
    labels = np.arange(2**bits, dtype=np.uint8).repeat(8 // bits)[None]  # whole bytes
    packed = np.packbits(np.unpackbits(labels[..., None], axis=-1)[..., -bits:].ravel()).tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", labels.size, 1, bits, colour_type, 0, 0, 0)),
        (b"PLTE", np.random.default_rng(0).bytes(3 * 2**bits)),
        (b"tRNS", b"\0" * (2 if colour_type == 0 else 1)),
        (b"IDAT", zlib.compress(b"\0" + packed)),
        (b"IEND", b""),
    ]
    path = tmp_path / "m.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )
    dataset, sample = mask_of(path)
    np.testing.assert_array_equal(dataset.read_mask(sample, 16), labels)


def test_colour_masks_are_refused(tmp_path: Path) -> None:
    dataset, sample = mask_of(write_png(tmp_path / "m.png", np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(DatasetError, match=r"m\.png: the mask holds colours") as caught:
        dataset.read_mask(sample, 4)
    assert "indexed" in str(caught.value.remedy)


def test_damaged_masks_are_refused(tmp_path: Path) -> None:
    whole = write_png(tmp_path / "m.png", np.random.default_rng(0).integers(0, 4, (64, 64), np.uint8)).read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    for content in (b"", b"GIF89a", whole[:-20], whole[: len(whole) // 2], bytes(broken)):
        (tmp_path / "m.png").write_bytes(content)
        dataset, sample = mask_of(tmp_path / "m.png")
        reason = "cannot be decoded|damaged" if len(content) == len(whole) else "not a PNG file, or is cut short"
        with pytest.raises(ImageError, match=rf"m\.png: .*({reason})"):
            dataset.read_mask(sample, 4)
    dataset, sample = mask_of(tmp_path / "none.png")
    with pytest.raises(ImageError, match="no such file"):
        dataset.read_mask(sample, 4)


# The sample data


def test_a_mask_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """One bit of its height; the rest would decode to a mask of another size."""
    path = tmp_path / "m.png"
    cv2.imwrite(str(path), np.zeros((30, 40), np.uint8))
    whole = path.read_bytes()
    for damaged in (whole[:23] + bytes([whole[23] ^ 8]) + whole[24:], whole[:8] + whole[-12:], whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(ImageError):
            open_dataset(tmp_path, masks=tmp_path).read_mask(Sample("m", path, path), 3)


def test_the_street_lists_are_found(shared: Path) -> None:
    street = shared / "data/street"
    dataset = open_dataset(street, list_file=street / "val100.txt")
    assert (len(dataset), dataset.reduce_zero_label) == (100, True)
    assert names(dataset) == (street / "val100.txt").read_text().split()
    assert len(open_dataset(street, list_file=street / "train160.txt")) == 160
    assert len(open_dataset(street)) == 100
    assert dataset.read_mask(dataset.samples[0], 150).shape == (360, 480)


def test_ade20k_gives_the_areas_mmsegmentation_measured(shared: Path) -> None:
    """The masks that mmsegmentation predicted, against the truth read here."""
    data = shared / "data"
    results = json.loads((data / "reference.json").read_text())
    for prefix, checkpoint in (("A", "dpt_deit-s16_street.pth"), ("B", "dpt_tiny_street.pth")):
        expected = results[checkpoint]["results"]["ade3_single"]
        dataset = open_dataset(data / "ade20k_val")
        matrix = ConfusionMatrix(150)
        for sample in dataset.samples:
            pred = cv2.imread(str(data / f"masks/{prefix}_{sample.name}.png"), cv2.IMREAD_UNCHANGED)
            matrix.update(dataset.read_mask(sample, 150), pred)
        found = {"intersect": matrix.intersect, "union": matrix.union, "label": matrix.label}
        found["pred"] = matrix.union + matrix.intersect - matrix.label
        for area, total in expected["totals"].items():
            np.testing.assert_array_equal(found[area], total, area)
        assert round(matrix.scores([""] * 150).mIoU, 2) == expected["summary"]["mIoU"]


def test_a_folder_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none: no such folder\n  Check the path"):
        open_dataset(tmp_path / "none")

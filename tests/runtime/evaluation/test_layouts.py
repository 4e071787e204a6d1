"""Data sets as people lay them out: which rule finds them, and what is ambiguous or missing is named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from denseport.runtime.errors import DatasetError
from denseport.runtime.evaluation.dataset import Dataset, open_dataset
from denseport.runtime.evaluation.layouts import LAYOUTS, some


def files(root: Path, *names: str) -> Path:
    """Masks as PNGs of one label, and whatever else as empty files."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            cv2.imwrite(str(path), np.zeros((2, 2), np.uint8))
        else:
            path.touch()
    return root


def pairs(dataset: Dataset, root: Path) -> list[tuple[str, str, str]]:
    return [
        (s.name, s.image.relative_to(root).as_posix(), s.mask.relative_to(root).as_posix()) for s in dataset.samples
    ]


CITY = "frankfurt/frankfurt_000000_000294"


@pytest.mark.parametrize(
    ("image", "mask", "name", "rule"),
    [
        ("images/validation/a.jpg", "annotations/validation/a.png", "a", "split validation of the layout ADE20K"),
        ("img_dir/val/a.jpg", "ann_dir/val/a.png", "a", "split val of the layout mmsegmentation"),
        ("images/a.jpeg", "masks/a.png", "a", "the layout images and masks, without splits"),
        ("images/val/a.tif", "masks/val/a.png", "a", "split val of the layout images and masks"),
        ("images/val/a.JPG", "labels/validation/a.png", "a", "split val of the layout images and labels"),
        ("img_dir/val/x/a.jpg", "ann_dir/val/x/a.png", "x/a", "split val of the layout mmsegmentation"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png", "a", "the layout Pascal VOC, without splits"),
        (
            f"leftImg8bit/val/{CITY}_leftImg8bit.png",
            f"gtFine/val/{CITY}_gtFine_labelTrainIds.png",
            CITY,
            "split val of the layout Cityscapes",
        ),
    ],
)
def test_the_layouts_that_people_have_are_found(tmp_path: Path, image: str, mask: str, name: str, rule: str) -> None:
    files(tmp_path, image, mask)
    dataset = open_dataset(tmp_path)
    assert pairs(dataset, tmp_path) == [(name, image, mask)]
    images, masks = (tmp_path / each.removesuffix(f"/{Path(each).name}") for each in (image, mask))
    folders = [each.parent if "/" in name else each for each in (images, masks)]
    assert dataset.found == f"1 image of {folders[0]} with masks of {folders[1]}; {rule}"
    assert dataset.reduce_zero_label == ("ADE20K" in rule), "whose masks alone count from 1"


def test_cityscapes_other_files_are_no_masks(tmp_path: Path) -> None:
    ends = ("color.png", "labelIds.png", "instanceIds.png", "polygons.json", "labelTrainIds.png")
    files(tmp_path, f"leftImg8bit/val/{CITY}_leftImg8bit.png", *(f"gtFine/val/{CITY}_gtFine_{end}" for end in ends))
    assert open_dataset(tmp_path).samples[0].mask.name.endswith("_gtFine_labelTrainIds.png")
    chosen = open_dataset(tmp_path, mask_suffix="_gtFine_labelIds.png")
    assert chosen.samples[0].mask.name.endswith("_gtFine_labelIds.png")
    two = open_dataset(
        tmp_path / "leftImg8bit/val",
        masks=tmp_path / "gtFine/val",
        image_suffix="_leftImg8bit.png",
        mask_suffix="_gtFine_color.png",
    )
    assert [sample.name for sample in two.samples] == [CITY]
    (tmp_path / f"gtFine/val/{CITY}_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(DatasetError, match=r"no PNG masks whose names end in _gtFine_labelTrainIds\.png"):
        open_dataset(tmp_path)


def test_splits_are_chosen_by_either_of_their_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        files(tmp_path, f"images/{split}/{split}.jpg", f"masks/{split}/{split}.png")
    for split, default, name in (
        (None, "validation", "val"),
        ("validation", "validation", "val"),
        ("training", "validation", "train"),
        (None, "training", "train"),
    ):
        assert open_dataset(tmp_path, split=split, default_split=default).samples[0].name == name
    with pytest.raises(DatasetError, match="images/test: there is no such folder"):
        open_dataset(tmp_path, split="test")
    with pytest.raises(DatasetError, match=r"has no split 'test'; it has train, val\n  Name one with --split"):
        open_dataset(tmp_path, default_split="test")


def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    both = files(tmp_path / "both", "images/a.jpg", "masks/a.png", "labels/a.png")
    with pytest.raises(
        DatasetError, match=r"can be read in 2 ways: .*both/images and masks/; .*both/images and labels/"
    ):
        open_dataset(both)
    loose = files(tmp_path / "loose", "images/a.jpg", "masks/a.png", "images/val/b.jpg", "masks/val/b.png")
    with pytest.raises(DatasetError, match=r"holds .*images/val/ and images in .*images/ itself"):
        open_dataset(loose)
    assert [sample.name for sample in open_dataset(loose, split="val").samples] == ["b"]
    twice = files(
        tmp_path / "twice",
        *(f"{kind}/{split}/a.png" for kind in ("images", "masks") for split in ("val", "validation")),
    )
    with pytest.raises(DatasetError, match=r"images/validation/ and .*images/val/\n  Name one with --split"):
        open_dataset(twice)


def test_a_folder_of_no_layout_names_them_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert all(f"{each.images}/ and {each.masks}/" in caught.value.message for each in LAYOUTS)


def test_an_image_without_a_mask_names_it_and_the_suffix_that_would_pair(tmp_path: Path) -> None:
    root = files(tmp_path, "images/a.jpg", "images/ab.jpg", "masks/a_mask.png", "masks/ab_mask.png")
    with pytest.raises(DatasetError, match=r"2 of 2 images have no mask \(such as a, ab\)") as caught:
        open_dataset(root)
    assert caught.value.remedy == "If a_mask.png belongs to a, add --mask-suffix _mask.png."
    assert [sample.name for sample in open_dataset(root, mask_suffix="_mask.png").samples] == ["a", "ab"]
    (root / "masks/ab_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 images have no mask \(such as ab\)"):
        open_dataset(root, mask_suffix="_mask.png")


def test_masks_may_lie_beside_their_images_or_below(tmp_path: Path) -> None:
    beside = files(tmp_path / "beside", "a.png", "a_mask.png", "b.jpg", "b_mask.png")
    found = open_dataset(beside, masks=beside, mask_suffix="_mask.png")
    assert [(s.image.name, s.mask.name) for s in found.samples] == [("a.png", "a_mask.png"), ("b.jpg", "b_mask.png")]
    below = files(tmp_path / "below", "a.png", "masks/a.png")
    assert pairs(open_dataset(below, masks=below / "masks"), below) == [("a", "a.png", "masks/a.png")]


@pytest.mark.parametrize("suffixes", [{"mask_suffix": "_mask"}, {"mask_suffix": "_mask.jpg"}, {"image_suffix": ".txt"}])
def test_a_suffix_ends_as_such_files_do(tmp_path: Path, suffixes: dict[str, str]) -> None:
    root = files(tmp_path, "images/a.jpg", "masks/a.png")
    with pytest.raises(DatasetError, match="does not end in"):
        open_dataset(root, **suffixes)  # type: ignore[arg-type]


def test_hidden_files_and_folders_are_nobodys(tmp_path: Path) -> None:
    root = files(tmp_path, "images/a.jpg", "masks/a.png", "images/.b.jpg", "images/.cache/c.jpg", "masks/._a.png")
    assert [sample.name for sample in open_dataset(root).samples] == ["a"]


def test_endings_are_read_in_either_case_and_name_what_is_missing(tmp_path: Path) -> None:
    root = files(tmp_path, "images/a_X.JPG", "images/b.jpg", "masks/a_Y.PNG", "masks/b.png", "masks/c_Y.txt")
    chosen = open_dataset(root, image_suffix="_x.jpg", mask_suffix="_y.png")
    assert pairs(chosen, root) == [("a", "images/a_X.JPG", "masks/a_Y.PNG")]
    for options, words in (
        ({"image_suffix": "_z.jpg"}, r"images: there are no images whose names end in _z\.jpg\n"),
        ({"mask_suffix": "_z.png"}, r"masks: there are no PNG masks whose names end in _z\.png\n"),
    ):
        with pytest.raises(DatasetError, match=words):
            open_dataset(root, **options)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"empty: there are no images\n"):
        open_dataset(files(tmp_path / "empty", "notes.txt"), masks=root / "masks")
    with pytest.raises(DatasetError, match=r"empty: there are no PNG masks\n"):
        open_dataset(root / "images", masks=tmp_path / "empty")


def test_a_message_spells_out_five(tmp_path: Path) -> None:
    assert (some("abcde"), some("abcdef"), some([])) == ("a, b, c, d, e", "a, b, c, d, e, …", "")


# Lists


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg\n'b b.jpg' c.png d.png\n", "line 1: 'a.jpg' is in no split"),
        (
            "images/a.jpg masks/a.png\n'images/a.jpg' masks/a.png x\n",
            "line 2: expected one name or 'image mask'.* 3 fields",
        ),
        ("images/a.jpg masks/a.png\nb\n", "line 2: expected one name or 'image mask'.* 1 fields"),
        ("a\nimages/a.jpg masks/a.png\n", "line 2: expected one name or 'image mask'.* 2 fields"),
        ("images/a.jpg masks/none.png\n", "line 1: there is no file 'masks/none.png' in .* or beside the list"),
    ],
)
def test_lines_are_all_of_one_kind(tmp_path: Path, text: str, words: str) -> None:
    root = files(tmp_path / "data", "images/a.jpg", "masks/a.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DatasetError, match=words):
        open_dataset(root, list_file=tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("my images/x 1.jpg my masks/x 1.png", "my images/x 1.jpg"),
        ('"my images/x 1.jpg" "my masks/x 1.png"', "my images/x 1.jpg"),
        ("'my images/x 1.jpg'   'my masks/x 1.png' # one", "my images/x 1.jpg"),
        ("my images/x 1.jpg\tmy masks/x 1.png\t# one", "my images/x 1.jpg"),
        ("my images/l'an.jpg\tmy masks/l'an.png", "my images/l'an.jpg"),
        ("'my images/#2.jpg' 'my masks/#2.png'", "my images/#2.jpg"),
        ('"my images/x #3.jpg" "my masks/x #3.png"#', "my images/x #3.jpg"),
    ],
)
def test_blanks_in_a_list_are_read_by_one_rule(tmp_path: Path, line: str, image: str) -> None:
    root = files(tmp_path, image, image.replace("images", "masks").replace(".jpg", ".png"))
    (tmp_path / "list.txt").write_text(f"\n  # chosen\n\n{line}\n   \n")
    found = open_dataset(root, list_file=tmp_path / "list.txt")
    assert [sample.image for sample in found.samples] == [root / image]
    assert found.found == f"1 image of {tmp_path / 'list.txt'}; pairs of a list"


def test_a_line_of_two_meanings_wants_quotes(tmp_path: Path) -> None:
    root = files(tmp_path, "a", "b c", "a b", "c")
    (tmp_path / "list.txt").write_text("a b c\n")
    with pytest.raises(
        DatasetError, match=r"line 1: names 2 different pairs of files\n  Put paths that hold blanks in quotes"
    ):
        open_dataset(root, list_file=tmp_path / "list.txt")


def test_names_of_a_list_are_those_of_any_layout(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        *(f"leftImg8bit/{split}/{CITY}{end}_leftImg8bit.png" for split, end in (("val", ""), ("train", "t"))),
        *(f"gtFine/{split}/{CITY}{end}_gtFine_labelTrainIds.png" for split, end in (("val", ""), ("train", "t"))),
    )
    (tmp_path / "list.txt").write_text(f"{CITY}t\n{CITY}\n")
    found = open_dataset(root, list_file=tmp_path / "list.txt")
    assert [sample.name for sample in found.samples] == [f"{CITY}t", CITY]
    assert found.samples[0].mask == root / f"gtFine/train/{CITY}t_gtFine_labelTrainIds.png"
    assert found.found.endswith("names of a list in the layout Cityscapes")
    blanks = files(tmp_path / "blanks", "images/val/my cat.jpg", "images/val/dog.jpg", "masks/val/my cat.png")
    for text in ("my cat\n", '"my cat"\n', "my cat # the difficult one\n"):
        (tmp_path / "list.txt").write_text(text)
        assert pairs(open_dataset(blanks, list_file=tmp_path / "list.txt"), blanks)[0][0] == "my cat"
    (tmp_path / "list.txt").write_text("my cat\ndog\n")
    with pytest.raises(DatasetError, match="line 2: 'dog' has no mask"):
        open_dataset(blanks, list_file=tmp_path / "list.txt")

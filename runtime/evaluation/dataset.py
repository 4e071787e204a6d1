"""Data sets: images with label masks, found on disk in one of three forms.

- the ADEChallengeData2016 layout: ``images/<split>/*.jpg`` with ``annotations/<split>/*.png``;
- two folders, images and masks of the same name;
- a text file that lists names of the first form, or pairs of paths.

A mask is a PNG of one channel, grey or indexed, whose stored values are the labels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from denseport.runtime.errors import DatasetError, ImageError
from denseport.runtime.evaluation.metrics import LabelMap
from denseport.runtime.media.images import PNG_SIGNATURE, is_cut_short, reading
from denseport.runtime.media.inputs import IMAGE_SUFFIXES
from denseport.runtime.system.arguments import whole

__all__ = ["Dataset", "Sample", "open_dataset"]

MASK_SUFFIXES = frozenset({".png"})

_ADE_FOLDER = "ADEChallengeData2016"
_PNG_HEADER = 33  # bytes: the signature, and IHDR with its length and checksum
_PNG_GREY, _PNG_INDEXED = 0, 3  # colour types
_SHOWN = 5  # names or labels that a message spells out


@dataclass(frozen=True)
class Sample:
    """An image and its mask."""

    name: str  # unique in its data set
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """Images with masks, and how the values in the mask files are meant."""

    samples: tuple[Sample, ...]
    reduce_zero_label: bool = False  # 0 is ignored and k is class k - 1, as in ADE20K
    ignore_index: int = 255  # the value in the mask files that marks pixels to ignore

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError("the data set is empty", "Name a folder or a list that holds images with masks.")
        object.__setattr__(self, "ignore_index", whole("ignore_index", self.ignore_index, 0, 65535))
        if self.reduce_zero_label not in (False, True):
            raise DatasetError(f"reduce_zero_label cannot be {self.reduce_zero_label!r}", "Give True or False.")
        object.__setattr__(self, "reduce_zero_label", bool(self.reduce_zero_label))  # numpy's too

    def __len__(self) -> int:
        return len(self.samples)

    def read_mask(self, sample: Sample, n_classes: int) -> LabelMap:
        """The truth of a sample.

        Returns:
            (H, W) class indices: uint8 with 255 for pixels to ignore or, with more than 255 classes,
            uint16 with 65535. ``reduce_zero_label`` is applied as in mmsegmentation's LoadAnnotations
            (0 -> ignored, k -> k - 1, 255 -> ignored).

        Raises:
            ImageError: the file cannot be read.
            DatasetError: it holds colours, or labels that are no class.
        """
        if n_classes > 255 and self.ignore_index == 255:
            raise DatasetError(
                f"with {n_classes} classes the ignored label 255 is a class too",
                "Give the value that the masks use, such as --ignore-index 65535.",
            )
        stored = _read_stored_labels(sample.mask)
        classes = np.arange(np.iinfo(stored.dtype).max + 1) - self.reduce_zero_label
        known = (classes >= 0) & (classes < n_classes)
        is_ignored = np.zeros_like(known)
        is_ignored[self.ignore_index : self.ignore_index + 1] = True  # an 8-bit mask may not reach it
        is_ignored[0] |= self.reduce_zero_label

        wrong = ~(known | is_ignored)[stored]
        if wrong.any():
            raise self._label_error(sample, np.unique(stored[wrong]).tolist(), n_classes)
        dtype = np.uint8 if n_classes <= 255 else np.uint16
        table = np.where(is_ignored, np.iinfo(dtype).max, classes).astype(dtype)
        return cast(LabelMap, table[stored])

    def _label_error(self, sample: Sample, labels: list[int], n_classes: int) -> DatasetError:
        first = int(self.reduce_zero_label)
        expected = f"{first}..{n_classes - 1 + first}"
        remedy = "Use the bundle that was trained for these labels, or masks of its classes."
        if labels == [n_classes] and not self.reduce_zero_label:
            remedy = "If 0 means unlabelled, as in ADE20K, add --reduce-zero-label."
        elif len(labels) == 1:
            remedy = f"If {labels[0]} marks pixels to ignore, add --ignore-index {labels[0]}."
        return DatasetError(f"{sample.mask}: labels {_some(labels)} are outside {expected}", remedy)


def open_dataset(
    data: Path | str,
    *,
    masks: Path | str | None = None,
    list_file: Path | str | None = None,
    split: str | None = None,
    reduce_zero_label: bool | None = None,
    ignore_index: int = 255,
) -> Dataset:
    """The data set that the options of ``denseport eval`` name.

    Args:
        data: the ADEChallengeData2016 folder or the one that holds it; with ``masks``, the folder of images; with
            ``list_file``, what its paths are relative to.
        masks: folder of PNG masks that have the names of the images; sub-folders of either are not searched.
        list_file: text, ``#`` starts a comment. Each line is a file name without its suffix, looked up in every split
            of the ADEChallengeData2016 layout; or each is an image and its mask, two paths parted by a tab or blanks,
            relative to ``data`` or to the list's own folder. The samples keep its order.
        split: of the ADEChallengeData2016 layout; default: validation.
        reduce_zero_label: None is what the form implies: True for the ADE20K layout, also through a list
            of its names, and False for a folder pair or a list of pairs.

    Raises:
        DatasetError: a file or folder that is missing, or that has no partner; of a list, with the line's number.
    """
    data = Path(data)
    if masks is not None and list_file is not None:
        raise DatasetError("a folder of masks and a list file exclude each other", "Give one of the two.")
    if split is not None and (masks is not None or list_file is not None):
        raise DatasetError(f"--split {split} is of the ADE20K layout, without --masks or --list", "Leave it out.")
    split = split or "validation"
    try:
        if list_file is not None:
            samples, is_ade = _listed(Path(list_file), data)
        elif masks is not None:
            samples, is_ade = _paired(data, Path(masks)), False
        else:
            root = _ade_root(data)
            samples, is_ade = _paired(root / "images" / split, root / "annotations" / split), True
    except OSError as err:
        raise DatasetError(f"{err.filename}: cannot be searched: {err.strerror}", "Check its permissions.") from err
    return Dataset(tuple(samples), is_ade if reduce_zero_label is None else reduce_zero_label, ignore_index)


def _paired(images: Path, masks: Path) -> list[Sample]:
    """The images of one folder and the PNG masks of the same names in another."""
    image_of, mask_of = _by_stem(images, IMAGE_SUFFIXES), _by_stem(masks, MASK_SUFFIXES)
    for folder, found, kind in ((images, image_of, "images"), (masks, mask_of, "PNG masks")):
        if not found:
            raise DatasetError(f"{folder}: there are no {kind}", "Check the path; sub-folders are not searched.")
    alone = []
    for words, files, partners in (
        ("images have no mask", image_of, mask_of),
        ("masks have no image", mask_of, image_of),
    ):
        if names := files.keys() - partners.keys():
            alone.append(f"{len(names)} of {len(files)} {words} (such as {_some(sorted(names))})")
    if alone:
        raise DatasetError(
            f"{images} and {masks}: {'; '.join(alone)}",
            "Give each image a PNG mask of the same name, or list the pairs in a file.",
        )
    return [Sample(stem, image_of[stem], mask_of[stem]) for stem in sorted(image_of)]


def _listed(path: Path, root: Path) -> tuple[list[Sample], bool]:
    """The samples that a text file lists, and whether they are names of the ADEChallengeData2016 layout."""
    lines = dict(_lines(path))
    if not lines:
        raise DatasetError(f"{path}: the list is empty", "Name one image a line, or an image and its mask.")
    width = len(next(iter(lines.values())))
    for number, fields in lines.items():
        if len(fields) != width or width > 2:
            raise DatasetError(
                f"{path}, line {number}: expected one name or 'image mask', the same on all "
                f"lines, found {len(fields)} fields",
                "Separate paths that hold blanks by a tab.",
            )
    if width == 1:
        found = _find_names(path, _ade_root(root), lines)
    else:
        found = _find_pairs(path, (root, path.parent), lines)
    line_of: dict[str, int] = {}
    for number, sample in zip(lines, found, strict=True):
        first = line_of.setdefault(sample.name, number)
        if first != number:
            raise DatasetError(
                f"{path}, line {number}: {sample.name!r} is on line {first} too", "Remove one of the two lines."
            )
    return found, width == 1


def _ade_root(root: Path) -> Path:
    for folder in (root, root / _ADE_FOLDER):
        if (folder / "images").is_dir() and (folder / "annotations").is_dir():
            return folder
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder", "Check the path.")
    raise DatasetError(
        f"{root}: no folders images/ and annotations/ here or in {_ADE_FOLDER}/",
        f"Name the {_ADE_FOLDER} folder, or give the images as the data and the masks with --masks.",
    )


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Files of a folder by name without suffix; hidden files are left out."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder", "Check the path.")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        if file.stem in found:
            raise DatasetError(
                f"{folder}: {found[file.stem].name} and {file.name} have the same name", "Keep one of the two."
            )
        found[file.stem] = file
    return found


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise DatasetError(
            f"{path}: the list cannot be read: {err}", "Name a text file in UTF-8 that you may read."
        ) from err
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if line:
            yield number, re.split(r"\s*\t\s*" if "\t" in line else r"\s+", line)


def _find_names(path: Path, root: Path, lines: Mapping[int, list[str]]) -> list[Sample]:
    images, found = root / "images", []
    of_name: dict[str, list[Path]] = {}
    for folder in (images, *sorted(entry for entry in images.iterdir() if entry.is_dir())):
        for stem, file in _by_stem(folder, IMAGE_SUFFIXES).items():
            of_name.setdefault(stem, []).append(file)
    for number, (name,) in lines.items():
        files = of_name.get(name, [])
        if len(files) != 1:
            where = f"is in {_some(files)}" if files else f"is in no split of {images}"
            raise DatasetError(
                f"{path}, line {number}: {name!r} {where}",
                "A line is a name without suffix, or 'image mask'.",
            )
        mask = root / "annotations" / files[0].parent.relative_to(images) / f"{name}.png"
        if not mask.is_file():
            raise DatasetError(f"{path}, line {number}: {name!r} has no mask {mask}", "Add the mask, or drop the line.")
        found.append(Sample(name, files[0], mask))
    return found


def _find_pairs(path: Path, bases: tuple[Path, Path], lines: Mapping[int, list[str]]) -> list[Sample]:
    found = []
    for number, fields in lines.items():
        files = [next((base / field for base in bases if (base / field).is_file()), None) for field in fields]
        image, mask = files
        if image is None or mask is None:
            raise DatasetError(
                f"{path}, line {number}: there is no file {fields[files.index(None)]!r} "
                f"in {bases[0]} or beside the list",
                "Give paths below --data, or relative to the list.",
            )
        found.append(Sample(Path(fields[0]).with_suffix("").as_posix(), image, mask))
    return found


def _read_stored_labels(path: Path) -> LabelMap:
    """(H, W) values as the PNG stores them: the indices of an indexed one, not its colours."""
    with reading(path):
        data = path.read_bytes()
    if not data.startswith(PNG_SIGNATURE) or is_cut_short(data):
        raise ImageError(f"{path}: the mask is not a PNG file, or is cut short", "Save it again as a PNG.")
    if len(data) < _PNG_HEADER or struct.unpack_from(">I", data, 29)[0] != zlib.crc32(data[12:29]):
        raise ImageError(f"{path}: the header of the mask is damaged", "Copy or save it again.")
    depth, colour = data[24], data[25]
    if colour not in (_PNG_GREY, _PNG_INDEXED):
        raise DatasetError(
            f"{path}: the mask holds colours; one label per pixel was expected",
            "Save the class indices as a PNG, grey (8 or 16 bits) or indexed.",
        )
    try:
        labels = cv2.imdecode(np.frombuffer(_as_grey_png(data), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as err:
        raise ImageError(f"{path}: the mask cannot be decoded: {err}", "Save it again.") from err
    if labels is None:
        raise ImageError(f"{path}: the mask is damaged", "Copy or save it again.")
    if depth < 8:  # libpng spreads 1, 2 and 4 bits over 0..255
        labels = labels // (255 // (2**depth - 1))
    return cast(LabelMap, labels)


def _as_grey_png(data: bytes) -> bytes:
    """The same samples declared as grey: OpenCV turns an indexed PNG into colours and has no flag against it.

    Only the chunks that hold samples are kept, so a palette or a transparent colour changes nothing.
    """
    # After the signature and a length comes IHDR: its name and 13 bytes, the tenth the colour type.
    header = data[12:25] + bytes([_PNG_GREY]) + data[26:29]
    kept = [PNG_SIGNATURE, struct.pack(">I", 13), header, struct.pack(">I", zlib.crc32(header))]
    start = _PNG_HEADER
    while start + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + length + 12
        if name in (b"IDAT", b"IEND"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _some(items: Iterable[object]) -> str:
    """The first few of a list, in words."""
    named = [str(item) for item in items]
    return ", ".join(named[:_SHOWN]) + (", …" if len(named) > _SHOWN else "")

"""Data sets: images with label masks, found on disk by a layout, in two folders, or by a list.

A mask is a PNG of one channel, grey or indexed, whose stored values are the labels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import DatasetError, ImageError
from denseport.runtime.evaluation.layouts import (
    ADE20K,
    Layout,
    Sample,
    find_layout,
    find_listed,
    find_pairs,
    find_split,
    some,
)
from denseport.runtime.evaluation.metrics import LabelMap
from denseport.runtime.media.images import PNG_SIGNATURE, is_cut_short, reading
from denseport.runtime.system.arguments import required_path, whole

__all__ = ["Dataset", "Sample", "open_dataset", "words_of_map"]

_PNG_HEADER = 33  # bytes: the signature, and IHDR with its length and checksum
_PNG_GREY, _PNG_INDEXED = 0, 3  # colour types
_UNLABELLED = 255  # what mmsegmentation's LoadAnnotations makes of 0, and its label maps of a class that is dropped


@dataclass(frozen=True)
class Dataset:
    """Images with masks, and how the values in the mask files are meant."""

    samples: tuple[Sample, ...]
    reduce_zero_label: bool = False  # 0 is ignored and k is class k - 1, as in ADE20K
    ignore_index: int = 255  # the label that is not counted, once 0 is dropped and the label map applied
    label_map: Mapping[int, int] = field(default_factory=dict)  # applied after 0 is dropped; 255: not counted
    found: str = field(default="", compare=False)  # where the samples are, and which rule found them

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError("the data set is empty", "Name a folder or a list that holds images with masks.")
        object.__setattr__(self, "ignore_index", whole("ignore_index", self.ignore_index, 0, 65535))
        if self.reduce_zero_label not in (False, True):
            raise DatasetError(f"reduce_zero_label cannot be {self.reduce_zero_label!r}", "Give True or False.")
        object.__setattr__(self, "reduce_zero_label", bool(self.reduce_zero_label))  # numpy's too
        pairs = {whole("label_map's label", old, 0, 65535): new for old, new in dict(self.label_map).items()}
        pairs = {old: whole("label_map's class", new, 0, 65535) for old, new in pairs.items()}
        object.__setattr__(self, "label_map", pairs)

    def __len__(self) -> int:
        return len(self.samples)

    def read_mask(self, sample: Sample, n_classes: int) -> LabelMap:
        """The truth of a sample.

        Returns:
            (H, W) class indices: uint8 with 255 for pixels to ignore or, with more than 255 classes, uint16 with
            65535. In this order, as mmsegmentation 1.2.2 does: ``reduce_zero_label`` (0 and 255 are ignored, k becomes
            k - 1) and ``label_map`` (LoadAnnotations), ``ignore_index`` (IoUMetric).

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
        classes, is_ignored = self._classes_of(int(np.iinfo(stored.dtype).max))
        known = (classes >= 0) & (classes < n_classes)
        wrong = ~(known | is_ignored)[stored]
        if wrong.any():
            raise self._label_error(sample, np.unique(stored[wrong]).tolist(), n_classes)
        dtype = np.uint8 if n_classes <= 255 else np.uint16
        table = np.where(is_ignored, np.iinfo(dtype).max, classes).astype(dtype)
        return cast(LabelMap, table[stored])

    def _classes_of(self, largest: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What each stored label from 0 on becomes, and whether it is ignored: both (largest + 1,)."""
        classes, dropped = np.arange(largest + 1), max(_UNLABELLED, self.ignore_index)
        is_ignored = np.zeros(largest + 1, bool)
        if self.reduce_zero_label:
            is_ignored[0] = True
            classes = np.where((classes == 0) | (classes == dropped), dropped, classes - 1)
        before = classes.copy()
        for old, new in self.label_map.items():
            classes[before == old] = new
            is_ignored[before == old] = new == _UNLABELLED
        return classes, is_ignored | (classes == self.ignore_index)

    def _label_error(self, sample: Sample, labels: list[int], n_classes: int) -> DatasetError:
        first = int(self.reduce_zero_label)
        expected = f"{first}..{n_classes - 1 + first}"
        remedy = "Use the bundle that was trained for these labels, or masks of its classes."
        if self.label_map:
            expected += f", once the label map {words_of_map(self.label_map)} is applied"
            remedy += " Masks that need no map: --label-map none."
        elif labels == [n_classes] and n_classes > 2 and not self.reduce_zero_label:  # of two, one would vanish
            remedy = "If 0 means unlabelled, as in ADE20K, add --reduce-zero-label."
        elif len(labels) == 1:
            remedy = f"If {labels[0]} marks pixels to ignore, add --ignore-index {labels[0] - first}."
        return DatasetError(f"{sample.mask}: labels {some(labels)} are outside {expected}", remedy)


def words_of_map(label_map: Mapping[int, int]) -> str:
    """A label map as the option says it; "none" of an empty one."""
    return " ".join(f"{old}:{new}" for old, new in label_map.items()) or "none"


def open_dataset(
    data: Path | str,
    *,
    masks: Path | str | None = None,
    list_file: Path | str | None = None,
    split: str | None = None,
    default_split: str = "validation",
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    reduce_zero_label: bool | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_index: int | None = None,
    manifest: Manifest | None = None,
) -> Dataset:
    """The data set that the options of ``denseport eval`` name; docs/evaluation.md has the layouts.

    Args:
        data: a folder in a known layout; with ``masks``, the folder of images; with ``list_file``, what its paths are
            relative to.
        masks: folder of PNG masks that have the names of the images.
        list_file: text: on each line the name of an image in the layout, without its suffix, or an image and its mask,
            relative to ``data`` or to the list's own folder. The samples keep its order.
        split: of the layout; None: ``default_split`` where there are splits.
        image_suffix, mask_suffix: how the names of images and masks end, such as "_mask.png"; None: as in the layout.
        reduce_zero_label, label_map, ignore_index: as of `Dataset`; None: the manifest's. Without a manifest:
            whether the layout is ADE20K's, no map, and 255.
        manifest: of the model, whose data set says how labels are meant.

    Raises:
        DatasetError: a file or folder that is missing, or that has no partner; of a list, with the line's number;
            a folder that can be read in more than one way.
    """
    data, suffixes = required_path("data", data), (image_suffix, mask_suffix)
    if masks is not None and list_file is not None:
        raise DatasetError("a folder of masks and a list file exclude each other", "Give one of the two.")
    if split is not None and (masks is not None or list_file is not None):
        raise DatasetError(
            f"--split {split} applies to a layout, and does not go with --masks or --list", "Leave it out."
        )
    layout: Layout | None = None
    try:
        if list_file is not None:
            found, layout = find_listed(required_path("list_file", list_file), data, *suffixes)
        elif masks is not None:
            files = Layout("", "", "", image_suffix or "", Layout.mask_suffix if mask_suffix is None else mask_suffix)
            found = find_pairs(data, required_path("masks", masks), files, "two folders")
        else:
            root, layout = find_layout(data, *suffixes)
            found = find_split(root, layout, split, default_split)
    except OSError as err:
        raise DatasetError(f"{err.filename}: cannot be searched: {err.strerror}", "Check its permissions.") from err
    if reduce_zero_label is None:
        is_ade = layout is not None and (layout.images, layout.masks) == (ADE20K.images, ADE20K.masks)
        reduce_zero_label = is_ade if manifest is None else manifest.reduce_zero_label
    if label_map is None:
        label_map = {} if manifest is None else {int(old): new for old, new in manifest.label_map.items()}
    if ignore_index is None:
        ignore_index = 255 if manifest is None else manifest.ignore_index
    return Dataset(tuple(found.samples), reduce_zero_label, ignore_index, label_map, found.words)


def _read_stored_labels(path: Path) -> LabelMap:
    """(H, W) values as the PNG stores them: the indices of an indexed one, not its colours."""
    with reading(path):
        data = path.read_bytes()
    if not data.startswith(PNG_SIGNATURE) or is_cut_short(data):
        raise ImageError(f"{path}: the mask is not a PNG file, or is cut short", "Save it again as a PNG.")
    if data[29:_PNG_HEADER] != zlib.crc32(data[12:29]).to_bytes(4, "big"):
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
    if depth in (1, 2, 4):  # libpng spreads them over 0..255
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
    while len(head := data[start : start + 8]) == 8:
        length, name = struct.unpack(">I4s", head)
        end = start + length + 12
        if name in (b"IDAT", b"IEND"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)

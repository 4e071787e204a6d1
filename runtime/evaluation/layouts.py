"""Images and their masks on disk, found as people lay them out, or as a text file lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from denseport.runtime.errors import DatasetError
from denseport.runtime.media.inputs import IMAGE_SUFFIXES
from denseport.runtime.system.text import count

__all__ = [
    "ADE20K",
    "Found",
    "Layout",
    "ListLine",
    "Sample",
    "files_by_name",
    "find_files",
    "find_layout",
    "find_listed",
    "find_pairs",
    "find_split",
    "read_list",
    "refuse_alone",
    "some",
]

_ADE_FOLDER = "ADEChallengeData2016"
_ALIASES = {"validation": "val", "val": "validation", "training": "train", "train": "training"}
_SHOWN = 5  # names or labels that a message spells out
_OTHERWISE = "Give the folder of images as the data, and the one of masks with --masks."


@dataclass(frozen=True)
class Sample:
    """An image and its mask."""

    name: str  # unique in its data set
    image: Path
    mask: Path


@dataclass(frozen=True)
class Layout:
    """Two folders of a data set, and how its files end."""

    name: str
    images: str
    masks: str
    image_suffix: str = ""  # what follows the name; empty: any format of images
    mask_suffix: str = ".png"

    def __post_init__(self) -> None:
        ends = (("--image-suffix", self.image_suffix, IMAGE_SUFFIXES), ("--mask-suffix", self.mask_suffix, {".png"}))
        for option, suffix, known in ends:
            if suffix and Path(f"x{suffix}").suffix.lower() not in known:
                raise DatasetError(
                    f"{option} {suffix!r}: does not end in {' or '.join(sorted(known))}",
                    f"Give all that follows the name, such as {option} _x{min(known)}.",
                )


ADE20K = Layout("ADE20K", "images", "annotations")
LAYOUTS = (
    ADE20K,
    Layout("mmsegmentation", "img_dir", "ann_dir"),
    Layout("images and masks", "images", "masks"),
    Layout("images and labels", "images", "labels"),
    Layout("Cityscapes", "leftImg8bit", "gtFine", "_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
    Layout("Pascal VOC", "JPEGImages", "SegmentationClass"),
)


@dataclass(frozen=True)
class Found:
    """Samples, and in words where and by which rule."""

    samples: list[Sample]
    words: str


def find_layout(root: Path, image_suffix: str | None, mask_suffix: str | None) -> tuple[Path, Layout]:
    """The folder that holds the two folders of a layout, and which that is.

    Args:
        image_suffix, mask_suffix: instead of the layout's.

    Raises:
        DatasetError: there is none, or more than one.
    """
    found = _ways(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder", "Check the path.")
    if not found:
        names = "; ".join(f"{each.images}/ and {each.masks}/" for each in LAYOUTS)
        raise DatasetError(
            f"{root}: has no two folders of one of these names, here or in {_ADE_FOLDER}/: {names}", _OTHERWISE
        )
    if len(found) > 1:
        names = "; ".join(f"{folder / each.images} and {each.masks}/" for folder, each in found)
        raise DatasetError(f"{root}: can be read in {len(found)} ways: {names}", _OTHERWISE)
    (folder, layout), given = found[0], {"image_suffix": image_suffix, "mask_suffix": mask_suffix}
    return folder, replace(layout, **{name: value for name, value in given.items() if value is not None})


def _ways(root: Path) -> list[tuple[Path, Layout]]:
    """The layouts of the folder or, where it has none, of ADE20K's folder in it."""
    for folder in (root, root / _ADE_FOLDER):
        if found := [each for each in LAYOUTS if (folder / each.images).is_dir() and (folder / each.masks).is_dir()]:
            return [(folder, each) for each in found]
    return []


def find_split(root: Path, layout: Layout, split: str | None, default: str) -> Found:
    """The samples of a split or, where there are no splits, all.

    Args:
        split: None: the default, by whichever of its names is there (``validation`` or ``val``).

    Raises:
        DatasetError: no such split, several, or what has no partner.
    """
    images, masks = root / layout.images, root / layout.masks
    if split is not None:
        name = next((each for each in _names(split) if (images / each).is_dir()), split)
        return find_pairs(images / name, _folder_of(masks, name), layout, f"split {name} of the layout {layout.name}")
    there = [each for each in _names(default) if (images / each).is_dir()]
    loose = bool(_files(images, layout.image_suffix))
    if len(there) + loose > 1:
        ways = [f"{images / each}/" for each in there] + [f"images in {images}/ itself"] * loose
        raise DatasetError(f"{root}: holds {' and '.join(ways)}", "Name one with --split, or give --data and --masks.")
    if there:
        return find_split(root, layout, there[0], default)
    folders = [each.name for each in _folders(images)]
    if folders and not loose:
        raise DatasetError(f"{images}: has no split {default!r}; it has {some(folders)}", "Name one with --split.")
    return find_pairs(images, masks, layout, f"the layout {layout.name}, without splits")


def _names(split: str) -> list[str]:
    return [split, *([_ALIASES[split]] if split in _ALIASES else [])]


def _folder_of(masks: Path, split: str) -> Path:
    return next((masks / each for each in _names(split) if (masks / each).is_dir()), masks / split)


def find_pairs(images: Path, masks: Path, layout: Layout, rule: str) -> Found:
    """The images of one folder and the PNG masks of the same names in another.

    A folder's own files count or, where it holds none, those of its sub-folders, as of Cityscapes' cities.
    """
    image_of, mask_of = files_by_name(images, layout.image_suffix), files_by_name(masks, layout.mask_suffix)
    if masks != images or layout.mask_suffix != Layout.mask_suffix:  # masks may lie beside the images, or below
        are_masks = set(mask_of.values())
        image_of = {name: file for name, file in image_of.items() if file not in are_masks}
    endings = ((images, image_of, "images", layout.image_suffix), (masks, mask_of, "PNG masks", layout.mask_suffix))
    for folder, found, kind, suffix in endings:
        if not found:
            named = f" whose names end in {suffix}" if suffix not in ("", Layout.mask_suffix) else ""
            raise DatasetError(f"{folder}: there are no {kind}{named}", "Check the path, and how the files end.")
    remedy = _pairing_remedy(image_of, mask_of)
    refuse_alone(f"{images} and {masks}", ("image", image_of), ("mask", mask_of), remedy)
    samples = [Sample(name, image_of[name], mask_of[name]) for name in sorted(image_of)]
    return Found(samples, f"{count(len(samples), 'image')} of {images} with masks of {masks}; {rule}")


def refuse_alone(
    where: str, one: tuple[str, Mapping[str, Path]], other: tuple[str, Mapping[str, Path]], remedy: str
) -> None:
    """Refuse files by name that have no partner, of each kind, such as "image"."""
    alone = []
    for (kind, files), (partner, partners) in ((one, other), (other, one)):
        if names := sorted(files.keys() - partners.keys()):
            alone.append(f"{len(names)} of {len(files)} {kind}s have no {partner} (such as {some(names)})")
    if alone:
        raise DatasetError(f"{where}: {'; '.join(alone)}", remedy)


def _pairing_remedy(image_of: Mapping[str, Path], mask_of: Mapping[str, Path]) -> str:
    """What makes pairs of names that are longer on one side."""
    for option, files, others in (("--mask-suffix", image_of, mask_of), ("--image-suffix", mask_of, image_of)):
        alone = sorted(files.keys() - others.keys())
        longer = [each for each in others if alone and each.startswith(alone[0])]
        endings = {each.removeprefix(alone[0]) for each in longer}
        if fitting := [end for end in endings if all(f"{name}{end}" in others for name in alone)]:
            file = others[f"{alone[0]}{fitting[0]}"]
            return f"If {file.name} belongs to {alone[0]}, add {option} {fitting[0]}{file.suffix}."
    return "Give each image a PNG mask of the same name, or list the pairs in a file."


def files_by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Files by name without suffix: a folder's own or, where it has none, those of its sub-folders as ``sub/name``."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder", "Check the path.")
    found = _files(folder, suffix)
    if not found:
        for below in _folders(folder):
            found |= {f"{below.name}/{name}": file for name, file in _files(below, suffix).items()}
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files of a folder by name without suffix; hidden files are left out."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if suffix:
            is_one, name = file.name.lower().endswith(suffix.lower()), file.name[: -len(suffix)]
        else:
            is_one, name = file.suffix.lower() in IMAGE_SUFFIXES, file.stem
        if not is_one or file.name.startswith("."):
            continue
        if name in found:
            raise DatasetError(
                f"{folder}: {found[name].name} and {file.name} have the same name", "Keep one of the two."
            )
        found[name] = file
    return found


@dataclass(frozen=True)
class ListLine:
    """One line of a list."""

    number: int
    fields: list[str]
    whole: str | None  # the line, whose blanks may belong to a name; None: a tab or quotes say what the fields are

    def pairs(self, bases: tuple[Path, Path]) -> list[tuple[Path, Path]]:
        """The files of each way to read it as an image and its mask."""
        ways = [self.fields] if len(self.fields) == 2 else []
        if self.whole is not None:
            ways = [[self.whole[: gap.start()], self.whole[gap.end() :]] for gap in re.finditer(r"\s+", self.whole)]
        files = [find_files(way, bases) for way in ways]
        return [(image, mask) for image, mask in files if image is not None and mask is not None]


def find_files(names: Iterable[str], bases: Iterable[Path]) -> list[Path | None]:
    """Each name's file in the first of the folders that has it."""
    return [next((base / each for base in bases if (base / each).is_file()), None) for each in names]


def find_listed(
    path: Path, root: Path, image_suffix: str | None, mask_suffix: str | None
) -> tuple[Found, Layout | None]:
    """The samples that a text file lists, in its order, and the layout that its names are of; None: it lists pairs.

    Blank lines say nothing, nor does what follows a ``#`` at the start of a line or after a blank. A tab parts an image
    from its mask, else blanks do. Names that hold blanks or ``#`` stand in quotes; without them they are read as they
    are where only one reading names files.
    """
    lines, bases = list(read_list(path)), (root, path.parent)
    if not lines:
        raise DatasetError(f"{path}: the list is empty", "Name one image a line, or an image and its mask.")
    first, known = lines[0], dict[str, list[Path]]()
    if not first.pairs(bases) and (len(first.fields) == 1 or first.whole is not None):
        known = _known_names(root, image_suffix, mask_suffix)
    if len(first.fields) == 1 or first.whole in known:
        folder, layout = find_layout(root, image_suffix, mask_suffix)
        samples: list[Sample] = [_named(path, folder, layout, line, known) for line in lines]
        words, found = f"names of a list in the layout {layout.name}", layout
    else:
        samples, words, found = [_pair(path, bases, line) for line in lines], "pairs of a list", None
    line_of: dict[str, int] = {}
    for line, sample in zip(lines, samples, strict=True):
        before = line_of.setdefault(sample.name, line.number)
        if before != line.number:
            what = f"{path}, line {line.number}: {sample.name!r} is on line {before} too"
            raise DatasetError(what, "Remove one of the two lines.")
    return Found(samples, f"{count(len(samples), 'image')} of {path}; {words}"), found


def read_list(path: Path) -> Iterator[ListLine]:
    """The lines that say something; a tab parts their fields, else blanks do, quotes hold blanks in a name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise DatasetError(
            f"{path}: the list cannot be read: {err}", "Name a text file in UTF-8 that you may read."
        ) from err
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"""(^|\s)["']""", line.partition(" #")[0]):
            quoted = re.finditer(r""""([^"]*)"|'([^']*)'|(#.*)|(\S+)""", line)
            fields = [next(each for each in m.groups() if each is not None) for m in quoted if m[3] is None]
            whole = None
        else:
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            fields = re.split(r"\s*\t\s*" if "\t" in line else r"\s+", line) if line else []
            whole = None if "\t" in line else line
        if fields:
            yield ListLine(number, fields, whole)


def _known_names(root: Path, image_suffix: str | None, mask_suffix: str | None) -> dict[str, list[Path]]:
    """Images of the root's layout by name, in all of its splits; none where there is no layout."""
    if not _ways(root):
        return {}
    folder, layout = find_layout(root, image_suffix, mask_suffix)
    images, found = folder / layout.images, dict[str, list[Path]]()
    by_split = (files_by_name(each, layout.image_suffix) for each in _folders(images))
    for files in (_files(images, layout.image_suffix), *by_split):
        for name, file in files.items():
            found.setdefault(name, []).append(file)
    return found


def _named(path: Path, root: Path, layout: Layout, line: ListLine, known: Mapping[str, list[Path]]) -> Sample:
    name = line.fields[0] if line.whole is None else line.whole
    files = known.get(name, [])
    if len(line.fields) > 1 and (line.whole is None or not files):
        raise _unlike(path, line)
    where = f"{path}, line {line.number}: {name!r}"
    if len(files) != 1:
        there = f"is in {some(files)}" if files else f"is in no split of {root / layout.images}"
        raise DatasetError(f"{where} {there}", "A line is a name without suffix, or 'image mask'.")
    split, *below = files[0].parent.relative_to(root / layout.images).parts or ("",)
    masks = _folder_of(root / layout.masks, split) if split else root / layout.masks
    mask = masks.joinpath(*below, f"{Path(name).name}{layout.mask_suffix}")
    if not mask.is_file():
        raise DatasetError(f"{where} has no mask {mask}", "Add the mask, or drop the line.")
    return Sample(name, files[0], mask)


def _pair(path: Path, bases: tuple[Path, Path], line: ListLine) -> Sample:
    found = line.pairs(bases)
    if len(found) == 1:
        image, mask = found[0]
        base = next((base for base in bases if image.is_relative_to(base)), Path(image.anchor))  # a whole path
        return Sample(image.relative_to(base).with_suffix("").as_posix(), image, mask)
    if len(found) > 1:
        what = f"{path}, line {line.number}: names {len(found)} different pairs of files"
        raise DatasetError(what, "Put paths that hold blanks in quotes.")
    if len(line.fields) != 2:
        raise _unlike(path, line)
    missing = next(each for each in line.fields if not any((base / each).is_file() for base in bases))
    raise DatasetError(
        f"{path}, line {line.number}: there is no file {missing!r} in {bases[0]} or beside the list",
        "Give paths below --data, or relative to the list.",
    )


def _unlike(path: Path, line: ListLine) -> DatasetError:
    return DatasetError(
        f"{path}, line {line.number}: expected one name or 'image mask', the same on all lines, "
        f"found {len(line.fields)} fields",
        "Put names and paths that hold blanks in quotes, or separate image and mask by a tab.",
    )


def some(items: Iterable[object]) -> str:
    """The first few of a list, in words."""
    named = [str(item) for item in items]
    return ", ".join(named[:_SHOWN]) + (", …" if len(named) > _SHOWN else "")

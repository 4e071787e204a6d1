"""Images with measured depths: in two folders, in the layouts of NYUv2 and KITTI, or in a list.

A depth file is a PNG of 16 bits, whose values are metres times a scale, or a .npy of metres; (H, W), and 0, or in a
.npy what is not finite, is not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.lib import format
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, ImageError
from denseport.runtime.evaluation.depth.metrics import CROPS
from denseport.runtime.evaluation.layouts import Sample, files_by_name, find_files, read_list, refuse_alone
from denseport.runtime.media.images import reading
from denseport.runtime.system.arguments import optional_path, required_path
from denseport.runtime.system.text import count

__all__ = ["DepthDataset", "DepthReading", "open_depth_dataset"]

ENDINGS = (".png", ".npy")
PAIRING = (
    "Give each image a .png or .npy of its name, say how names end with --image-suffix and --depth-suffix, or list the "
    "pairs in a file."
)


@dataclass(frozen=True)
class DepthReading:
    """How depth files are meant, and which of their pixels count; None: not said."""

    scale: float | None = None  # values of a PNG a metre: 1000 of NYUv2's, 256 of KITTI's
    least: float | None = None  # metres
    most: float | None = None
    crop: str | None = None  # one of `CROPS`

    def __post_init__(self) -> None:
        if self.crop not in (None, *CROPS):
            raise DatasetError(f"--crop {self.crop!r} is unknown", f"Choose one of {', '.join(CROPS)}.")
        if self.scale is not None and not self.scale > 0:
            raise DatasetError(f"--depth-scale {self.scale} is not above 0", "Give values a metre, such as 1000.")

    @property
    def limits(self) -> tuple[float, float]:
        """Metres from which and up to which a depth counts, once both are said."""
        assert self.least is not None and self.most is not None
        return self.least, self.most

    def over(self, other: DepthReading) -> DepthReading:
        """These settings, and the other's where these say nothing."""
        return replace(other, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class _Layout:
    name: str
    images: str  # a folder, as is the next
    depths: str
    parts: tuple[str, str] = ("", "")  # what a depth's name has, and its image's has instead
    reading: DepthReading = field(default_factory=DepthReading)


TWO_FOLDERS = _Layout("two folders", "", "")
NYU = _Layout("NYUv2, rgb_* and sync_depth_*", "", "", ("sync_depth_", "rgb_"), DepthReading(1000.0, most=10.0))
KITTI_PARTS = ("_groundtruth_depth_", "_image_")
LAYOUTS = (
    _Layout("KITTI's depth selection", "image", "groundtruth_depth", KITTI_PARTS, DepthReading(256.0, most=80.0)),
    _Layout("images and depths", "images", "depths"),
    _Layout("rgb and depth", "rgb", "depth"),
    _Layout("image and depth", "image", "depth"),
)


@dataclass(frozen=True)
class DepthDataset:
    """Images with depths."""

    samples: tuple[Sample, ...]  # whose masks are the depth files
    reading: DepthReading
    found: str = field(default="", compare=False)  # where the samples are, and which rule found them

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError(
                f"the data set is empty: {self.found or 'no samples'}",
                "Name a folder or a list that holds images with depths.",
            )
        pngs = [each.mask for each in self.samples if each.mask.suffix.lower() == ".png"]
        if pngs and self.reading.scale is None:
            what = f"{pngs[0]}: nothing says how many of its values are a metre"
            remedy = "Give --depth-scale (Python: settings=DepthReading(scale=…)): 1000 of millimetres, 256 of KITTI's."
            raise DatasetError(what, remedy)

    def __len__(self) -> int:
        return len(self.samples)

    def read_depth(self, sample: Sample) -> NDArray[np.float32]:
        """(H, W) metres; 0 is not measured.

        Raises:
            ImageError: the file cannot be read.
            DatasetError: it holds no depths.
        """
        path, scale = sample.mask, self.reading.scale
        if path.suffix.lower() == ".npy":
            stored, kind, scale = _read_npy(path), "f", 1.0
        else:
            stored, kind = _read_png(path), "u"
        if stored.ndim != 2 or stored.dtype.kind != kind or stored.dtype == np.uint8:
            what = f"{path}: is {stored.shape} of {stored.dtype}, not a grey PNG of 16 bits nor (H, W) floats"
            raise DatasetError(what, "Save metres times a scale as such a PNG, or metres as .npy.")
        with np.errstate(all="ignore"):  # what no float32 holds is not measured
            depth: NDArray[np.float32] = stored.astype(np.float32) / np.float32(scale)
        depth[~np.isfinite(depth)] = 0
        return depth


def _read_npy(path: Path) -> NDArray[Any]:
    """The array of a file; its size is compared with the file's before there is room made for it."""
    with reading(path), path.open("rb") as file:
        is_npy = file.read(len(format.MAGIC_PREFIX)) == format.MAGIC_PREFIX  # numpy reads archives and pickles, too
    if not is_npy:
        raise ImageError(f"{path}: damaged, or not a .npy", "Copy it again, or save it with numpy.save.")
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as err:  # a damaged header makes numpy, ast and tokenize fail in many ways
        what = f"{path}: cannot be decoded: {' '.join(str(err).split())[:200]}"
        raise ImageError(what, "Copy it again, or save it with numpy.save.") from err
    return found


def _read_png(path: Path) -> NDArray[Any]:
    with reading(path):
        data = path.read_bytes()
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as err:
        raise ImageError(f"{path}: cannot be decoded: {err}", "Copy or save it again.") from err
    if stored is None:
        raise ImageError(f"{path}: damaged, or not a PNG", "Copy or save it again.")
    return stored


def open_depth_dataset(
    data: Path | str,
    *,
    depths: Path | str | None = None,
    list_file: Path | str | None = None,
    image_suffix: str | None = None,
    depth_suffix: str | None = None,
    settings: DepthReading | None = None,
) -> DepthDataset:
    """The data set that the options of ``denseport eval`` name; docs/evaluation.md has the layouts.

    Args:
        data: a folder in a known layout; with ``depths``, the folder of images; with ``list_file``, what its paths are
            relative to.
        depths: folder of depth files that have the names of the images; with ``list_file``, a second place to look.
        list_file: text: on each line an image and its depth, and perhaps a number more; a depth ``None`` is left out.
        image_suffix, depth_suffix: how the names of images and depths end, such as ``_depth.npy``.
        settings: what counts more than the layout's own.

    Raises:
        DatasetError: a file or folder that is missing or has no partner, or PNGs without a scale.
    """
    root, other = required_path("data", data), optional_path("depths", depths)
    given, own = settings or DepthReading(), DepthReading()
    for option, suffix in (("--image-suffix", image_suffix), ("--depth-suffix", depth_suffix)):
        if list_file is not None and suffix is not None:
            raise DatasetError(
                f"{option} pairs the files of folders, and --list has pairs", "Leave one of the two out."
            )
    try:
        if list_file is not None:
            places = [each for each in (root, other) if each is not None]
            samples, words = _listed(required_path("list_file", list_file), places)
        else:
            layout = _layout_of(root) if other is None else TWO_FOLDERS
            images, folder = root / layout.images, (other or root) / layout.depths
            samples = _pairs(images, folder, layout.parts, image_suffix, depth_suffix)
            words = f"{count(len(samples), 'image')} of {images} with depths of {folder}; {layout.name}"
            own = layout.reading
    except OSError as err:
        raise DatasetError(f"{err.filename}: cannot be searched: {err.strerror}", "Check its permissions.") from err
    if samples and given.scale is not None and all(each.mask.suffix.lower() == ".npy" for each in samples):
        raise DatasetError("--depth-scale applies to PNGs, and no depth is one", "Leave it out: a .npy holds metres.")
    return DepthDataset(samples, given.over(own), words)


def _layout_of(root: Path) -> _Layout:
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder", "Check the path.")
    found = [each for each in LAYOUTS if (root / each.images).is_dir() and (root / each.depths).is_dir()]
    if not found and (any(root.glob("rgb_*")) or any(root.glob("*/rgb_*"))):
        return NYU
    if len(found) == 1:
        return found[0]
    names = "; ".join(f"{each.images}/ and {each.depths}/" for each in found or LAYOUTS)
    what = f"can be read in {len(found)} ways: {names}" if found else f"has none of {names}, nor rgb_* and sync_depth_*"
    raise DatasetError(f"{root}: {what}", "Give the folder of images as --data, and the one of depths with --depths.")


def _pairs(
    images: Path, depths: Path, parts: tuple[str, str], image_suffix: str | None, depth_suffix: str | None
) -> tuple[Sample, ...]:
    """Images and depths of the same names, but for the layout's parts and the endings."""
    (old, new), depth_of = parts, dict[str, Path]()
    for ending in (depth_suffix,) if depth_suffix else ENDINGS:
        for own, file in files_by_name(depths, ending).items():
            name = own.replace(old, new) if old else own
            if old in file.name and depth_of.setdefault(name, file) != file:
                what = f"{depths}: {depth_of[name].name} and {file.name} are depths of the same name"
                raise DatasetError(what, "Keep one of the two, or say with --depth-suffix how depths end.")
    files = files_by_name(images, image_suffix or "").items()
    image_of = {name: file for name, file in files if file not in depth_of.values()}
    if not image_of:
        raise DatasetError(f"{images} and {depths}: no images", PAIRING)
    refuse_alone(f"{images} and {depths}", ("image", image_of), ("depth", depth_of), PAIRING)
    return tuple(Sample(name, image_of[name], depth_of[name]) for name in sorted(image_of))


def _listed(path: Path, bases: list[Path]) -> tuple[tuple[Sample, ...], str]:
    """The pairs of a list such as those of the Eigen split: an image, its depth or None, perhaps the focal length."""
    samples, without, places = list[Sample](), 0, [*bases, path.parent]
    for line in read_list(path):
        fields, where = line.fields, f"{path}, line {line.number}"
        if len(fields) not in (2, 3) or (fields[1] != "None" and Path(fields[1]).suffix.lower() not in ENDINGS):
            what = f"{where}: expected 'image depth', the depth a .png or .npy"
            raise DatasetError(what, "Separate names that hold blanks by a tab.")
        if fields[1] == "None":
            without += 1
            continue
        image, depth = find_files(fields[:2], places)
        if image is None or depth is None:
            what = f"{where}: there is no {fields[image is not None]!r} in {' or '.join(map(str, places))}"
            raise DatasetError(what, "Check --data and --depths.")
        samples.append(Sample(fields[0], image, depth))
    left_out = f", {without} without a depth left out" if without else ""
    return tuple(samples), f"{count(len(samples), 'image')} of {path}; pairs of a list{left_out}"

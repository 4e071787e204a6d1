"""Find the images and videos that a user means."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denseport.runtime.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "Input", "find_inputs"]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".avif", ".ppm", ".pgm"}
)
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


@dataclass(frozen=True)
class Input:
    """An image or video to work on."""

    path: Path  # as the user gave it, or below the folder that the user gave
    kind: Literal["image", "video"]
    relative: Path  # names the results; no two inputs of one call share it

    def output(self, folder: Path, suffix: str) -> Path:
        """The path of a result: ``folder / relative + suffix``, with ``suffix`` such as ``"_mask.png"``.

        Unlike ``Path.with_suffix`` this keeps the dot of ``frame.v2``.
        """
        return folder / f"{self.relative}{suffix}"


def find_inputs(patterns: Sequence[str]) -> list[Input]:
    """Find the images and videos that the user means.

    Args:
        patterns: files, folders (searched with their sub-folders; hidden names and symbolic links to folders are left
            out) and glob patterns (``**`` crosses folders). A file that is named outright is kept whatever its suffix,
            and even when it is missing, so that the others are still done.

    Returns:
        Each file once, in the order of the patterns, and within a folder or pattern in natural order.

    Raises:
        InputError: no pattern, an empty one, a folder that cannot be listed, or one without any image or video.
    """
    found: dict[str, tuple[Path, str]] = {}  # normalised path -> path as given, folder that its name is below
    for pattern in patterns:
        try:
            paths, root = _expand(pattern)
        except OSError as err:
            place = err.filename or pattern
            raise InputError(f"{place}: cannot be searched: {err.strerror}", "Check its permissions.") from err
        for path in paths:
            found.setdefault(_normal(path), (path, _normal(root)))
    if not found:
        raise InputError("no input was given", "Name images, videos, folders or glob patterns.")
    names = [Path(key).relative_to(root) for key, (_, root) in found.items()]
    if len(set(names)) < len(names):  # a/x.jpg and b/x.jpg: their folders tell them apart
        common = os.path.commonpath([root for _, root in found.values()])
        names = [Path(key).relative_to(common) for key in found]
    names = _distinct_names(names)
    return [
        Input(path, "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", name)
        for (path, _), name in zip(found.values(), names, strict=True)
    ]


def _expand(pattern: str) -> tuple[list[Path], Path]:
    """The files that a pattern stands for, and the folder that their names are relative to."""
    if not pattern:
        raise InputError("an input is an empty string", "Check the variable or argument that it came from.")
    path = Path(pattern)
    if path.is_dir():
        paths, root = _walk(path), path
    elif path.exists() or not _is_glob(pattern):
        return [path], path.parent
    else:
        paths = []
        for match in map(Path, glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - it skips hidden names
            paths += _walk(match) if match.is_dir() else [match] if _is_supported(match) else []
        root = next(parent for parent in path.parents if not _is_glob(str(parent)))
    if not paths:
        expected = f"Expected files that end in {', '.join(sorted(SUFFIXES))}."
        raise InputError(f"{pattern}: no image or video found here", expected)
    return sorted(paths, key=_natural), root


def _walk(folder: Path) -> list[Path]:
    def fail(err: OSError) -> None:
        raise err  # os.walk would pass over the folder

    paths: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in files if not name.startswith(".")]
    # Nobody named a pipe or a device in a folder; reading it would wait for ever.
    return [path for path in paths if _is_supported(path) and (path.is_file() or not path.exists())]


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _is_supported(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _natural(path: Path) -> list[list[tuple[str, int]]]:
    """Sort key under which frame2 comes before frame10."""
    pieces = re.compile(r"([^0-9]*)([0-9]*)")
    return [[(text, int(number or 0)) for text, number in pieces.findall(part)] for part in path.parts]


def _normal(path: Path) -> str:
    # Not Path.resolve(): a link keeps its own name, not that of the file in the store behind it.
    return os.path.normpath(path.absolute())


def _distinct_names(paths: Sequence[Path]) -> list[Path]:
    """Drops the suffixes, except where two names would become one (x.jpg and x.png)."""
    names = [path.with_suffix("") for path in paths]
    while len(counts := Counter(names)) < len(names):
        # Full names differ, so each round keeps at least one more suffix and the loop ends.
        names = [path if counts[name] > 1 else name for path, name in zip(paths, names, strict=True)]
    return names

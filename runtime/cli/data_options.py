"""Options that say where labelled images are, and what their labels mean."""

from __future__ import annotations

import argparse
import re
from typing import Any

from denseport.runtime.cli.arguments import path, whole

__all__ = ["add_data_options", "data_options"]

NAMES = ("masks", "list_file", "split", "image_suffix", "mask_suffix", "reduce_zero_label", "ignore_index", "limit")


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """All but ``--data`` itself."""
    group.add_argument("--masks", metavar="DIR", type=path, help="folder of masks; --data is then the folder of images")
    group.add_argument(
        "--list",
        dest="list_file",
        metavar="FILE",
        type=path,
        help="text file: per line a name or 'image mask'; quote names that hold blanks",
    )
    group.add_argument("--split", metavar="NAME", help="of the layout; default: validation or val")
    group.add_argument("--image-suffix", metavar="END", help="how names of images end, such as _leftImg8bit.png")
    group.add_argument("--mask-suffix", metavar="END", help="how names of masks end, such as _mask.png")
    group.add_argument(
        "--reduce-zero-label",
        action=argparse.BooleanOptionalAction,
        help="masks number the classes from 1, and 0 is ignored; default: as in the bundle's data set",
    )
    words = "labels to classes, 255: not counted, or none; default: as in the bundle's data set"
    group.add_argument("--label-map", type=_label, nargs="+", metavar="OLD:NEW", help=words)
    group.add_argument("--ignore-index", type=whole(0), metavar="N", help="ignored label; default: the bundle's, 255")
    group.add_argument("--limit", type=whole(1), metavar="N", help="only the first N images")


def data_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as `denseport.runtime.evaluation.evaluate.evaluate` takes them.

    Raises:
        InputError: labels that contradict each other.
    """
    data = {name: getattr(arguments, name) for name in NAMES}
    return data if arguments.label_map is None else data | {"label_map": _label_map(arguments.label_map)}


def _label(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text, re.ASCII)
    if match is None and text != "none":
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD:NEW, such as 5:255, nor none")
    return None if match is None else (int(match[1]), int(match[2]))


def _label_map(given: list[tuple[int, int] | None]) -> dict[int, int]:
    from denseport.runtime.errors import InputError

    pairs = [each for each in given if each is not None]
    if None in given and given != [None]:
        raise InputError("--label-map: none stands beside other labels", "Give none alone, or leave it out.")
    if twice := [old for i, (old, _) in enumerate(pairs) if old in dict(pairs[:i])]:
        raise InputError(f"--label-map: the label {twice[0]} is mapped twice", "Give each label once.")
    return dict(pairs)

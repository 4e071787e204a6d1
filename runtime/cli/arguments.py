"""The types of command-line arguments: paths, sizes, and numbers within bounds.

A parser's own errors become `InputError`, so that a mistyped option reads like every other error.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from denseport.runtime.errors import InputError

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle

__all__ = [
    "Parser",
    "add_bundle",
    "add_trust",
    "add_values",
    "open_bundle",
    "path",
    "real",
    "refuse_given",
    "size",
    "whole",
]

_CHOICE = re.compile(r"invalid choice: '?(?P<given>[^']*)'? \(choose from (?P<choices>.*)\)", re.DOTALL)
_UNKNOWN = re.compile(r"(?<=unrecognized arguments: )--[\w-]+")


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError about what it cannot read; ``--help`` and ``--version`` exit as ever."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse, and where options do not go together."""
        raise InputError(message.removeprefix("argument "), f"{self._suggestion(message)}See {self.prog} --help.")

    def _suggestion(self, message: str) -> str:
        """The choice or option that is nearest to an unknown one, as a question."""
        if match := _CHOICE.search(message):
            given, known = match["given"], re.findall(r"[\w.-]+", match["choices"])
        elif match := _UNKNOWN.search(message):
            given, known = match[0], re.findall(r"--[\w-]+", self.format_usage())
        else:
            return ""
        near = difflib.get_close_matches(given, known, 1)
        return f"Did you mean {near[0]}? " if near else ""


def add_values(parser: argparse._ActionsContainer, *rows: tuple[str, Callable[[str], Any], Any, str, str]) -> None:
    """Options that take one value; a row is the option, its type, the default, the value's name, and the help."""
    for option, kind, default, metavar, words in rows:
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=words)


def add_bundle(parser: argparse._ActionsContainer, words: str = "a bundle's folder") -> None:
    """The bundle that a command runs or ships, and who must have signed it; `open_bundle` opens it."""
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help=words)
    add_trust(parser)


def open_bundle(arguments: argparse.Namespace) -> Bundle:
    """The bundle of `add_bundle`, refused where ``--trust`` was given and nobody of those signed it.

    Raises:
        BundleError, InputError, MachineError: as of `Bundle` and `denseport.runtime.bundle.signature.verify`.
    """
    from denseport.runtime.bundle.bundle import Bundle

    bundle = Bundle(arguments.bundle)
    if arguments.trust is not None:
        from denseport.runtime.bundle.signature import verify

        verify(bundle, arguments.trust)
    return bundle


def add_trust(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """The option ``--trust``, with which a command refuses a bundle that is not signed."""
    parser.add_argument(
        "--trust",
        metavar="FILE",
        type=path,
        action="append",
        required=required,
        help="a public key or certificates (PEM): refuse a bundle that its owner did not sign; may be repeated",
    )


def refuse_given(arguments: argparse.Namespace, names: Iterable[str], what: str, remedy: str) -> None:
    """Refuse options that mean nothing here, by their names in ``arguments``.

    Raises:
        InputError: ``what``, with the option in the place of ``{}``: the first that has another value than its default.
    """
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise InputError(what.format(f"--{name.replace('_', '-')}"), remedy)


def path(text: str) -> Path:
    """The type of an option that takes a path: not the empty text, which pathlib takes for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("'' is not a path; check the variable that it came from")
    return Path(text)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes a whole number from ``least`` up, or up to ``most``."""
    allowed = f"a whole number from {least} " + ("up" if most is None else f"to {most}")

    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII) else least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return read


def real(
    least: float | None = None, most: float | None = None, *, above: float | None = None, below: float | None = None
) -> Callable[[str], float]:
    """The type of an option that takes a finite number from ``least`` to ``most``, or between two that are left out."""
    bounds = (("from", least), ("above", above), ("to", most), ("to below", below))
    allowed = " ".join(["a number", *(f"{word} {bound:g}" for word, bound in bounds if bound is not None)])
    allowed += " up" if most is None and below is None and least is not None else ""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low = (least is None or value >= least) and (above is None or value > above)
        high = (most is None or value <= most) and (below is None or value < below)
        if not (math.isfinite(value) and low and high):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return read


def size(largest: int) -> Callable[[str], tuple[int, int]]:
    """The type of an option that takes ``WIDTHxHEIGHT``, pixels from 1 to ``largest`` each; gives (height, width)."""

    def read(text: str) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII)
        width, height = (int(match[1]), int(match[2])) if match else (0, 0)
        if not (1 <= height <= largest and 1 <= width <= largest):
            raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, each from 1 to {largest}")
        return height, width

    return read

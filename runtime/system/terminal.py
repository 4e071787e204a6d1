"""Escapes control characters in what is printed.

Class names, file names and error texts come from files and servers. Printed raw, an escape sequence in them could move
the cursor over a verdict, set the window's title or have a terminal type a command.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

__all__ = ["CONTROLS", "Shown", "one_line"]

# C0 and C1 but the tab and the end of a line, and what turns the direction of writing or ends a line in Unicode.
CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{CONTROLS}]")
_NO_PART_OF_A_LINE = re.compile(f"[\t\n{CONTROLS}]")


def one_line(text: str) -> str:
    """A name with its line breaks, too, as escapes: printed, it could add any line."""
    return _NO_PART_OF_A_LINE.sub(_escaped, text)


class Shown:
    """A text stream that writes control characters as escapes, ``\\x1b`` say; all else is the stream's own.

    A carriage return at the start of a text stays: progress bars redraw themselves with it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        start = 1 if text.startswith("\r") else 0
        self._stream.write(text[:start] + _CONTROL.sub(_escaped, text[start:]))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()

"""What griffe should know of our docstrings: ``a, b: text`` describes two arguments, ``::`` begins a block of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["OurStyle"]

CODE = re.compile(r"^ *::$\n", re.MULTILINE)
SHARED = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


class OurStyle(griffe.Extension):
    """Gives each of such arguments the whole text, so that griffe compares each name with the signature."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SHARED.sub(_one_by_one, CODE.sub("", obj.docstring.value))


def _one_by_one(found: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {found[2]}" for name in found[1].split(", "))

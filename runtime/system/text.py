"""Numbers as people read them, in terminals, messages and pages."""

from __future__ import annotations

import math

__all__ = ["count", "number", "signed"]


def number(value: float | None, digits: int = 2) -> str:
    """A dash for what does not exist (None, NaN)."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a real minus; no sign on what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def count(amount: int, noun: str, plural: str = "s") -> str:
    """A number with its noun: 1 image, 2 images."""
    return f"{amount:,} {noun}{'' if amount == 1 else plural}"

"""Small charts as SVG text, from ``chart.svg``: points and lines on two axes, for reports and documents.

Colours are CSS variables with defaults, so that a chart follows the page that it is put into, dark or light; in a file
of its own it follows the reader's preference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denseport.runtime.media.page import render

__all__ = ["Axis", "Series", "chart"]

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 20, 56
MOST_DOTS = 40
_LETTER, _LINE = 7, 16  # the width of a letter and the height of a line
_POINT = 4.0  # half the height of letters, and about the radius of a point
_COLOURS = ("#3d6ea5", "#b8552b", "#3f7f52", "#7c55a3", "#8a6d1f", "#5c6068")
_TEMPLATE = Path(__file__).with_name("chart.svg")


@dataclass(frozen=True)
class Axis:
    """One axis: its label with the unit, and its scale."""

    label: str
    logarithmic: bool = False
    zero: bool = False  # a linear axis starts at 0
    least: float = 0.0  # what a linear axis spans at least, around the values but not below 0 for them


@dataclass(frozen=True)
class Series:
    """Points (x, y), joined in their order if ``line``; a point may carry a label.

    A line of more than `MOST_DOTS` points is drawn without their dots.
    """

    name: str  # "" leaves it out of the legend
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    line: bool = True


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series], size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """A chart as one ``<svg>`` element, which scales with its place.

    Args:
        title: what it shows, in a sentence, for those who do not see it.
        size: (width, height) in units, of which the letters are 13 high.

    Raises:
        ValueError: no point, a value that is not finite, or one of 0 or less on a logarithmic axis.
    """
    width, height = size
    right, bottom = width - RIGHT, height - BOTTOM
    across, up = (_Scale.of(axis, [p[i] for s in series for p in s.points]) for i, axis in enumerate((x, y)))
    drawn, legend = list[dict[str, Any]](), LEFT + 12
    placed = [[(across.place(a, LEFT, right), up.place(b, bottom, TOP)) for a, b in each.points] for each in series]
    # A label covers no other one, and no point that is labelled.
    labelled = [point for each, points in zip(series, placed, strict=True) if each.labels for point in points]
    taken = [(x, y + _POINT, _POINT) for x, y in labelled]
    for index, (each, points) in enumerate(zip(series, placed, strict=True)):
        labels = [_label(text, point, width, taken) for text, point in zip(each.labels, points, strict=False)]
        colour = _COLOURS[index % len(_COLOURS)]
        drawn.append({"series": each, "points": points, "labels": labels, "colour": colour, "legend": legend})
        legend += 34 + 7 * len(each.name) if each.name else 0
    return render(
        _TEMPLATE,
        title=title,
        size=size,
        box=(LEFT, TOP, right, bottom),
        names=(x.label, y.label),
        x_ticks=[(tick, across.place(tick, LEFT, right)) for tick in across.ticks],
        y_ticks=[(tick, up.place(tick, bottom, TOP)) for tick in up.ticks],
        drawn=drawn,
        most_dots=MOST_DOTS,
    )


def _label(
    text: str, point: tuple[float, float], width: float, taken: list[tuple[float, float, float]]
) -> dict[str, Any]:
    """Beside its point; a line lower as often as one of those that are ``taken`` (middle, y, half width) is there."""
    end = point[0] > width * 0.7
    x, y = point[0] + (-10 if end else 10), point[1] - 8
    half = _LETTER * len(text) / 2
    middle = x - half if end else x + half
    while any(
        abs(y - other_y) < _LINE and abs(middle - other) < half + other_half for other, other_y, other_half in taken
    ):
        y += _LINE
    taken.append((middle, y, half))
    return {"text": text, "x": x, "y": y, "anchor": "end" if end else "start"}


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    @classmethod
    def of(cls, axis: Axis, values: Sequence[float]) -> _Scale:
        if not values:
            raise ValueError("a chart without points")
        if not all(math.isfinite(value) and (value > 0 or not axis.logarithmic) for value in values):
            raise ValueError(f"{axis.label}: a value that cannot be drawn among {list(values)}")
        low, high = min(values), max(values)
        if axis.logarithmic:
            first = math.floor(math.log10(low))
            last = max(math.ceil(math.log10(high)), first + 1)
            return cls(first, last, tuple(10.0**i for i in range(first, last + 1)), True)
        more = max(0.0, axis.least - (high - low)) / 2
        low, high = 0.0 if axis.zero else max(low - more, min(low, 0.0)), high + more
        step = _round_step((high - low) / 5 or abs(high) / 5 or 1)
        first = math.floor(low / step)
        last = max(math.ceil(high / step), first + 1)
        ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks, False)

    def place(self, value: float, start: float, end: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)

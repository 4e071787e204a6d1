"""Small charts as SVG text: points and lines on two axes, for reports and documents.

Colours are CSS variables with defaults, so that a chart follows the page that it is put into, dark or light; in a file
of its own it follows the reader's preference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Series", "chart"]

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 20, 56
MOST_DOTS = 40
_COLOURS = ("#3d6ea5", "#b8552b", "#3f7f52", "#7c55a3", "#8a6d1f", "#5c6068")
_STYLE = """
.chart { font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink, #1b1c1f); }
.chart .grid { stroke: var(--line, #dedfdc); } .chart .axis { fill: var(--soft, #5c6068); }
.chart text { fill: currentColor; } .chart text.tick { fill: var(--soft, #5c6068); }
.chart .edge { stroke: var(--card, #fff); stroke-width: 1.5; }
.chart .halo { paint-order: stroke; stroke: var(--card, #fff); stroke-width: 4; stroke-linejoin: round; }
@media (prefers-color-scheme: dark) {
  .chart { color: var(--ink, #ececec); } .chart .grid { stroke: var(--line, #33363c); }
  .chart .axis, .chart text.tick { fill: var(--soft, #a3a8b1); }
  .chart .edge, .chart .halo { stroke: var(--card, #1d1f23); }
}
"""


@dataclass(frozen=True)
class Axis:
    """One axis: its label with the unit, and its scale."""

    label: str
    logarithmic: bool = False
    zero: bool = False  # a linear axis starts at 0


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
    scales = [_Scale.of(axis, [p[i] for s in series for p in s.points]) for i, axis in enumerate((x, y))]
    width, height = size
    across, up = (LEFT, width - RIGHT), (height - BOTTOM, TOP)
    parts = [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>'
    ]
    for tick in scales[0].ticks:
        at = scales[0].place(tick, *across)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{height - BOTTOM + 20}" text-anchor="middle">{tick:g}</text>')
    for tick in scales[1].ticks:
        at = scales[1].place(tick, *up)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{height - 12}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(
        f'<text class="axis" transform="translate(18 {(TOP + height - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    for index, each in enumerate(series):
        points = [(scales[0].place(a, *across), scales[1].place(b, *up)) for a, b in each.points]
        parts.append(_drawn(each, points, _COLOURS[index % len(_COLOURS)], width))
    parts.append(_legend(series))
    return "".join(parts) + "</svg>\n"


def _drawn(series: Series, points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    parts = []
    if series.line and len(points) > 1:
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if not (series.line and len(points) > MOST_DOTS):
        parts += [f'<circle class="edge" cx="{a:.1f}" cy="{b:.1f}" r="5" fill="{colour}"/>' for a, b in points]
    for (a, b), label in zip(points, series.labels, strict=False):
        anchor, shift = ("end", -10) if a > width * 0.7 else ("start", 10)
        parts.append(
            f'<text class="halo" x="{a + shift:.1f}" y="{b - 8:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    parts, at = [], LEFT + 12
    for index, each in enumerate(series):
        if each.name:
            parts.append(f'<circle cx="{at}" cy="{TOP + 12}" r="5" fill="{_COLOURS[index % len(_COLOURS)]}"/>')
            parts.append(f'<text class="halo" x="{at + 10}" y="{TOP + 16}">{escape(each.name)}</text>')
            at += 34 + 7 * len(each.name)
    return "".join(parts)


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
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            return cls(
                first, max(last, first + 1), tuple(10.0**i for i in range(first, max(last, first + 1) + 1)), True
            )
        low = 0.0 if axis.zero else low
        step = _round_step((high - low) / 5 or abs(high) / 5 or 1)
        first, last = math.floor(low / step), math.ceil(high / step)
        last = max(last, first + 1)
        ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks, False)

    def place(self, value: float, start: float, end: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)

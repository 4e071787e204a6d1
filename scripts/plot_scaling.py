"""The picture of `bench_runtime.py scaling`: time and memory against pixels, batch and classes, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["plot"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, GAP = 260, 200, 56, 44, 34, 30  # of a panel and around it, pixels
COLOURS = {"seconds": "#1b6ca8", "extra MiB": "#c2571a"}


def plot(series: Mapping[str, Sequence[tuple[float, float, float]]]) -> str:
    """An SVG.

    Args:
        series: for each quantity its measurements: amount, seconds, extra memory in MiB.
    """
    panels = [
        _panel(name, label, [(point[0], point[column]) for point in points], i, column - 1)
        for column, label in ((1, "seconds"), (2, "extra MiB"))
        for i, (name, points) in enumerate(series.items())
    ]
    width = GAP + len(series) * (LEFT + WIDTH + GAP)
    height = 2 * (TOP + HEIGHT + BOTTOM) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _panel(name: str, label: str, points: Sequence[tuple[float, float]], column: int, line: int) -> str:
    x0, y0 = LEFT + column * (LEFT + WIDTH + GAP), TOP + line * (TOP + HEIGHT + BOTTOM)
    xs, ys = zip(*((x, max(y, 1e-3)) for x, y in points), strict=True)
    (left, right), (low, high) = _decades(xs), _decades(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            x0 + WIDTH * (math.log10(x) - left) / (right - left),
            y0 + HEIGHT * (high - math.log10(y)) / (high - low),
        )

    parts = [f'<text x="{x0}" y="{y0 - 12}" font-weight="bold">{label} against {name}</text>']
    for decade in range(left, right + 1):
        x, _ = at(10.0**decade, ys[0])
        parts.append(f'<line x1="{x:.1f}" y1="{y0}" x2="{x:.1f}" y2="{y0 + HEIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y0 + HEIGHT + 16}" text-anchor="middle">{10.0**decade:g}</text>')
    for decade in range(low, high + 1):
        _, y = at(xs[0], 10.0**decade)
        parts.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + WIDTH}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    places = [at(x, y) for x, y in zip(xs, ys, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[label]}" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[label]}"/>' for x, y in places]
    return "\n".join(parts)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)

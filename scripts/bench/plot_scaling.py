"""The image of `bench_runtime.py scaling`: time and memory against pixels, batch and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from denseport.runtime.media.plot import Axis, Series, chart

__all__ = ["plot"]

WIDTH, HEIGHT = 400, 280  # of a panel
LEAST = 0.1  # MiB: none at all has no place on a logarithmic axis


def plot(series: Mapping[str, Sequence[tuple[float, float, float]]]) -> str:
    """An SVG of panels: a column for each of ``series``, with the time above and the memory below.

    Args:
        series: for each quantity its measurements: amount, seconds, extra memory in MiB.
    """
    panels = []
    for column, (name, points) in enumerate(series.items()):
        seconds = [(amount, time) for amount, time, _ in points]
        memory = [(amount, max(extra, LEAST)) for amount, _, extra in points]
        for row, (label, values) in enumerate((("seconds", seconds), ("extra MiB", memory))):
            x, y = Axis(name, logarithmic=True), Axis(label, logarithmic=True)
            drawn = chart(f"{label} against {name}", x, y, [Series("", values)], (WIDTH, HEIGHT))
            place = f'x="{column * WIDTH}" y="{row * HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
            panels.append(f"<svg {place}>{drawn}</svg>\n")
    box = f"0 0 {len(series) * WIDTH} {2 * HEIGHT}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">\n{"".join(panels)}</svg>\n'

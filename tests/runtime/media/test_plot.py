"""Charts: points are where their values say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from denseport.runtime.media.plot import MOST_DOTS, Axis, Series, chart


def centres(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="edge" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_lie_in_proportion_and_upwards() -> None:
    svg = chart("t", Axis("x", zero=True), Axis("y"), [Series("a", [(0, 10), (5, 20), (10, 30)])])
    (x0, y0), (x1, y1), (x2, y2) = centres(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x1 and y0 > y1


def test_a_logarithmic_axis_makes_ratios_distances() -> None:
    svg = chart(
        "t", Axis("x", logarithmic=True), Axis("y", logarithmic=True), [Series("", [(1, 1), (10, 10), (100, 100)])]
    )
    (x0, y0), (x1, y1), (x2, y2) = centres(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


@pytest.mark.parametrize(
    "values", [[(3, 3)], [(0, 0)], [(1, 5), (2, 5)], [(-1, -2), (-3, -4)], [(1e-9, 1e9), (2e-9, 3e9)]]
)
def test_any_finite_values_are_drawn_inside_as_well_formed_xml(values: list[tuple[float, float]]) -> None:
    svg = chart('a "title" <b>', Axis("x & y"), Axis("y"), [Series("<s>", values, ["<l>"] * len(values))])
    ElementTree.fromstring(svg)
    assert all(0 <= x <= 720 and 0 <= y <= 400 for x, y in centres(svg)) and len(centres(svg)) == len(values)


def test_a_chart_of_another_size_fills_it() -> None:
    (x0, y0), (x1, y1) = centres(chart("t", Axis("x"), Axis("y"), [Series("", [(0, 0), (10, 10)])], (400, 280)))
    assert 0 < x0 < 100 and 300 < x1 < 400 and 200 < y0 < 280 and 0 < y1 < 50


@pytest.mark.parametrize("values", [[], [(1, float("nan"))], [(1, float("inf"))]])
def test_what_cannot_be_drawn_is_refused(values: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError):
        chart("t", Axis("x"), Axis("y"), [Series("", values)])
    with pytest.raises(ValueError, match="cannot be drawn"):
        chart("t", Axis("x", logarithmic=True), Axis("y"), [Series("", [(0, 1)])])


def test_a_line_of_many_points_has_no_dots() -> None:
    few, many = ([(float(i), float(i)) for i in range(count)] for count in (MOST_DOTS, MOST_DOTS + 1))
    assert chart("", Axis(""), Axis(""), [Series("", few)]).count("<circle") == MOST_DOTS
    assert "<circle" not in chart("", Axis(""), Axis(""), [Series("", many)])
    assert chart("", Axis(""), Axis(""), [Series("", many, line=False)]).count("<circle") == MOST_DOTS + 1


@pytest.mark.parametrize("values", [(25.87, 25.88), (0.01, 0.02)])
def test_an_axis_spans_what_it_must_at_least(values: tuple[float, float]) -> None:
    svg = chart("t", Axis("x"), Axis("y", least=2), [Series("", list(enumerate(values)))])
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">([-\d.]+)<', svg)]
    assert max(ticks) - min(ticks) >= (2 if values[0] > 1 else 1) and 0 <= min(ticks) <= values[0]
    (_, low), (_, high) = centres(svg)
    assert 0 < low - high < 4


def test_labels_do_not_cover_each_other() -> None:
    series = [Series("", [(1, 5), (1, 5.001), (0, 0)], ["first", "second", "far"], line=False)]
    places = re.findall(r'<text class="halo" x="([\d.]+)" y="([\d.]+)"', chart("t", Axis("x"), Axis("y"), series))
    (_, first), (_, second), _ = ((float(x), float(y)) for x, y in places)
    assert abs(first - second) >= 13

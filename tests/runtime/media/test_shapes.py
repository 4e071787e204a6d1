"""Regions as polygons, run lengths, COCO and GeoJSON, against pycocotools and against pixels counted one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from denseport.runtime.errors import InputError
from denseport.runtime.media.shapes import coco, geojson, polygons, run_lengths

CLASSES = ("road", "sky", "car")


@st.composite
def regions(draw: st.DrawFn) -> np.ndarray:
    """Noise of any density, or coarse blocks with holes and islands."""
    height, width, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    block, share = draw(st.sampled_from([1, 3, 7])), draw(st.floats(0, 1))
    coarse = rng.random((height // block + 1, width // block + 1)) < share
    return coarse.repeat(block, 0).repeat(block, 1)[:height, :width]


def filled(found: list[list[np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    """How many rings are around the centre of each pixel: odd inside, by the sides that a ray to the left crosses."""
    crossings = np.zeros(shape, int)
    for ring in (ring for rings in found for ring in rings):
        for (x, y0), (next_x, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                assert x == next_x, "outlines that nothing simplified run along the pixels' sides"
                crossings[min(y0, y1) : max(y0, y1), x:] += 1
    return crossings % 2 == 1


def area(ring: np.ndarray) -> float:
    (x, y), (next_x, next_y) = np.asarray(ring, float).T, np.roll(np.asarray(ring, float), -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


@given(regions())
@settings(max_examples=300, deadline=None)
def test_polygons_enclose_the_region_to_the_last_pixel(region: np.ndarray) -> None:
    found = polygons(region)
    np.testing.assert_array_equal(filled(found, region.shape), region)
    assert sum(abs(area(rings[0])) - sum(abs(area(hole)) for hole in rings[1:]) for rings in found) == region.sum()


@given(regions())
@settings(max_examples=100, deadline=None)
def test_no_ring_meets_itself(region: np.ndarray) -> None:
    for ring in (ring for rings in polygons(region) for ring in rings):
        assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)


def test_a_hole_is_a_ring_of_its_own_and_an_island_in_it_a_polygon() -> None:
    region = np.ones((7, 7), bool)
    region[1:6, 1:6] = False
    region[3, 3] = True
    (outline, hole), (island,) = polygons(region)
    assert sorted(outline.tolist()) == [[0, 0], [0, 7], [7, 0], [7, 7]]
    assert sorted(hole.tolist()) == [[1, 1], [1, 6], [6, 1], [6, 6]]
    assert sorted(island.tolist()) == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_pixels_that_meet_at_a_corner_are_two_polygons() -> None:
    assert len(polygons(np.eye(2, dtype=bool))) == 2


def test_simplified_outlines_have_fewer_corners_and_stay_near() -> None:
    y, x = np.mgrid[:80, :80]
    disc = (x - 40) ** 2 + (y - 40) ** 2 < 900
    (whole,), (simple,) = polygons(disc), polygons(disc, 1.5)
    assert len(simple[0]) < len(whole[0]) / 4
    assert abs(abs(area(simple[0])) / disc.sum() - 1) < 0.03
    distances = np.abs(np.hypot(*(simple[0] - 40.5).T) - 30)
    assert distances.max() < 1.5 + 1
    assert polygons(np.eye(3, dtype=bool), 5.0) == []  # nothing is left of a pixel


@pytest.mark.parametrize("simplify", [-1, float("nan"), "1", True])
def test_a_distance_that_is_none_is_refused(simplify: Any) -> None:
    with pytest.raises(InputError, match="simplify"):
        polygons(np.ones((2, 2), bool), simplify)


@given(regions())
@settings(max_examples=300, deadline=None)
def test_run_lengths_are_pycocotools_own(region: np.ndarray) -> None:
    expected = pycoco.encode(np.asfortranarray(region.astype(np.uint8)))
    assert run_lengths(region) == {"size": expected["size"], "counts": expected["counts"].decode()}


def test_long_runs_are_pycocotools_own_too() -> None:
    region = np.zeros((3000, 2000), bool)
    region[:, 700:] = True
    region[5:90, 3:8] = True
    expected = pycoco.encode(np.asfortranarray(region.astype(np.uint8)))
    assert run_lengths(region)["counts"] == expected["counts"].decode()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pycocotools
def test_coco_is_what_pycocotools_reads() -> None:
    mask = np.full((20, 30), 255, np.uint8)  # of no class
    mask[2:10, 5:9], mask[15, 0:30] = 0, 2
    found = coco(mask, CLASSES, "a.jpg", image_id=7)
    assert found["images"] == [{"id": 7, "file_name": "a.jpg", "width": 30, "height": 20}]
    assert found["categories"] == [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}, {"id": 2, "name": "car"}]
    assert [each["category_id"] for each in found["annotations"]] == [0, 2]
    for each in found["annotations"]:
        region = pycoco.decode(each["segmentation"]).astype(bool)
        np.testing.assert_array_equal(region, mask == each["category_id"])
        assert each["area"] == pycoco.area(each["segmentation"]) and each["image_id"] == 7
        assert each["bbox"] == pycoco.toBbox(each["segmentation"]).tolist()


def test_geojson_has_closed_rings_in_the_standards_direction_at_their_places() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 1:7], mask[2:4, 2:6] = 1, 0
    north_up = (0.5, 0, 100, 0, -0.5, 60)  # half a unit a pixel, y upwards, as maps have it
    for transform, scale in ((None, 1.0), (north_up, 0.25), ((*north_up, 0, 0, 1), 0.25)):  # affine's has nine
        found = geojson(mask, CLASSES, transform)
        assert [each["properties"] for each in found["features"]] == [
            {"class": 0, "name": "road", "pixels": 32},
            {"class": 1, "name": "sky", "pixels": 16},
        ]
        (sky,) = found["features"][1]["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] for ring in sky)
        assert [area(np.array(ring[:-1])) for ring in sky] == [24 * scale, -8 * scale]
    corners = {tuple(place) for place in sky[0]}
    assert corners == {(100.5, 59.5), (103.5, 59.5), (103.5, 57.5), (100.5, 57.5)}


@pytest.mark.parametrize("transform", [(1, 2, 3), "abcdef", (1, 0, 0, 2, 0, 0), (1, 0, 0, 0, float("nan"), 0), 5])
def test_a_transform_that_maps_nothing_is_refused(transform: Any) -> None:
    with pytest.raises(InputError, match="transform"):
        geojson(np.zeros((2, 2), np.uint8), CLASSES, transform)

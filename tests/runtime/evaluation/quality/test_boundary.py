"""Boundary F-scores against a plain loop over pixels, and on outlines whose score is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.evaluation.quality.boundary import boundary_counts, boundary_f

Labels = NDArray[np.unsignedinteger]


def blobs(seed: int, classes: int, dtype: type = np.uint8) -> tuple[Labels, Labels]:
    """A truth with a few ignored pixels, and a prediction that is nearly it; both of patches some pixels wide."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (4, 5)).astype(np.uint16)
    truth = cv2.resize(coarse, (23, 17), interpolation=cv2.INTER_NEAREST).astype(dtype)
    mask = np.roll(truth, (int(rng.integers(-2, 3)), int(rng.integers(-3, 4))), (0, 1))
    mask[rng.random(mask.shape) < 0.03] = classes + 3  # no class
    truth[rng.random(truth.shape) < 0.02] = np.iinfo(dtype).max
    return truth, mask


def counted_by_loops(truth: Labels, mask: Labels, classes: int) -> NDArray[np.int64]:
    """As the definition is written, pixel by pixel."""
    ignored = truth == np.iinfo(truth.dtype).max
    height, width = truth.shape
    void = [(y, x) for y in range(height) for x in range(width) if ignored[y, x]]

    def boundary(labels: Labels) -> list[tuple[int, int]]:
        found = []
        for y, x in np.ndindex(height, width):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width and not ignored[v, u]]
            if not ignored[y, x] and any(labels[v, u] != labels[y, x] for v, u in inside):
                found.append((y, x))
        return found

    def near(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 <= 4

    found = np.zeros((4, classes), np.int64)
    edges = [boundary(mask), boundary(truth)]
    for row, (labels, others) in enumerate(((mask, truth), (truth, mask))):
        for at in edges[row]:
            if labels[at] < classes and not any(near(at, each) for each in void):
                found[2 * row, labels[at]] += 1
                same = (each for each in edges[1 - row] if others[each] == labels[at])
                found[2 * row + 1, labels[at]] += any(near(at, each) for each in same)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("classes", "dtype"), [(3, np.uint8), (300, np.uint16)])
def test_counts_are_those_of_a_plain_loop(seed: int, classes: int, dtype: type) -> None:
    truth, mask = blobs(seed, classes, dtype)
    expected = counted_by_loops(truth, mask, classes)
    assert expected[1].sum() < expected[0].sum() and expected[3].any(), "all or nothing matched: shows little"
    np.testing.assert_array_equal(boundary_counts(truth, mask, classes), expected)


@pytest.mark.parametrize(("shift", "matched"), [(0, 40), (1, 40), (2, 40), (3, 0)])
def test_an_edge_may_lie_two_pixels_off(shift: int, matched: int) -> None:
    found = boundary_counts(_edge_at(15), _edge_at(15 + shift), 2)
    assert found.sum(axis=1).tolist() == [40, matched, 40, matched]
    np.testing.assert_allclose(boundary_f(found), [100.0, 100.0] if matched else [0.0, 0.0])


def _edge_at(column: int) -> NDArray[np.uint8]:
    mask = np.zeros((20, 40), np.uint8)
    mask[:, column:] = 1
    return mask


def test_half_of_an_edge_is_an_f_of_two_thirds() -> None:
    """All that is predicted of a line is right, and half of it is found: P = 1, R = 1/2."""
    counts = np.array([[10, 0], [10, 0], [20, 5], [10, 0]])
    assert boundary_f(counts).tolist() == [pytest.approx(200 / 3), 0.0]


def test_a_class_without_a_boundary_has_no_score() -> None:
    """Class 2 is nowhere, class 3 covers no edge in the truth and has one in the prediction."""
    truth = np.zeros((12, 12), np.uint8)
    truth[:, 6:] = 1
    mask = truth.copy()
    mask[0, 0] = 3
    found = boundary_f(boundary_counts(truth, mask, 4))
    assert np.isnan(found[2]) and found[3] == 0 and found[1] == 100 and 0 < found[0] < 100


def test_an_outline_that_is_ignored_neither_gains_nor_loses() -> None:
    """Between two classes lies an ignored line, as in Pascal VOC; the prediction's edge is a pixel beside it."""
    truth = _edge_at(20)
    truth[:, 20] = 255
    assert not boundary_counts(truth, _edge_at(19), 2).any()
    far = boundary_counts(truth, _edge_at(10), 2)
    assert far.sum(axis=1).tolist() == [40, 0, 0, 0], "far from it the edge is plainly wrong"

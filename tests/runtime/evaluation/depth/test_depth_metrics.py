"""The metrics of depth equal upstream's golden ones; crops and alignment do what their papers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.depth.metrics import METRICS, align, depth_metrics, valid_pixels

GOLDEN = {
    "AbsRel": "abs_rel", "SqRel": "sq_rel", "RMSE": "rmse", "RMSElog": "rmse_log", "log10": "log10", "SILog": "silog",
    "d1": "d1", "d2": "d2", "d3": "d3",
}  # fmt: skip


@pytest.fixture
def golden(shared: Path) -> tuple[Any, dict[str, Any]]:
    folder = shared / "oracle_families"
    return np.load(folder / "depth_metrics.npz"), json.loads((folder / "depth_metrics.json").read_text())


def test_metrics_are_those_of_upstream(golden: tuple[Any, dict[str, Any]]) -> None:
    arrays, cases = golden
    assert tuple(GOLDEN) == METRICS and len(cases["metric"]) == 3
    for i, want in enumerate(cases["metric"]):
        truth, found = arrays[f"gt{i}"], arrays[f"pred{i}"]
        valid = valid_pixels(truth, want["min_depth"], want["max_depth"])
        assert valid.sum() == want["valid"]
        values = dict(zip(METRICS, depth_metrics(found[valid], truth[valid]), strict=True))
        assert values == pytest.approx({name: want[key] for name, key in GOLDEN.items()}, abs=1e-6)


def test_relative_depths_are_aligned_as_upstream_does(golden: tuple[Any, dict[str, Any]]) -> None:
    arrays, cases = golden
    for i, want in enumerate(cases["relative"]):
        truth, least, most = arrays[f"gt{i}"], want["min_depth"], want["max_depth"]
        valid = valid_pixels(truth, least, most)
        metres, scale, shift = align(arrays[f"disparity{i}"][valid], truth[valid], least, most, is_disparity=True)
        assert (scale, shift) == pytest.approx((want["scale"], want["shift"]), abs=1e-6)
        values = dict(zip(METRICS, depth_metrics(metres, truth[valid]), strict=True))
        expected = {name: want[GOLDEN[name]] for name in ("AbsRel", "d1", "RMSE")}
        assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("is_disparity", [True, False])
def test_alignment_finds_any_scale_and_shift(is_disparity: bool) -> None:
    truth = np.random.default_rng(0).uniform(1, 9, 500).astype(np.float32)
    relative = (3.0 * (1 / truth if is_disparity else truth) - 7.0).astype(np.float32)
    metres, scale, shift = align(relative, truth, 0.001, 10.0, is_disparity=is_disparity)
    np.testing.assert_allclose(metres, truth, rtol=1e-4)
    assert (scale, shift) == pytest.approx((1 / 3, 7 / 3), rel=1e-4)
    constant, _, _ = align(np.ones_like(truth), truth, 0.001, 10.0, is_disparity=is_disparity)
    assert np.ptp(constant) < 1e-5 and np.isfinite(constant).all()


@pytest.mark.parametrize(
    ("crop", "size", "rows", "columns"),
    [
        ("garg", (375, 1242), (153, 370), (44, 1196)),
        ("eigen", (375, 1242), (124, 341), (44, 1196)),
        ("nyu", (480, 640), (45, 470), (41, 600)),
    ],
)
def test_crops_keep_the_published_windows(crop: str, size: tuple[int, int], rows: Any, columns: Any) -> None:
    """First and last row and column that count; of KITTI as in Monodepth's and BTS's evaluation at 1242 x 375."""
    valid = valid_pixels(np.ones(size, np.float32), 0.001, 80.0, crop)
    y, x = np.nonzero(valid)
    assert ((y.min(), y.max()), (x.min(), x.max())) == (rows, columns)
    assert valid.sum() == (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)


def test_pixels_that_do_not_count() -> None:
    truth = np.array([[0, np.nan, 0.0005, 0.001, 5, 10, 10.5]], np.float32)
    assert valid_pixels(truth, 0.001, 10.0).tolist() == [[False, False, False, True, True, True, False]]
    assert np.isnan(depth_metrics(np.zeros(0, np.float32), np.zeros(0, np.float32))).all()
    with pytest.raises(InputError, match="640 x 480"):
        valid_pixels(np.ones((10, 10), np.float32), 0.001, 10.0, "nyu")

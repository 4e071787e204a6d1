"""The report page of depths: the worst images, their maps in colours, the figures, on a telephone too."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from browsing import needs_chromium, shown
from bundles import depth_manifest

from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.evaluation.depth.dataset import DepthReading, open_depth_dataset
from denseport.runtime.evaluation.depth.measure import COLUMNS, DepthMeasurement, measure_depths
from denseport.runtime.evaluation.depth.report import DepthEvaluation, WorstDepth, worst_depths, write_depth_report
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.evaluation.report import Origin

MARKUP = "<script>alert('x')</script>\"&"
LIMITS = (0.001, 100.0)


def measured(abs_rel: list[float], fp32: list[float] | None = None) -> DepthMeasurement:
    """Of images called 0, 1, …: d1 is 1 less AbsRel, and every tenth pixel is at the limit."""
    values = np.zeros((1 if fp32 is None else 2, len(abs_rel), len(COLUMNS)))
    for run, column in enumerate([abs_rel] if fp32 is None else [abs_rel, fp32]):
        values[run, :, COLUMNS.index("AbsRel")] = column
        values[run, :, COLUMNS.index("d1")] = 1 - np.array(column)
        values[run, :, COLUMNS.index("saturated")] = 0.1
    pixels = np.full(len(abs_rel), 50)
    return DepthMeasurement(values, pixels, False, tuple(map(str, range(len(abs_rel)))), 4.0, 3.0)


def evaluation(run: DepthMeasurement, **changes: Any) -> DepthEvaluation:
    found: dict[str, Any] = {
        "metrics": run.means(),
        "fp32": run.means(1) if len(run.values) == 2 else None,
        "artifact": "int8.onnx",
        "session": "a session",
        "protocol": SimpleNamespace(description="whole", name="reference"),
        "reading": DepthReading(1000.0, *LIMITS, None),
        "measurement": run,
        "aligned": False,
        "gate": None,
        "warnings": (),
        "data": "two folders",
    }
    return DepthEvaluation(**found | changes)


def worst(error: list[float], name: str = "room") -> WorstDepth:
    """One row of pixels 1, 2, … metres away, the last of which does not count."""
    truth = np.array([[*range(1, len(error) + 1), np.nan]], np.float32)
    image = np.full((1, len(error) + 1, 3), 90, np.uint8)
    errors = np.array([[*error, np.nan]], np.float32)
    return WorstDepth(name, image, truth, (np.nan_to_num(truth * (1 + errors), nan=3.0),), (errors,))


def write(folder: Path, found: DepthEvaluation, *images: WorstDepth, **changes: Any) -> str:
    manifest, created = depth_manifest(**changes), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    command = changes.get("name", "denseport eval bundle")
    page = write_depth_report(folder, found, manifest, images, Origin({"machine": "two cores"}, command, created))
    return page.read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each table row, by the first."""
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall("<tr>(.*?)</tr>", text, re.S)]
    plain = [[" ".join(re.sub("<[^>]+>", "", cell).split()) for cell in row] for row in found]
    return {row[0]: row[1:] for row in plain}


def decoded(text: str) -> list[np.ndarray]:
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', text)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(each), np.uint8), cv2.IMREAD_COLOR) for each in found]


def test_the_figures_and_the_verdict(tmp_path: Path) -> None:
    verdict = Verdict(False, ("too far",), "FP32", -25.0, 2.0, (-30.0, -20.0), ("few",))
    text = write(tmp_path, evaluation(measured([0.1, 0.3], [0.1, 0.2]), gate=verdict))
    plain = " ".join(re.sub("<[^>]+>", " ", text).split())
    assert "FAIL: int8.onnx of tiny" in plain and "too far" in plain and "25.00 % worse" in plain
    assert "AbsRel changed by +25.00 % ; it may grow by at most 2 %. 95 % interval: +20.00 to +30.00 %." in plain
    # AbsRel is 0.2 for FP32's 0.15, d1 0.8 for 0.85.
    assert rows(text)["AbsRel"] == ["0.2000", "0.1500", "+33.33 %"] and 'class="loss">+33.33' in text
    assert rows(text)["d1"] == ["0.8000", "0.8500", "−5.00 points"] and rows(text)["d2"][2] == "–"
    assert "10.00 % of all pixels; FP32: 10.00 % of all pixels" in plain and "0.50 images/s" in plain
    assert list(rows(text))[-2:] == ["1", "0"], "the second image lost more"
    better = write(tmp_path, evaluation(measured([0.1], [0.2]), gate=replace(verdict, delta=50.0)))
    assert "50.00 % better" in better and 'class="gain">−50.00 %' in better


def test_without_a_gate_the_largest_error_comes_first(tmp_path: Path) -> None:
    run = measured([0.1, 0.3, np.nan, 0.2])
    run.pixels[1] = 0
    text = write(tmp_path, evaluation(run), depth=DepthOutput("metres", "farther", None, "bicubic"))
    assert [name for name in rows(text) if name.isdigit()] == ["2", "3", "0"], "not finite, then by AbsRel"
    assert "Not judged" in text and "FP32" not in text and "At the network" not in text and rows(text)["2"][0] == "–"


def test_the_maps_of_an_image(tmp_path: Path) -> None:
    text = write(tmp_path, evaluation(measured([0.1])), worst([0.0, 0.125, 0.25, 9.0]))
    photo, depth, truth, error = decoded(text)
    assert photo.shape == truth.shape == depth.shape == error.shape == (1, 5, 3)
    light = truth[0].astype(int).sum(axis=1)
    assert light[0] > light[1] > light[2] > light[3], "near is bright"
    np.testing.assert_array_equal(depth[0, 0], truth[0, 0])
    np.testing.assert_array_equal(depth[0, 3], truth[0, 3])  # 40 m: beyond the truth's 4, the colour of its end
    np.testing.assert_array_equal(error[0, 2], error[0, 3])
    assert error[0, 0].min() > 220 and error[0, 2].max() < 100 and not np.array_equal(error[0, 1], error[0, 2])
    np.testing.assert_array_equal(error[0, 4], truth[0, 4])
    assert not np.array_equal(depth[0, 4], truth[0, 4]), "there is a depth where no truth is"
    assert "1.00 m" in text and "4.00 m" in text and "25 % of the depth and more" in text


def test_whatever_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    verdict = Verdict(False, (MARKUP,), MARKUP, -1.0, 2.0, None, (MARKUP,))
    found = evaluation(measured([0.1]), gate=verdict, artifact=MARKUP, warnings=(MARKUP,), data=MARKUP)
    text = write(tmp_path, found, worst([0.1], MARKUP), name=MARKUP)
    assert "<script" not in text and "'x'" not in text and text.count("&lt;script&gt;") >= 10


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images and made-up depths, of which a quarter is measured."""
    rng = np.random.default_rng(0)
    for name in ("near", "far"):
        for folder in ("images", "depths"):
            (tmp_path / folder).mkdir(exist_ok=True)
        image = cv2.resize(rng.integers(0, 256, (8, 12, 3), np.uint8), (400, 320), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), image)
        depth = rng.uniform(1, 9, (320, 400)).astype(np.float32)
        depth[rng.random(depth.shape) < 0.75] = 0
        np.save(tmp_path / f"depths/{name}.npy", depth)
    return tmp_path


@pytest.mark.parametrize("larger_is", [None, "nearer", "farther"])
def test_the_errors_are_those_of_the_metrics(depth_sample: Bundle, data: Path, larger_is: str | None) -> None:
    """Of metres and of both relative kinds: the mean of a map is the image's AbsRel."""
    bundle = Bundle(depth_sample.path)
    if larger_is is not None:
        bundle.manifest = replace(bundle.manifest, depth=DepthOutput("relative", larger_is, None, "bicubic"))
    dataset = replace(open_depth_dataset(data), reading=DepthReading(None, *LIMITS, "garg"))
    with DepthEstimator(bundle, threads=1) as estimate:
        run = measure_depths(dataset, estimate)
        found = worst_depths(dataset, run, [estimate])
    abs_rel = dict(zip(run.names, run.column("AbsRel"), strict=True))
    assert [each.name for each in found] == sorted(abs_rel, key=lambda name: -abs_rel[name])
    for each in found:
        assert each.image.shape == (256, 320, 3) and each.truth.shape == each.errors[0].shape == (256, 320)
        assert not np.isfinite(each.truth[:80]).any(), "Garg's crop leaves the upper part out"
        assert float(np.nanmean(each.errors[0])) == pytest.approx(abs_rel[each.name], rel=0.02)


def test_depths_that_are_not_finite_are_shown_as_nothing(depth_sample: Bundle, data: Path, tmp_path: Path) -> None:
    dataset = replace(open_depth_dataset(data), reading=DepthReading(None, *LIMITS, None))
    with DepthEstimator(depth_sample, threads=1) as estimate:
        run = measure_depths(dataset, estimate)

        def broken(image: Any) -> Any:
            found = estimate(image)
            return replace(found, depth=np.full_like(found.depth, np.nan))

        stand_in: Any = SimpleNamespace(read=estimate.read, manifest=estimate.manifest)
        stand_in = type("Broken", (), {**vars(stand_in), "__call__": staticmethod(broken)})()
        (found, _) = worst_depths(dataset, run, [stand_in])
    text = write(tmp_path, evaluation(run), found)
    _, depth, _, error = decoded(text)
    assert len(np.unique(depth.reshape(-1, 3), axis=0)) == 1 == len(np.unique(error.reshape(-1, 3), axis=0))


@needs_chromium
def test_a_telephone_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    verdict = Verdict(False, ("too far",), "FP32 on the same 2 images", -25.0, 2.0, (-30.0, -20.0))
    found = evaluation(measured([0.1, 0.3], [0.1, 0.2]), gate=verdict, warnings=("of noise",))
    each = worst([0.1, 0.2], "a_long_name_without_a_blank/" + 6 * "0000000017_image_02")
    each = replace(each, depths=2 * each.depths, errors=2 * each.errors)
    page = tmp_path / "report.html"
    page.write_text(write(tmp_path, found, each, name="dpt_vit-l16_384x384_relative-depth"), "utf-8")
    assert shown(page, 390) == (390, [])

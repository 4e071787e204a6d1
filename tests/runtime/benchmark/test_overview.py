"""The report of a bundle: figures as of `evaluate`, words that follow from them, a page that fits a telephone."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from browsing import needs_chromium, shown
from hostile import tiny_bundle
from onnx import numpy_helper
from planting import with_graph
from support import ASSETS

from denseport.runtime import evaluate
from denseport.runtime.benchmark.overview.collect import Overview, Row, report
from denseport.runtime.benchmark.overview.words import standing, summary
from denseport.runtime.benchmark.speed import Plan
from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DatasetError

STREET = ASSETS / "street"


def spoil(graph: onnx.GraphProto) -> None:
    """The largest weights lose nine tenths of themselves."""
    tensor = max(graph.initializer, key=lambda each: np.prod(each.dims))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.1), tensor.name))


@pytest.fixture(scope="module")
def made(sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Overview, Path]:
    """Of FP32, of itself under the name of FP16, and of what the gate must fail."""
    folder = tmp_path_factory.mktemp("report")
    bundle = Bundle(shutil.copytree(sample.path, folder / "bundle"))
    with_graph(bundle, lambda graph: None, "fp16.onnx", "fp16")
    with_graph(bundle, spoil, "int8.onnx", "int8")
    before = (bundle.path / MANIFEST).read_bytes()
    found = report(bundle.path, STREET, folder / "out", plan=Plan(3, 0.02, (), ()), threads=1, limit=3)
    assert (bundle.path / MANIFEST).read_bytes() == before, "a report leaves the bundle as it is"
    return found


def test_the_figures_are_those_of_an_evaluation_of_each(made: tuple[Overview, Path]) -> None:
    overview, _ = made
    assert [row.name for row in overview.rows] == ["model.onnx", "fp16.onnx", "int8.onnx"]
    for row in overview.rows:
        gate = None if row.is_fp32 else "model.onnx"
        alone = evaluate(overview.bundle, STREET, artifact=row.name, gate=gate, limit=3, threads=1)
        assert (row.found.mIoU, row.found.agreement) == (alone.mIoU, alone.agreement)
        assert row.found.gate == alone.gate and row.passed is (None if gate is None else row.name == "fp16.onnx")
        assert row.bytes == (overview.bundle.path / row.name).stat().st_size
        assert row.speed["whole_ms"]["p50"] > 0 and row.interval is not None
        assert row.interval[0] <= row.found.mIoU <= row.interval[1]
    assert overview.to_dict()["artifacts"][2]["evaluation"]["gate"]["passed"] is False


def test_without_a_labelled_pixel_there_is_no_page(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((8, 8), 255, np.uint8))
    with pytest.raises(DatasetError, match="every pixel of the masks is ignored"):
        report(bundle, tmp_path / "images", tmp_path / "out", masks=tmp_path / "masks", plan=Plan(1, 0.02, (), ()))
    assert not (tmp_path / "out").exists()


def test_a_broken_artifact_is_told_of_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    with_graph(bundle, lambda graph: None, "altered.onnx", "fp16")
    with_graph(bundle, lambda graph: None, "mask.onnx", "fp16")
    with (bundle.path / "altered.onnx").open("ab") as file:
        file.write(b"x")
    mask = {"mask.onnx": replace(bundle.artifact("mask.onnx"), output="mask")}
    text = replace(bundle.manifest, artifacts={**bundle.manifest.artifacts, **mask}).to_json()
    (bundle.path / MANIFEST).write_text(text)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "a.png"), np.ones((8, 8), np.uint8))
    words: list[object] = ["report", bundle.path, "--data", tmp_path / "images", "--masks", tmp_path / "masks"]
    words += ["-o", tmp_path / "out", "--rounds", 1, "--seconds", 0.01, "--threads", 1, "--json"]
    assert main([str(each) for each in words]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [each["artifact"] for each in found["artifacts"]] == ["model.onnx"]
    assert "altered since it was written" in found["broken"]["altered.onnx"] and len(found["broken"]) == 1
    assert "gives masks" in found["not_run"]["mask.onnx"] and len(found["not_run"]) == 1
    assert "denseport: error: " in err and "1 broken artifact: altered.onnx" in err and "Traceback" not in err
    page = html.unescape((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "altered.onnx is broken: " in page and "mask.onnx was not measured: " in page


def with_speed(row: Row, ratio: float | None) -> Row:
    return replace(row, speed={**row.speed, "times_as_fast_as": {"model.onnx": ratio}, "no_ratio": {}})


@pytest.mark.parametrize(
    ("ratio", "own", "best", "word"),
    [
        (1.5, True, "fp16.onnx", "Ready"),
        (1.01, True, "model.onnx", "Accurate"),  # within the noise
        (None, True, "model.onnx", "Accurate"),
        (1.5, False, "model.onnx", "Not proved here"),
    ],
)
def test_only_what_is_proved_here_and_faster_is_recommended(
    made: tuple[Overview, Path], ratio: float | None, own: bool, best: str, word: str
) -> None:
    """What fails the gate is not, however fast it is."""
    fp32, half, failing = made[0].rows
    half, failing = replace(with_speed(half, ratio), own_arithmetic=own), with_speed(failing, 9.0)
    overview = replace(made[0], rows=(fp32, half, failing))
    assert overview.recommended.name == best and best in summary(overview).title
    assert [standing(row).word for row in overview.rows] == ["Original", word, "Do not use"]
    told = " ".join(summary(overview).sentences)
    assert ("1.5 times as fast as the original" in told) is (best == "fp16.onnx")


@pytest.mark.parametrize(("low", "unsure"), [(-0.11, True), (-0.1, False)])
def test_an_interval_beyond_the_budget_is_told(made: tuple[Overview, Path], low: float, unsure: bool) -> None:
    overview, _ = made
    row = with_speed(overview.rows[1], 2.0)
    assert row.found.gate is not None and row.found.gate.budget == 0.1
    gate = replace(row.found.gate, interval=(low, 0.1))
    chosen = replace(row, found=replace(row.found, gate=gate), own_arithmetic=True)
    told = " ".join(summary(replace(overview, rows=(overview.rows[0], chosen))).cautions)
    assert ("too few to be sure of fp16.onnx: it may lose 0.11 points, more than the 0.1 " in told) is unsure


def test_the_page_says_it_all_and_loads_nothing(made: tuple[Overview, Path]) -> None:
    overview, page = made
    text = page.read_text(encoding="utf-8")
    own = re.sub(r"data:image/[^\"]+", "", text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script", own)
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    for row in overview.rows:
        assert row.name in words and f"{row.found.mIoU:.2f}" in words
    assert "Keep model.onnx" in words or "Use " in words
    failed = overview.rows[2].found.gate
    assert failed is not None and f"Do not use {failed.reasons[0]}" in words
    assert "fp16.onnx in FP32. How accurate they are on a GPU is not known" in words
    assert len(overview.worst) == 3 and all(image.name in words for image in overview.worst)


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(made: tuple[Overview, Path], width: int) -> None:
    assert shown(made[1], width) == (width, [])


def test_depth_is_refused_by_name(depth_sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[Any] = ["report", depth_sample.path, "--data", STREET, "-o", tmp_path / "out"]
    assert main([str(each) for each in arguments]) == 2
    err = capsys.readouterr().err
    assert "its network is for depth, and the page tells of segmentation" in err and "denseport eval BUNDLE" in err
    assert not (tmp_path / "out").exists()

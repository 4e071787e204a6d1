from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from browsing import needs_chromium, shown
from bundles import onnx_artifact, steps
from numpy.typing import NDArray
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference, Manifest, NetworkInput, Reference
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.evaluation.metrics import ConfusionMatrix
from denseport.runtime.evaluation.report import Evaluation, Origin, WorstImage, worst_images, write_report
from denseport.runtime.evaluation.state import Measurement
from denseport.runtime.segmenter import Segmenter

CLASSES = ("wall", "sky", "car", "tree", "never seen")
MARKUP = "<script>alert('x')</script>\"&"
VOID = {"meta", "link", "img", "br"}

# Rows the truth, columns the prediction: wall 60 % IoU, sky 50 %, the others in neither.
MATRIX = [[60, 20, 0, 0, 0], [20, 40, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


class Page(HTMLParser):
    """Tags, attributes and the text of each table row; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag: str) -> Iterator[Mapping[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def confusion(matrix: list[list[int]]) -> ConfusionMatrix:
    result = ConfusionMatrix(len(matrix))
    result.matrix[:] = matrix
    return result


def manifest(classes: tuple[str, ...] = CLASSES, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "tiny",
        "architecture": "DPT",
        "parameters": 1000,
        "patch_size": 16,
        "stride": 2,
        "classes": classes,
        "palette": tuple((10 * i % 256, 20, 30) for i in range(len(classes))),
        "reduce_zero_label": False,
        "preprocess": steps(),
        "inference": Inference(),
        "reference": None,
        "provenance": {"checkpoint": "tiny.pth", "sha256": "c0ffee"},
        "spec": {},
        "source": "model.onnx",
        "task": "segmentation",
        "input": NetworkInput(),
        "artifacts": {"int8.onnx": onnx_artifact({"int8.onnx": "ab" * 32}, "int8")},
    }
    return Manifest(**{**values, **changes})


def image(mask: NDArray[np.uint8], fp32: NDArray[np.uint8] | None = None, name: str = "street") -> WorstImage:
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    image = np.full((1, 4, 3), 90, np.uint8)
    return WorstImage(name, image, truth, mask, fp32, 33.3, None if fp32 is None else 100.0, None)


@dataclass(frozen=True)
class Report:
    """What `write_report` is given."""

    found: Evaluation
    manifest: Manifest
    images: tuple[WorstImage, ...]
    environment: dict[str, str]
    command: str
    created: datetime

    def write(self, folder: Path) -> Path:
        origin = Origin(self.environment, self.command, self.created)
        return write_report(folder, self.found, self.manifest, self.images, origin)


def report(own: list[list[int]] = MATRIX, fp32: list[list[int]] | None = None, **changes: Any) -> Report:
    """A report, with other values of its own or of its evaluation."""
    counts = confusion(own)
    run = Measurement("", 1, counts.n_classes, with_fp32=fp32 is not None)
    run.confusion, run.fp32_confusion = counts, None if fp32 is None else confusion(fp32)
    run.seconds, run.session_seconds, run.measured = 4.0, 3.0, 1
    model = changes.get("manifest", manifest())
    found: dict[str, Any] = {
        **vars(counts.scores(model.classes)),
        "artifact": "int8.onnx",
        "session": "a session",
        "protocol": SimpleNamespace(description="whole, keep-ratio 2048 x 512"),
        "reduce_zero_label": False,
        "measurement": run,
        "agreement": None,
        "gate": Verdict(False, ("too much is lost",), "FP32", -3.25, 0.5, (-4.5, -1.75), ("few images",)),
        "warnings": (),
    }
    found |= {name: changes.pop(name) for name in list(changes) if name in ("explanation", *found)}
    values: dict[str, Any] = {
        "manifest": model,
        "command": "denseport eval bundle --data street",
        "environment": {"machine": "two cores"},
        "images": (image(np.array([[0, 1, 1, 1]], np.uint8)),),
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return Report(Evaluation(**found), **{**values, **changes})


def written(folder: Path, data: Report) -> Page:
    return Page(data.write(folder).read_text(encoding="utf-8"))


def with_fp32(own: list[list[int]], fp32: list[list[int]]) -> Report:
    fp32_mask = np.array([[0, 0, 1, 1]], np.uint8)
    return report(own, fp32, images=(image(np.array([[0, 1, 1, 1]], np.uint8), fp32_mask),))


def diagonal(*intersect: int) -> list[list[int]]:
    """Of 100 pixels a class, so many right and the others given to the last class."""
    matrix = np.diag(intersect)
    matrix[:, -1] += np.where(np.array(intersect) > 0, 100 - np.array(intersect), 0)
    return [[int(value) for value in row] for row in matrix]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    data = with_fp32(MATRIX, MATRIX)
    text = data.write(tmp_path / "new" / "folder").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["report.html"]


def test_whatever_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    hostile = manifest(
        (MARKUP, *CLASSES[1:]),
        name=MARKUP,
        provenance={"checkpoint": MARKUP, "sha256": MARKUP, "torch": MARKUP},
        reference=Reference(MARKUP, MARKUP, MARKUP, 47.5, None, MARKUP),
        artifacts={MARKUP: onnx_artifact({MARKUP: MARKUP})},
    )
    data = report(
        manifest=hostile,
        artifact=MARKUP,
        gate=Verdict(False, (MARKUP,), MARKUP, -1.0, 0.5, None, (MARKUP,)),
        protocol=SimpleNamespace(description=MARKUP),
        warnings=(MARKUP,),
        command=MARKUP,
        environment={MARKUP: MARKUP},
        images=(image(np.zeros((1, 4), np.uint8), name=MARKUP),),
    )
    text = data.write(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in text and "'x'" not in text
    page = Page(text)
    assert page.text.count("<script>alert('x')</script>\"&") >= 15
    assert any(MARKUP in (image["alt"] or "") for image in page.attributes("img"))


def test_the_numbers_are_the_scores(tmp_path: Path) -> None:
    data = with_fp32(MATRIX, diagonal(70, 40, 100, 0, 0))
    page = written(tmp_path, data)
    assert data.found.measurement.fp32_confusion is not None
    fp32_scores = data.found.measurement.fp32_confusion.scores(CLASSES)
    for key in ("mIoU", "mAcc", "aAcc"):
        own, fp32 = getattr(data.found, key), getattr(fp32_scores, key)
        assert f"{key} , % {own:.2f} FP32 {fp32:.2f} {own - fp32:+.2f}".replace("-", "−") in page.text
    # By hand: wall 60 / (80 + 80 - 60), sky 40 / (60 + 60 - 40); 80 and 60 of 140 labelled pixels.
    rows = {row[0]: row[1:] for row in reversed(page.rows)}  # the first table, of classes, wins
    assert rows["wall"] == ["60.00", "70.00", "−10.00", "57.14 %"]
    assert rows["sky"] == ["50.00", "40.00", "+10.00", "42.86 %"]
    assert "0.25 images/s" in page.text and "3000.0 ms an image, 75 % of the time" in page.text
    assert ("ab" * 32) in page.text and "c0ffee" in page.text and "2026-01-02 03:04:05 UTC" in page.text


@pytest.mark.parametrize(("passed", "word"), [(True, "PASS"), (False, "FAIL")])
def test_the_verdict_is_said_in_words(tmp_path: Path, passed: bool, word: str) -> None:
    data = report(warnings=("another protocol",))
    assert data.found.gate is not None
    gate = replace(data.found.gate, passed=passed)
    page = written(tmp_path, replace(data, found=replace(data.found, gate=gate)))
    assert f"{word}: int8.onnx of tiny" in page.text
    assert "too much is lost" in page.text and "few images" in page.text
    assert "−3.250 points of mIoU, at most 0.5 may be lost. 95 % interval: −4.500 to −1.750." in page.text
    assert "Warning: another protocol" in page.text


def test_the_axis_puts_loss_left_and_budget_right(tmp_path: Path) -> None:
    page = written(tmp_path, report())
    at = {}
    for attributes in page.attributes("span"):
        if found := re.match(r"left:([\d.]+)%", attributes.get("style") or ""):
            at[attributes["class"]] = float(found[1])
    assert 0 < at["interval"] < at["dot"] < at["room"] < at["zero"] < 100
    # Linear: from -4.5 through -3.25 and -0.5 to 0.
    assert (at["dot"] - at["interval"]) / 1.25 == pytest.approx((at["zero"] - at["room"]) / 0.5, rel=0.01)


def test_without_gate_or_fp32(tmp_path: Path) -> None:
    page = written(tmp_path, report(gate=None, images=()))
    assert "Not judged" in page.text and "FP32" not in page.text and "Worst images" not in page.text
    assert [row[0] for row in page.rows[1:3]] == ["sky", "wall"]  # the lowest IoU first
    assert page.rows[1] == ["sky", "50.00", "66.67", "42.86 %"]
    assert "3 classes in neither masks nor predictions: left out." in page.text


def test_a_measurement_without_a_labelled_pixel(tmp_path: Path) -> None:
    nothing = [[0] * 5] * 5
    verdict = Verdict(False, ("no mIoU",), "FP32", float("nan"), 0.5)
    data = report(nothing, gate=verdict)
    data.found.measurement.measured, data.found.measurement.seconds = 0, 0.0
    page = written(tmp_path, data)
    assert "no difference can be given" in page.text and "mIoU , % –" in page.text
    assert "nan" not in page.text.lower()
    assert "No pixel was given a wrong class." in page.text and "1 image measured by an earlier run" in page.text


def test_the_biggest_loser_comes_first_and_absent_classes_are_counted(tmp_path: Path) -> None:
    own = diagonal(50, 10, 0, 70, 0)
    fp32 = diagonal(55, 90, 0, 60, 0)
    rows = written(tmp_path, with_fp32(own, fp32)).rows
    assert [row[0] for row in rows[1:5]] == ["sky", "wall", "never seen", "tree"]
    assert "car" not in {row[0] for row in rows}


def test_a_class_that_only_one_of_the_two_sees_has_no_change(tmp_path: Path) -> None:
    invented = [row[:] for row in MATRIX]
    invented[0][3] = 5
    rows = {row[0]: row for row in written(tmp_path, with_fp32(invented, MATRIX)).rows}
    assert rows["tree"][1:] == ["0.00", "–", "–", "none"]


def test_many_classes_are_folded(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(150))
    page = written(tmp_path, report(diagonal(*range(1, 100), *[50] * 51), manifest=manifest(names), images=()))
    assert sum(row[0].startswith("class ") and not row[1].startswith("class ") for row in page.rows) == 150
    assert "130 more classes" in page.text


def test_the_confusions_are_the_largest_pairs(tmp_path: Path) -> None:
    own, fp32 = [row[:] for row in MATRIX], [row[:] for row in MATRIX]
    own[0][2], fp32[0][2] = 40, 30
    pairs = [row for row in written(tmp_path, with_fp32(own, fp32)).rows if row[1] in CLASSES]
    assert pairs == [
        ["wall", "car", "40", "33.3 %", "25.0 %"],
        ["wall", "sky", "20", "16.7 %", "16.7 %"],
        ["sky", "wall", "20", "33.3 %", "33.3 %"],
    ]


def decoded(attributes: Mapping[str, str | None]) -> NDArray[np.uint8]:
    data = base64.b64decode((attributes["src"] or "").partition(",")[2])
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def test_the_views_of_an_image(tmp_path: Path) -> None:
    # Truth 0 0 1 and one pixel to ignore; this artifact loses the second, gains the third.
    worst = image(np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 0, 0, 2]], np.uint8))
    page = written(tmp_path, report(MATRIX, MATRIX, images=(worst,)))
    _, truth, fp32, own, difference = (decoded(image) for image in page.attributes("img"))
    np.testing.assert_array_equal(truth[0, :, 2], [0, 0, 10, 0])  # red of the palette; ignored is black
    np.testing.assert_array_equal(fp32[0, :, 2], [0, 0, 0, 20])
    np.testing.assert_array_equal(own[0, :, 2], [0, 10, 10, 10])
    same, lost, gained, changed = difference[0].astype(int)
    assert np.ptp(same) == 0
    assert lost.argmax() == 2 and gained.argmax() == 0 and changed[1:].min() > changed[0]
    assert "Truth: wall 50 %, sky 25 %" in {image["alt"] for image in page.attributes("img")}
    assert "not labelled" in page.text


def test_without_fp32_what_is_wrong_is_marked(tmp_path: Path) -> None:
    page = written(tmp_path, report(images=(image(np.array([[0, 1, 1, 1]], np.uint8)),)))
    *_, difference = (decoded(image) for image in page.attributes("img"))
    np.testing.assert_array_equal(np.ptp(difference[0], axis=1) > 0, [False, True, False, False])


def test_headers_images_and_landmarks_are_named(tmp_path: Path) -> None:
    page = written(tmp_path, with_fp32(MATRIX, MATRIX))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.attributes("th"))
    assert all(attributes.get("alt") for attributes in page.attributes("img"))
    names = {attributes.get("id") for _, attributes in page.tags}
    assert all(attributes.get("aria-labelledby") in names for attributes in page.attributes("section"))
    assert [tag for tag, _ in page.tags if tag in ("header", "main", "footer", "h1")] == [
        "header",
        "h1",
        "main",
        "footer",
    ]


@needs_chromium
def test_a_telephone_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    names = tuple(f"a class with a long name, {i}" for i in range(30))
    long = manifest(names, name="dpt_vit-b16_8xb2-160k_ade20k-512x512")
    data = report(
        diagonal(*range(40, 70)),
        diagonal(*range(41, 71)),
        manifest=long,
        explanation={"lines": ["step   " + "points " * 30]},
    )
    assert shown(data.write(tmp_path), 390) == (390, [])


@pytest.fixture(scope="module")
def segmenters(sample: Bundle) -> tuple[Segmenter, Segmenter]:
    return Segmenter(sample, protocol="fixed:96x96", threads=2), Segmenter(sample, threads=2)


def test_the_worst_images_are_those_that_an_independent_count_finds(segmenters: tuple[Segmenter, Segmenter]) -> None:
    own, fp32 = segmenters
    dataset = open_dataset(ASSETS / "street")
    accuracy, disagreement = {}, {}
    for sample in dataset.samples:
        image = cv2.imread(str(sample.image))
        stored = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE).astype(int)
        mask, other = (segment(image).mask.astype(int) for segment in (own, fp32))
        accuracy[sample.name] = 100 * np.mean((mask == stored - 1)[stored > 0])
        disagreement[sample.name] = 100 * np.mean(mask != other)

    alone = worst_images(dataset, measure_dataset(dataset, own), own, None, count=2)
    assert [p.name for p in alone] == sorted(accuracy, key=lambda name: accuracy[name])[:2]
    assert [p.accuracy for p in alone] == pytest.approx([accuracy[p.name] for p in alone])
    assert alone[0].fp32_mask is None and max(alone[0].image.shape) <= 320

    beside = worst_images(dataset, measure_dataset(dataset, own, fp32=fp32), own, fp32)
    assert [p.name for p in beside] == sorted(disagreement, key=lambda name: -disagreement[name])
    assert [p.disagreement for p in beside] == pytest.approx([disagreement[p.name] for p in beside])
    for p in beside:
        assert p.fp32_mask is not None
        assert p.image.shape[:2] == p.truth.shape == p.mask.shape == p.fp32_mask.shape


def test_a_data_set_of_one_image(segmenters: tuple[Segmenter, Segmenter], tmp_path: Path) -> None:
    own, fp32 = segmenters
    dataset = open_dataset(ASSETS / "street")
    dataset = replace(dataset, samples=dataset.samples[:1])
    result = measure_dataset(dataset, own, fp32=fp32)
    images = worst_images(dataset, result, own, fp32)
    scores = result.scores(own.manifest.classes)
    found = replace(report().found, **vars(scores), measurement=result)
    data = replace(report(), manifest=own.manifest, found=found, images=images)
    page = written(tmp_path, data)
    assert "measured on 1 image," in page.text and f"{scores.mIoU:.2f}" in page.text
    assert len(list(page.attributes("img"))) == 5

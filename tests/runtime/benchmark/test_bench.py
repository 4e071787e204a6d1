"""What ``denseport bench`` prints is what happened."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, shown
from command_line import returned_by
from hostile import tiny_manifest
from numpy.typing import NDArray
from progress_told import Told

from denseport.runtime.benchmark import bench as bench_module
from denseport.runtime.benchmark.bench import bench
from denseport.runtime.benchmark.load import Conditions, LoadMonitor
from denseport.runtime.benchmark.report import as_dict, table, write_report
from denseport.runtime.benchmark.speed import (
    Latency,
    Plan,
    Ratio,
    Result,
    expected_seconds,
    run_bench,
    speed_warnings,
    synthetic_image,
)
from denseport.runtime.benchmark.startup import measure_startup
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Manifest, NetworkInput
from denseport.runtime.cli.main import main
from denseport.runtime.errors import BundleError, DenseportError, InputError


@dataclass
class Sleeping:
    """A segmenter, and its session, that take a known time for each image."""

    artifact: str
    seconds: float
    description: str = "sleeps"
    manifest: Manifest = field(default_factory=tiny_manifest)

    def largest_batch(self, height: int, width: int) -> int | None:
        return None

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(self.seconds * len(image))
        return image

    @property
    def session(self) -> Sleeping:
        return self

    def __call__(self, image: NDArray[np.uint8]) -> None:
        time.sleep(2 * self.seconds)


def test_a_network_of_one_image_at_a_time_is_not_given_more() -> None:
    one = replace(tiny_manifest(), input=NetworkInput(shape=(1, 3, 4, 4)))
    segmenters = [Sleeping("one", 0.001, manifest=one), Sleeping("any", 0.001)]
    plan = Plan(rounds=1, seconds=0.01, concurrency=(1,), batches=(1, 2))
    found = run_bench(segmenters, synthetic_image(4, 4), np.zeros((1, 3, 4, 4), np.float32), plan)
    assert [[*each.batches] for each in found] == [[1], [1, 2]]


def test_known_durations_are_found_and_compared() -> None:
    tensor = np.zeros((1, 3, 4, 4), np.float32)
    plan = Plan(rounds=3, seconds=0.02, concurrency=(1,), batches=(2,))
    quick, slow = run_bench([Sleeping("quick", 0.005), Sleeping("slow", 0.02)], synthetic_image(4, 4), tensor, plan)
    assert 5 <= quick.session.median < slow.session.median and slow.session.median >= 20
    assert quick.session.times_as_fast_as(slow.session).median > 1.2  # 4, on a machine that has nothing else to do
    assert quick.session.samples > slow.session.samples >= 3
    assert quick.batches[2] <= 1 / 0.005 and slow.batches[2] <= 1 / 0.02
    assert quick.whole.median >= 10 and slow.whole.median >= 40 and slow.throughput[1] <= 1 / 0.04


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("rounds", 1.5),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("seconds", 0),
        ("seconds", "4"),
    ],
)
def test_a_plan_of_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} cannot be {value!r}\n  Give a"):
        Plan(**{name: value})
    with pytest.raises(InputError, match="batches cannot be 0"):
        Plan(batches=(1, 0))


@pytest.mark.parametrize("accuracy", [5, [25.8], {"mIoU": "high"}])
def test_a_damaged_record_is_refused_before_anything_is_measured(
    sample_copy: Bundle, monkeypatch: pytest.MonkeyPatch, accuracy: Any
) -> None:
    sample_copy.note("model.onnx", {"accuracy": accuracy})
    monkeypatch.setattr(bench_module, "run_bench", None)
    with pytest.raises(BundleError, match=r"model\.onnx: its record is damaged"):
        bench(sample_copy)


def test_a_percentile_needs_enough_samples() -> None:
    assert Latency(((1.0, 2.0, 3.0),)).percentile(90) is None
    assert Latency((tuple(map(float, range(5))), tuple(map(float, range(5, 10))))).percentile(90) == pytest.approx(8.1)
    assert Latency((tuple(map(float, range(99))),)).percentile(99) is None
    assert Latency((tuple(map(float, range(101))),)).percentile(99) == 99


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that slows down threefold in mid-run does not change which is faster, nor by how much."""
    ours = Latency(((1.0, 1.0), (3.0,), (3.0,)))
    theirs = Latency(((2.0,), (6.0,), (6.0, 6.0)))
    assert ours.times_as_fast_as(theirs) == Ratio((2, 2, 2))
    assert not ours.times_as_fast_as(theirs).doubt
    assert ours.drift == 2


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ((84.35,), "too few rounds: 1; a ratio takes 3"),
        ((71.0, 72.0), "too few rounds: 2"),
        ((1.79, 1.8, 84.35), "too unsteady: rounds from 1.79 to 84.35"),
        ((1.0, 1.5, 2.0), ""),
    ],
)
def test_a_ratio_is_given_where_enough_rounds_agree(
    sample: Bundle, tmp_path: Path, rounds: tuple[float, ...], words: str
) -> None:
    ours, theirs = (Latency(tuple((value,) for value in each)) for each in ([1.0] * len(rounds), rounds))
    results = [Result("ours", "", ours, ours), Result("theirs", "", theirs, theirs)]
    image, tensor = synthetic_image(4, 4), np.zeros((1, 3, 4, 4), np.float32)
    warnings = speed_warnings([results[0], results[0]])
    report = as_dict(sample, results, {}, image, tensor, Conditions(1, None, None, None), warnings, {})
    row, text = report["rows"][0], table(report)
    few = len(rounds) < 3
    assert text.count("too few") == text.count("give --rounds 3 or more") == few, "once, and not for each pair"
    if words:
        assert row["times_as_fast_as"] == {"theirs": None} and words in row["no_ratio"]["theirs"]
        assert (f"no ratio to theirs: {words}" in text) is not few and "times as fast as" not in text
    else:
        assert row["times_as_fast_as"] == {"theirs": 1.5} and row["no_ratio"] == {}
        assert "1.50 times as fast as theirs" in text


def test_the_plot_shows_a_hundredth_of_a_point_as_small_as_it_is(sample_copy: Bundle, tmp_path: Path) -> None:
    sample_copy.note("model.onnx", {"accuracy": {"mIoU": 25.88}})
    results = [Result(name, "<CPU>", Latency(((0.1,),)), Latency(((0.2,),))) for name in ("model.onnx", "torch")]
    image, tensor = synthetic_image(48, 64), np.zeros((1, 3, 4, 4), np.float32)
    report = as_dict(sample_copy, results, {}, image, tensor, Conditions(1, None, None, None), ["<busy>"], {})
    close = {**report["rows"][0], "artifact": "fp16.onnx", "mIoU": 25.87}
    page = write_report(tmp_path, {**report, "rows": [*report["rows"], close]})
    text = page.read_text()
    dots = [float(y) for y in re.findall(r'<circle class="edge" cx="[\d.]+" cy="([\d.]+)"', text)]
    assert len(dots) == 2 and 0 < dots[1] - dots[0] < 3, "of 324 units for at least 2 points of mIoU"
    labels = re.findall(r'<text class="halo" x="[\d.]+" y="([\d.]+)"[^>]*>([^<]*)', text)
    (first, name), (second, other) = labels
    assert name == "model.onnx" and other == "fp16.onnx"
    assert "model.onnx, 25.88 % mIoU" in text and "fp16.onnx, 25.87 % mIoU" in text
    assert abs(float(first) - float(second)) >= 16, "one does not cover the other"
    assert "Not drawn, as their accuracy is not recorded: torch." in text and "Image 64 x 48," in text
    assert "&lt;busy&gt;" in text and "&lt;CPU&gt;" in text and "<busy>" not in text
    if CHROMIUM is not None:
        assert shown(page, 390) == (390, [])


def test_a_depth_bundle_has_absrel_for_an_accuracy(depth_sample: Bundle, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(depth_sample.path, tmp_path / "bundle"))
    bundle.note("model.onnx", {"accuracy": {"AbsRel": 0.0912, "d1": 0.9}})
    results = [Result("model.onnx", "a CPU", Latency(((0.1,),)), Latency(((0.2,),)))]
    image, tensor = synthetic_image(48, 64), np.zeros((1, 3, 4, 4), np.float32)
    report = as_dict(bundle, results, {}, image, tensor, Conditions(1, None, None, None), [], {})
    assert report["rows"][0]["AbsRel"] == 0.0912 and "mIoU" not in report["rows"][0]
    text = write_report(tmp_path, report).read_text() + table(report)
    assert "AbsRel" in table(report) and "0.0912" in table(report)
    assert "image to depth" in text and "less is better" in text and "mIoU" not in text and "mask" not in text


def test_the_time_it_takes_is_told_beforehand() -> None:
    told = Told()
    plan = Plan(rounds=2, seconds=0.1, concurrency=(), batches=(1, 4))
    run_bench(
        [Sleeping("a", 0.05), Sleeping("b", 0.02)],
        synthetic_image(4, 4),
        np.zeros((1, 3, 4, 4), np.float32),
        plan,
        told,
    )
    (index,) = (i for i, line in enumerate(told.lines) if "measuring takes about" in line)
    assert "--rounds (2)" in told.lines[index] and "--seconds (0.1)" in told.lines[index]
    assert index == 4, "after the warm-up of both, before anything is measured"
    # Runs: 1 to count by and 2 rounds of so many, for the session, the whole way and the two batches.
    a, b = 0.05 + 2 * 2 * 0.05, 0.02 + 2 * 5 * 0.02
    batches_of_4 = 0.2 + 2 * 1 * 0.2 + 0.08 + 2 * 1 * 0.08
    whole = 0.1 + 2 * 0.1 + 0.04 + 2 * 2 * 0.04
    expected = expected_seconds(plan, [0.05, 0.02], [0.1, 0.04])
    assert expected == pytest.approx(2 * (a + b) + batches_of_4 + whole)
    callers = Plan(rounds=3, seconds=1, concurrency=(4,), batches=())
    # Four callers are served four images at least: 4 runs of 0.5 s a round, where alone there are 2.
    assert expected_seconds(callers, [0.5], [0.5]) == pytest.approx(3 * 0.5 + 3 * (1 + 1 + 2))
    assert time.perf_counter() - told.times[index] >= 0.9 * expected


def test_drift_and_other_processes_are_warned_about() -> None:
    result = run_bench(
        [Sleeping("x", 0.0)],
        synthetic_image(4, 4),
        np.zeros((1, 3, 4, 4), np.float32),
        Plan(2, 0.001, (), ()),
    )[0]
    drifted = replace(result, session=Latency(((1.0,), (1.2,), (1.5,))))
    assert speed_warnings([drifted]) and "+50 %" in speed_warnings([drifted])[0]
    assert not speed_warnings([replace(result, session=Latency(((1.0,), (1.2,), (1.01,))))])
    assert Conditions(1, 0.05, (3000, 2900), None).warnings() == []
    assert len(Conditions(1, 0.5, (3000, 1500), None).warnings()) == 2


def test_own_work_is_not_taken_for_that_of_others() -> None:
    watch = LoadMonitor()
    busy = watch.stop()
    assert busy.others is None or 0 <= busy.others <= 1
    watch._busy, watch._own, watch._start = 0.0, 0.0, watch._start - 1e9  # nothing but a little work in 30 years
    assert (watch.stop().others or 0) < 0.01


def test_memory_is_the_childs_own(sample: Bundle) -> None:
    """And not what this process, which has torch in it, once needed."""
    ballast = np.ones(2**27)  # 1 GiB
    assert measure_startup(sample.path, "model.onnx", (64, 96), 1)["peak_mib"] < ballast.nbytes / 2**20


def test_the_image_is_always_the_same_and_not_uniform() -> None:
    image = synthetic_image(96, 160)
    assert image.shape == (96, 160, 3) and image.dtype == np.uint8
    assert (image == synthetic_image(96, 160)).all() and image.std() > 20
    assert synthetic_image(1, 1).shape == (1, 1, 3)


def test_the_command_measures_records_and_reports(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    returned = returned_by(monkeypatch, bench_module, "bench")
    sample_copy.note("model.onnx", {"accuracy": {"mIoU": 25.88}})
    options = ["--size", "96x64", "--rounds", "1", "--seconds", "0.01", "--concurrency", "2", "--batches", "1"]
    assert main(["bench", str(sample_copy.path), *options, "--json", "--report", str(tmp_path / "report")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report == json.loads(json.dumps(returned[0].to_dict())) and returned[0].report == tmp_path / "report/bench.html"
    )
    (row,) = report["rows"]
    assert row["artifact"] == "model.onnx" and row["mIoU"] == 25.88
    assert row["session_ms"]["p50"] > 0 and row["whole_ms"]["p50"] > 0 and row["session_ms"]["p99"] is None
    assert row["start"]["peak_mib"] > 20 and row["start"]["open_ms"] > 0
    assert list(row["images_per_second"]) == ["2"] and list(row["batch_images_per_second"]) == ["1"]
    assert report["measured"]["network_input"][2] % 2 == 0 and report["measured"]["image"] == [64, 96]
    speed = Bundle(sample_copy.path).artifact("model.onnx").record["speed"]
    assert speed["session_ms"] == row["session_ms"] and "processor" in speed["machine"]
    assert json.loads((tmp_path / "report/bench.json").read_text()) == report
    page = (tmp_path / "report/bench.html").read_text()
    assert (
        "<svg" in page
        and "model.onnx" in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )


def test_the_function_measures_an_array_and_writes_nothing_unasked(
    sample_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, told = Plan(rounds=1, seconds=0.001, concurrency=(1,), batches=()), Told()
    before = (sample_copy.path / "manifest.json").read_bytes()
    image = synthetic_image(64, 96)
    found = bench(sample_copy, ["model.onnx"], image=image, plan=plan, threads=1, record=False, progress=told)
    assert (sample_copy.path / "manifest.json").read_bytes() == before
    (result,) = found.results
    assert result.whole.median > 0 and result.session.median > 0  # one run each: under load the longer may be either
    assert found.details["measured"]["image"] == [64, 96] and found.skipped == {} and found.report is None
    assert any("model.onnx in a process of its own" in line for line in told.lines)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"artifacts": ["int9.onnx"]}, "no artifact 'int9.onnx'"),
        ({"checkpoint": "x.pth"}, "--checkpoint is used by --baseline only"),
        ({"image": "none.jpg"}, "none.jpg"),
        ({"image": np.zeros((8, 8), np.uint8)}, "expected an image of shape"),
        ({"image": np.zeros((8, 8, 3))}, "expected an image of shape"),
        ({"artifacts": "int9.onnx"}, "no artifact 'int9.onnx'"),
        ({"report": __file__}, "cannot be written"),
        ({"report": ""}, "report cannot be ''"),
    ],
)
def test_the_function_raises_what_the_command_prints(sample: Bundle, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DenseportError, match=re.escape(words)) as caught:
        bench(sample, **arguments)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "big"], "--size: 'big' is not"),
        (["--size", "0x5"], "--size: '0x5' is not"),
        (["--rounds", "0"], "--rounds: '0'"),
        (["--seconds", "-1"], "--seconds: '-1'"),
        (["--batches", "0"], "--batches"),
        (["--threads", "0"], "--threads: '0'"),
        (["--artifact", "int9"], "no artifact 'int9'"),
        (["--checkpoint", "x.pth"], "--checkpoint is used by --baseline only"),
        (["--image", "none.jpg"], "none.jpg"),
    ],
)
def test_bad_input(sample: Bundle, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    assert main(["bench", str(sample.path), *options]) == 2
    assert words in capsys.readouterr().err

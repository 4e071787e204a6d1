"""Evaluation against mmsegmentation's own figures, through kills and resumes, and of hostile data."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from planting import with_graph
from support import ASSETS

from denseport.runtime import evaluate
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DatasetError, InputError
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.evaluation.metrics import ConfusionMatrix
from denseport.runtime.evaluation.task import LongRun, Task
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.progress import Silent, StepCallback

STREET = ASSETS / "street"


def reference(shared: Path, checkpoint: str, data: str) -> dict[str, float]:
    results = json.loads((shared / "data" / "reference.json").read_text())[checkpoint]["results"]
    return dict(results[data]["summary"])


def measure(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    code = main(["eval", *arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    result["code"] = code
    return result


def assert_equals_mmsegmentation(result: dict[str, object], expected: dict[str, float]) -> None:
    for name in ("mIoU", "mAcc", "aAcc"):
        assert result[name] == pytest.approx(expected[name], abs=0.05), name


def test_the_small_sample_scores_what_mmsegmentation_measured(
    shared: Path, sample: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    street = measure(capsys, str(sample.path), "--data", str(shared / "data/street"))
    assert street["images"] == 100
    assert_equals_mmsegmentation(street, reference(shared, "dpt_tiny_street.pth", "street100_single"))
    ade = measure(capsys, str(sample.path), "--data", str(shared / "data/ade20k_val"))
    assert_equals_mmsegmentation(ade, reference(shared, "dpt_tiny_street.pth", "ade3_single"))


@pytest.mark.slow
def test_the_large_sample_scores_what_mmsegmentation_measured(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from denseport.export.bundle import export_bundle

    bundle = export_bundle(shared / "data/checkpoints/dpt_deit-s16_street.pth", tmp_path / "bundle")
    street = measure(capsys, str(bundle.path), "--data", str(shared / "data/street"), "--gate", "41.92")
    assert street["code"] == 0
    assert_equals_mmsegmentation(street, reference(shared, "dpt_deit-s16_street.pth", "street100_single"))


def test_workers_and_order_do_not_change_a_single_count(sample: Bundle) -> None:
    dataset = open_dataset(STREET)
    segmenter = Segmenter(sample)
    expected = ConfusionMatrix(150)
    for item in dataset.samples:
        from denseport.runtime.media.images import read_image

        expected.update(dataset.read_mask(item, 150), segmenter(read_image(item.image)).mask)
    for workers in (1, 4):
        assert measure_dataset(dataset, segmenter, workers=workers).confusion == expected


CHILD = """
import sys, numpy as np
from contextlib import nullcontext
from pathlib import Path
from denseport.runtime import evaluate
from denseport.runtime.evaluation import measure
from denseport.runtime.evaluation.task import LongRun, Task
measure.SAVE_SECONDS = 0.1
bundle, data, state, out = sys.argv[1:]
class Told:
    def say(self, text):
        pass
    def phase(self, title):
        return nullcontext(lambda done, total, note: print(done, flush=True))
found = evaluate(bundle, data, run=LongRun(Path(state), resume=True), progress=Told()).measurement
np.savez(out, matrix=found.confusion.matrix, intersect=found.counts['intersect'], measured=found.measured)
"""


def run_child(arguments: list[str], kill_after: int | None) -> int:
    """Run the evaluation in a child; kill -9 it once it has done ``kill_after`` images. Returns images done."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    done = 0
    for line in child.stdout:
        done = int(line)
        if kill_after is not None and done >= kill_after:
            child.send_signal(signal.SIGKILL)
            break
    child.stdout.close()
    child.wait()
    return done


def test_killed_three_times_and_resumed_gives_the_same_matrix(shared: Path, sample: Bundle, tmp_path: Path) -> None:
    data = shared / "data/street"
    whole = measure_dataset(open_dataset(data), Segmenter(sample))
    state, out = tmp_path / "state.npz", tmp_path / "out.npz"
    arguments = [str(sample.path), str(data), str(state), str(out)]
    moments = sorted(random.sample(range(5, 95), 3))
    for moment in moments:
        assert run_child(arguments, kill_after=moment) >= moment
        assert not out.exists()
    run_child(arguments, kill_after=None)
    with np.load(out) as result:
        assert result["measured"] < 100, f"nothing was resumed after kills at {moments}"
        np.testing.assert_array_equal(result["matrix"], whole.confusion.matrix)
        np.testing.assert_array_equal(result["intersect"], whole.counts["intersect"])
    assert not state.exists()


class Interrupting(Silent):
    """Somebody who presses Ctrl-C after the first image."""

    def phase(self, title: str) -> AbstractContextManager[StepCallback]:
        def stop(done: int, total: int, note: str = "") -> None:
            raise KeyboardInterrupt

        return nullcontext(stop)


def test_a_state_of_another_measurement_is_not_taken_up(sample: Bundle, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"

    def measured(protocol: str, images: int = 3) -> int:
        run = LongRun(state, resume=state.exists())
        return evaluate(sample, STREET, protocol=protocol, limit=images, run=run).measurement.measured

    def interrupt() -> None:
        with pytest.raises(KeyboardInterrupt):
            evaluate(sample, STREET, limit=3, run=LongRun(state), progress=Interrupting())
        assert state.exists()

    interrupt()
    assert measured("reference") == 2, "one image was kept"
    assert not state.exists()
    interrupt()
    assert measured("fixed:96x96") == 3
    interrupt()
    assert measured("reference", images=2) == 2
    state.write_bytes(b"not an archive")
    with pytest.raises(InputError, match="is not a state of a measurement"):
        measured("reference")
    assert state.read_bytes() == b"not an archive"


def test_a_mask_of_another_size_is_named(sample: Bundle, tmp_path: Path) -> None:
    import cv2

    for folder in ("images", "annotations"):
        (tmp_path / folder / "validation").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images/validation/a.jpg"), np.zeros((60, 80, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "annotations/validation/a.png"), np.zeros((60, 81), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png: is 81 x 60, its image .* is 80 x 60"):
        measure_dataset(open_dataset(tmp_path), Segmenter(sample))


def test_gate_exit_codes(sample: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    measured = measure(capsys, str(sample.path), "--data", str(STREET))
    assert measured["code"] == 0 and measured["gate"] is None
    passing = measure(capsys, str(sample.path), "--data", str(STREET), "--gate", f"{measured['mIoU']:.2f}")
    assert passing["code"] == 0 and passing["gate"]["passed"]
    failing = measure(capsys, str(sample.path), "--data", str(STREET), "--gate", f"{measured['mIoU'] + 1:.2f}")
    assert failing["code"] == 1 and not failing["gate"]["passed"]
    assert "points below" in failing["gate"]["reasons"][0]


def test_recording_a_gate_keeps_fp32s_figures_too_but_replaces_none(
    sample_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_graph(sample_copy, lambda graph: None, "fp16.onnx", "fp16")
    command = [str(bundle.path), "--data", str(STREET), "--artifact", "fp16.onnx", "--gate", "model.onnx", "--record"]
    assert measure(capsys, *command)["code"] == 0
    alone = measure(capsys, str(bundle.path), "--data", str(STREET))
    kept = Bundle(bundle.path).artifact("model.onnx").record["accuracy"]
    assert kept["mIoU"] == alone["mIoU"] and kept["images"] == alone["images"] and kept["gate"] is None
    assert main(["inspect", str(bundle.path)]) == 0 and capsys.readouterr().out.count(f"mIoU {kept['mIoU']:.2f}") == 2
    assert measure(capsys, *command, "--limit", "1")["images"] == 1
    again = Bundle(bundle.path)
    assert again.artifact("model.onnx").record["accuracy"] == kept
    assert again.artifact("fp16.onnx").record["accuracy"]["images"] == 1


def test_without_a_labelled_pixel_there_is_no_miou(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((40, 50), 255, np.uint8))
    bundle, data = str(sample_copy.path), ["--data", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    result = measure(capsys, bundle, *data, "--no-reduce-zero-label", "--record")
    assert result["mIoU"] is None and "every pixel of the masks is ignored" in str(result["warnings"])
    assert main(["inspect", bundle]) == 0
    assert "mIoU unknown: no pixel counted (1 image" in capsys.readouterr().out


@pytest.mark.parametrize("shard", [[], ["--shard", "1/2"]])
def test_a_file_that_is_there_is_not_taken_for_the_state(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], shard: list[str]
) -> None:
    file = tmp_path / "thesis.odt"
    file.write_text("kept")
    command = ["eval", str(sample.path), "--data", str(STREET), *shard, "--state"]
    assert main([*command, str(file)]) == 2
    assert f"--state {file}: exists" in capsys.readouterr().err
    assert main([*command, str(file), "--resume"]) == 2
    assert f"--state {file}: is not a state" in capsys.readouterr().err
    assert file.read_text() == "kept"
    assert main([*command, str(tmp_path), "--resume"]) == 2
    assert f"--state {tmp_path}: is not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gate", "reference"], "not recognised as a published model"),
        (["--gate", "model.onnx"], "cannot be compared with itself"),
        (["--gate", "int8.onnx"], "no artifact 'int8.onnx'"),
        (["--protocol", "fixed:8x8"], "no protocol 'fixed:8x8'"),
        (["--explain"], "--checkpoint"),
        (["--checkpoint", "c.pth"], "Add --explain"),
        (["--agreement", "0.9"], "Add --gate"),
        (["--budget", "1"], "Add --gate"),
        (["--budget", "0"], "Add --gate"),
        (["--state", f"{__file__}/state.npz"], "A file is where a folder is needed"),
        (["--state", "n" * 300], "File name too long"),
        (["--data", "n" * 300], "File name too long"),
        (["--limit", "0"], "--limit: '0' is not a whole number"),
        (["--budget", "-1", "--gate", "20"], "-1"),
        (["--artifact", "nothing.onnx"], "no artifact 'nothing.onnx'"),
        (["--list", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_arguments_are_refused_before_the_work(
    sample: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(Task, "measure", lambda *_: pytest.fail("images were measured"))
    assert main(["eval", str(sample.path), "--data", str(STREET), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_link_to_nothing_is_named(sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").symlink_to("nothing.png")
    images, masks = str(tmp_path / "images"), str(tmp_path / "masks")
    assert main(["eval", str(sample.path), "--data", images, "--masks", masks]) == 2
    assert "images/a.png: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("ms-flip", "ms + flip (6 scales, keep-ratio 512 x 80 to keep-ratio 1792 x 280)"),
        ("ms-flip:1.x", "ms + flip (6 scales, by 0.5 to by 1.75)"),
        ("slide:96:64", "crop 96 x 96, stride 64 x 64"),
        ("fixed:128x96", "fixed 128 x 96"),
    ],
)
def test_protocols_run_and_are_named(
    sample: Bundle, capsys: pytest.CaptureFixture[str], protocol: str, words: str
) -> None:
    result = measure(capsys, str(sample.path), "--data", str(STREET), "--protocol", protocol, "--limit", "2")
    assert words in result["protocol"]["description"]
    assert 10 < result["aAcc"] <= 100


def test_the_default_state_lies_in_the_cache(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = set(STREET.iterdir())
    assert main(["eval", str(sample.path), "--data", str(STREET), "--limit", "1", "--json"]) == 0
    capsys.readouterr()
    assert not list(tmp_path.rglob("*.npz")), "a finished run leaves no state"
    assert set(STREET.iterdir()) == before

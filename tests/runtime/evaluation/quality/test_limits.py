"""Limits of the gate beside mIoU: each fails where it is passed or cannot be judged, and lasts through long runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planting import with_graph
from support import ASSETS

from denseport.runtime import Gate, evaluate
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.gate import Verdict, check_limits
from denseport.runtime.evaluation.quality.boundary import boundary_counts, boundary_f
from denseport.runtime.evaluation.state import Extras, Measurement
from denseport.runtime.evaluation.task import LongRun, evaluate_shard
from denseport.runtime.segmenter import Segmenter

STREET = ASSETS / "street"
PASS = Verdict(True, (), "FP32", 0.0, 0.1)
CLASSES = ("sky", "road", "car")
Call = Callable[..., tuple[int, str, str]]


def measured(*, with_fp32: bool = True, labelled: bool = True) -> Measurement:
    """Of one image of 20 x 30: FP32 is right everywhere, the artifact's edge lies 5 pixels off; scores are 0.9."""
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 10:20], truth[:, 20:] = 1, 2
    mask = truth.copy()
    mask[:, 20:25] = 1
    found = Measurement("", 1, 3, with_fp32=with_fp32, extras=Extras(boundaries=True, scores=True))
    scores = np.full(truth.shape, 0.9, np.float32)
    given = truth if labelled else np.full_like(truth, 255)
    found.add(0, given, mask, truth, finite=True, scores=scores)
    return found


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_class_drop": 49.9}, "class 'car' lost 50.00 points of IoU, from 100.00 to 50.00; a class may lose 49.9"),
        ({"max_class_drop": 50}, None),
        # Of road's two edges one is found, of car's none; sky's is.
        ({"max_boundary_drop": 49.9}, "the boundary F-score lost 50.00 points; it may lose 49.9"),
        ({"max_boundary_drop": 50}, None),
        # 500 of 600 pixels are right, and all say 90 %.
        ({"max_ece": 6.6}, "the calibration error of the scores is 6.67 %; the limit is 6.6 %"),
        ({"max_ece": 6.7}, None),
        ({}, None),
    ],
    ids=str,
)
def test_what_is_beyond_a_limit_fails_with_its_reason(limit: dict[str, float], reason: str | None) -> None:
    verdict = check_limits(PASS, measured(), CLASSES, Gate("model.onnx", **limit))
    assert verdict.passed is (reason is None) and verdict.reasons == ((reason,) if reason else ())


def test_what_cannot_be_judged_fails() -> None:
    everything = Gate("model.onnx", max_class_drop=100, max_boundary_drop=100, max_ece=100)
    for found in (measured(labelled=False), Measurement("", 1, 3, with_fp32=False)):
        verdict = check_limits(PASS, found, CLASSES, everything)
        assert not verdict.passed and len(verdict.reasons) == 3
        assert "none has an IoU in both" in verdict.reasons[0] and "cannot be told; the limit is" in verdict.reasons[1]
    assert check_limits(PASS, measured(), CLASSES, everything).passed


@pytest.mark.parametrize("name", ["max_class_drop", "max_boundary_drop"])
def test_fp32_loses_nothing_against_itself(sample: Bundle, name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}: model.onnx is FP32 itself"):
        evaluate(sample, STREET, limit=1, gate=Gate(1.0, **{name: 1.0}))


def test_a_limit_needs_a_gate(sample: Bundle, call: Call) -> None:
    code, _, error = call("eval", sample.path, "--data", STREET, "--max-ece", "3")
    assert code == 2 and "--max-ece is used by --gate only" in error


def test_shards_and_one_run_count_the_same_and_both_are_printed(
    sample_copy: Bundle, tmp_path: Path, call: Call
) -> None:
    bundle = with_graph(sample_copy, lambda graph: None, "fp16.onnx", "fp16")
    options = {"artifact": "fp16.onnx", "extras": Extras(True, True), "gate": Gate("model.onnx")}
    dataset = open_dataset(STREET)
    states = tuple(tmp_path / f"{i}.npz" for i in (1, 2))
    for i, state in enumerate(states, 1):
        evaluate_shard(bundle, dataset, (i, 2), state, **options)
    merged = evaluate(bundle, dataset, run=LongRun(merge=states), **options)
    with pytest.raises(InputError, match="is not a state of this measurement"):
        evaluate(bundle, dataset, run=LongRun(merge=states), **options | {"extras": Extras(boundaries=True)})
    arguments = ["--artifact", "fp16.onnx", "--gate", "model.onnx", "--max-boundary-drop", "0", "--max-ece", "0.01"]
    code, printed, _ = call("eval", bundle.path, "--data", STREET, *arguments, "--json")
    found: dict[str, Any] = json.loads(printed)
    assert (found["boundary_F"], found["ECE"]) == (merged.boundary_F, merged.ECE)
    assert found["boundary_drop"] == 0 and found["class_drop"]["points"] == 0, "the planted artifact is FP32"
    assert code == 1 and [reason.split(" is ")[0] for reason in found["gate"]["reasons"]] == [
        "the calibration error of the scores"
    ]
    code, printed, _ = call(
        "eval", bundle.path, "--data", STREET, *arguments[:4], "--boundaries", "--ece", "--record", "--report", tmp_path
    )
    assert code == 0 and f"boundary F-score {found['boundary_F']:.2f}" in printed
    assert f"(ECE) {found['ECE']:.2f} %, temperature 1" in printed and "worst class against FP32" in printed
    assert Bundle(bundle.path).artifact("fp16.onnx").record["accuracy"]["ECE"] == found["ECE"]
    page = (tmp_path / "report.html").read_text()
    assert all(words in page for words in ("What a mean IoU hides", "Class that lost most", "Calibration error"))


def test_the_command_scores_the_boundaries_of_the_masks(sample: Bundle) -> None:
    dataset = open_dataset(STREET)
    with Segmenter(sample) as segment:
        pairs = [(dataset.read_mask(each, 150), segment(each.image).mask) for each in dataset.samples]
    counts = np.sum([boundary_counts(*pair, 150) for pair in pairs], axis=0)
    expected = boundary_f(counts)
    found = evaluate(sample, dataset, extras=Extras(boundaries=True))
    per_class = found.to_dict()["boundary_F_per_class"]
    np.testing.assert_allclose([math.nan if each is None else each for each in per_class], expected)
    assert found.boundary_F == pytest.approx(np.nanmean(expected)) and found.boundary_drop is None and found.ECE is None

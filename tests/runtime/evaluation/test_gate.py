from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import measurement_of

from denseport.runtime.bundle.manifest import Reference
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.gate import (
    AGREEMENTS,
    BUDGETS,
    Gate,
    Verdict,
    against_fp32,
    against_miou,
    check_collapse,
    check_labels,
    choose_comparison,
    published_miou,
    threshold,
)
from denseport.runtime.evaluation.metrics import ConfusionMatrix, mean_iou
from denseport.runtime.evaluation.state import Measurement

CLASSES = ("sky", "road", "car")
PASS = Verdict(True, (), "FP32", 0.0, 0.1)


def measure(errors: float, images: int = 40, seed: int = 0) -> list[ConfusionMatrix]:
    """One matrix an image; the truth is the same for all error rates, and so is where errors fall first."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(images):
        truth = rng.choice(3, (16, 16), p=[0.7, 0.25, 0.05]).astype(np.uint8)
        wrong = rng.random(truth.shape) < errors
        matrix = ConfusionMatrix(3)
        matrix.update(truth, np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8))
        matrices.append(matrix)
    return matrices


# The published number


@pytest.mark.parametrize(
    ("images", "note"), [(2000, ""), (100, "the published mIoU is of 2000 images; 100 were measured")]
)
def test_the_published_number_is_only_for_its_images(images: int, note: str) -> None:
    reference = Reference("vit-b16_dpt", "ADE20K", "whole", 47.5, None, "its hash")
    manifest = SimpleNamespace(budgets={}, reference=reference, source="model.onnx")
    bundle = SimpleNamespace(manifest=manifest, path="bundle", artifact=lambda name: SimpleNamespace(precision="int8"))
    protocol = SimpleNamespace(name="reference")
    segmenter: Any = SimpleNamespace(manifest=manifest, bundle=bundle, artifact="int8.onnx", protocol=protocol)
    found = choose_comparison(Gate(), segmenter, images)
    assert (found.budget, found.agreement) == (0.5, 0.9)
    if note:
        assert found.yardstick is None and found.notes == (f"compared with FP32 instead: {note}",)
    else:
        assert found.yardstick == ("published mIoU of vit-b16_dpt", 47.5) and found.notes == ()


def segmenter_of(artifact: str, protocol: str = "reference", *, published: bool = True, **budgets: float) -> Any:
    """What a gate asks of a segmenter: of a bundle with model.onnx and int8.onnx."""
    reference = Reference("vit-b16_dpt", "ADE20K", "whole", 47.5, 48.25, "its hash") if published else None
    manifest = SimpleNamespace(budgets=budgets, reference=reference, source="model.onnx")
    artifacts = {"model.onnx": SimpleNamespace(precision="fp32"), "int8.onnx": SimpleNamespace(precision="int8")}
    bundle = SimpleNamespace(manifest=manifest, path="bundle", artifact=artifacts.__getitem__)
    return SimpleNamespace(manifest=manifest, bundle=bundle, artifact=artifact, protocol=SimpleNamespace(name=protocol))


@pytest.mark.parametrize(
    ("protocol", "yardstick"),
    [
        ("reference", ("published mIoU of vit-b16_dpt", 47.5)),
        ("ms-flip", ("published mIoU of vit-b16_dpt", 48.25)),
        ("ms-flip:0.x", ("published mIoU of vit-b16_dpt", 48.25)),
        ("ms-flip:1.x", None),
        ("native", None),
    ],
)
def test_a_published_number_is_of_a_protocol(protocol: str, yardstick: tuple[str, float] | None) -> None:
    found = choose_comparison(Gate(), segmenter_of("int8.onnx", protocol), 2000)
    assert found.yardstick == yardstick
    obstacle = f"compared with FP32 instead: no mIoU was published for protocol {protocol}"
    assert found.notes == (() if yardstick else (obstacle,))
    if yardstick is None:
        with pytest.raises(InputError, match=f"--gate reference: no mIoU was published for protocol {protocol}"):
            choose_comparison(Gate(), segmenter_of("model.onnx", protocol), 2000)
    for images in (1999, 2001):
        assert choose_comparison(Gate(), segmenter_of("int8.onnx", protocol), images).yardstick is None


def test_a_bundle_that_nobody_published_needs_another_yardstick() -> None:
    assert published_miou(segmenter_of("int8.onnx", published=False)) is None
    with pytest.raises(InputError, match="bundle: has no published mIoU to compare with"):
        choose_comparison(Gate(), segmenter_of("int8.onnx", published=False), 2000)
    for gate, yardstick in ((Gate(40.0), ("the given mIoU", 40.0)), (Gate("model.onnx"), None)):
        assert choose_comparison(gate, segmenter_of("int8.onnx", published=False), 3).yardstick == yardstick


def test_only_the_source_is_a_yardstick_and_not_for_itself() -> None:
    with pytest.raises(InputError, match=r"artifacts are compared with the FP32 artifact only, model\.onnx"):
        choose_comparison(Gate("int8.onnx"), segmenter_of("model.onnx"), 9)
    with pytest.raises(InputError, match=r"--gate model\.onnx: an artifact cannot be compared with itself"):
        choose_comparison(Gate("model.onnx"), segmenter_of("model.onnx"), 9)
    with pytest.raises(KeyError):
        choose_comparison(Gate("nope.onnx"), segmenter_of("int8.onnx"), 9)


def test_what_is_compared_says_how() -> None:
    found = choose_comparison(Gate(40.0, strict=True), segmenter_of("model.onnx"), 9)
    assert (found.budget, found.agreement, found.gate.strict, found.is_fp32) == (0.05, 0.999, True, True)
    found = choose_comparison(Gate(40.0), segmenter_of("int8.onnx", int8=0.25), 9)
    assert (found.budget, found.agreement, found.gate.strict, found.is_fp32) == (0.25, 0.9, False, False)
    found = choose_comparison(Gate(40.0, budget=0, agreement=0), segmenter_of("int8.onnx", int8=0.25), 9)
    assert (found.budget, found.agreement) == (0, 0)


def test_fp32_beside_a_given_number_has_nothing_unknown() -> None:
    """Of another artifact a note tells what was not looked for, since FP32 was not run beside it."""
    matrix = ConfusionMatrix(3)
    matrix.matrix[:] = np.eye(3) * 10
    found = Measurement("", 1, 3, with_fp32=False)
    found.confusion.merge(matrix)
    for artifact, notes in (("model.onnx", 0), ("int8.onnx", 1)):
        verdict = choose_comparison(Gate(100.0), segmenter_of(artifact), 1).judge(found, CLASSES)
        assert verdict.passed and len(verdict.notes) == notes


@pytest.mark.parametrize(("ignored", "told"), [(10, False), (11, True)])
def test_a_tenth_of_the_labels_may_be_ignored_and_one_pixel_is_a_class(ignored: int, told: bool) -> None:
    found = Measurement("", 1, 3, with_fp32=False)
    found.confusion.matrix[:] = np.diag([98 - ignored, 1, 1])
    found.counts["compared"][0] = 100
    assert check_labels(PASS, found, CLASSES, strict=False).notes == ("11.0 % of the labels were ignored",) * told
    strict = check_labels(PASS, found, CLASSES, strict=True)
    assert strict.passed is not told and strict.reasons == ("11.0 % of the labels were ignored (strict)",) * told


def test_strictness_keeps_earlier_reasons_and_notes() -> None:
    found = Measurement("", 1, 3, with_fp32=False)
    found.confusion.matrix[:] = np.diag([9, 0, 0])
    failed = against_miou(40.0, 46.0, 0.5, "published mIoU")
    absent = "2 of 3 classes never occurred in the masks: road, car"
    assert check_labels(failed, found, CLASSES, strict=True).reasons == (*failed.reasons, f"{absent} (strict)")
    noted = check_labels(Verdict(True, (), "", 0, 1, notes=("first",)), found, CLASSES, strict=False)
    assert noted.notes == ("first", absent) and noted.passed


@pytest.mark.parametrize(("measured", "passed"), [(47.0, True), (46.0, True), (45.5, True), (45.25, False)])
def test_a_loss_up_to_the_budget_passes(measured: float, passed: bool) -> None:
    verdict = against_miou(measured, 46.0, 0.5, "published mIoU")
    assert verdict.passed is passed
    assert verdict.delta == measured - 46.0
    assert verdict.compared_with == "published mIoU, 46.00"
    assert bool(verdict.reasons) is not passed
    if not passed:
        assert verdict.reasons == ("mIoU 45.25 is 0.750 points below published mIoU, 46.00; the budget is 0.5",)


def test_nothing_measured_fails() -> None:
    verdict = against_miou(float("nan"), 46.0, 0.5, "published mIoU")
    assert not verdict.passed
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["delta"] is None


def test_each_precision_has_a_budget_and_an_agreement() -> None:
    assert BUDGETS == {"fp32": 0.05, "fp16": 0.1, "bf16": 0.2, "int8": 0.5, "fp8": 0.5}
    assert AGREEMENTS == {"fp32": 0.999, "fp16": 0.99, "bf16": 0.98, "int8": 0.9, "fp8": 0.9}
    assert threshold(BUDGETS, "fp16") == 0.1
    assert threshold(BUDGETS, "fp16", 0.0) == 0.0
    with pytest.raises(InputError, match="'int3'"):
        threshold(BUDGETS, "int3")
    for bad in (-1.0, float("nan")):
        with pytest.raises(InputError, match="not a number from 0 up"):
            threshold(BUDGETS, "fp16", bad)


# FP32 on the same images


def naive_interval(candidate: list[ConfusionMatrix], fp32: list[ConfusionMatrix]) -> NDArray[np.float64]:
    """The bootstrap with whole matrices: draw images with replacement, add up, take the difference."""
    rng = np.random.default_rng(123)
    deltas = []
    for _ in range(600):
        totals = ConfusionMatrix(3), ConfusionMatrix(3)
        for i in rng.integers(0, len(fp32), len(fp32)):
            totals[0].merge(candidate[i])
            totals[1].merge(fp32[i])
        deltas.append(totals[0].scores(CLASSES).mIoU - totals[1].scores(CLASSES).mIoU)
    return np.quantile(deltas, [0.025, 0.975])


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    fp32, candidate = measure(0.10), measure(0.12)
    verdict = against_fp32(measurement_of(candidate, fp32), budget=0.5)
    totals = ConfusionMatrix(3), ConfusionMatrix(3)
    for total, matrices in zip(totals, (candidate, fp32), strict=True):
        for matrix in matrices:
            total.merge(matrix)
    assert verdict.delta == pytest.approx(totals[0].scores(CLASSES).mIoU - totals[1].scores(CLASSES).mIoU)
    assert not verdict.passed
    assert verdict.interval is not None
    low, high = verdict.interval
    assert low < verdict.delta < high
    expected = naive_interval(candidate, fp32)
    np.testing.assert_allclose(verdict.interval, expected, atol=0.15 * (high - low))


def test_the_interval_is_the_middle_95_percent_of_a_thousand_draws() -> None:
    """The same draws, counted out in whole numbers."""
    found = measurement_of(measure(0.12, images=9), measure(0.10, images=9))
    draws = np.random.default_rng(0).multinomial(9, [1 / 9] * 9, size=1000)
    deltas = [drawn_miou(found, "", times) - drawn_miou(found, "fp32_", times) for times in draws]
    # The 2.5th and 97.5th percentiles of sorted values 0 to 999 lie at 24.975 and 974.025.
    ordered = np.sort(deltas)
    expected = [np.interp(at, range(1000), ordered) for at in (24.975, 974.025)]
    np.testing.assert_allclose(against_fp32(found, 0.5).interval or (), expected, rtol=1e-9)


def drawn_miou(found: Measurement, prefix: str, times: NDArray[np.integer]) -> float:
    """The mIoU with each image as often as it was drawn."""
    repeated = (
        np.repeat(found.counts[f"{prefix}{name}"], times, axis=0).sum(axis=0) for name in ("intersect", "union")
    )
    return float(mean_iou(*repeated))


def test_an_interval_that_ends_at_the_budget_is_sure() -> None:
    half, whole = ConfusionMatrix(1), ConfusionMatrix(1)
    half.matrix[:], half.outside[:], whole.matrix[:] = 1, 1, 2
    verdict = against_fp32(measurement_of([half, half], [whole, whole]), budget=50.0)
    assert verdict.passed and verdict.delta == -50 and verdict.interval == (-50.0, -50.0)
    assert verdict.notes == ()


def test_the_interval_is_the_same_each_time_and_paired() -> None:
    fp32 = measure(0.10)
    found = measurement_of(measure(0.12), fp32)
    assert against_fp32(found, 0.5) == against_fp32(found, 0.5)
    assert against_fp32(found, 0.5, seed=1).interval != against_fp32(found, 0.5).interval
    # The same images drawn for both: an artifact equal to FP32 has no spread at all.
    same = against_fp32(measurement_of(fp32, fp32), 0.05)
    assert same.interval == (0.0, 0.0)
    assert same.passed and not same.notes


def test_a_pass_on_too_few_images_is_noted_as_unsure() -> None:
    fp32, candidate = measure(0.100, images=4), measure(0.101, images=4)
    candidate[0] = measure(0.2, images=1)[0]
    found = measurement_of(candidate, fp32)
    loss = -against_fp32(found, budget=0.0).delta
    assert loss > 0
    verdict = against_fp32(found, budget=loss + 0.1, notes=("the published mIoU is of 2000 images",))
    assert verdict.passed
    assert verdict.notes[0] == "the published mIoU is of 2000 images"
    assert "4 images are too few to be sure" in verdict.notes[1]
    assert not against_fp32(found, budget=50.0).notes


def test_one_image_has_no_interval() -> None:
    one = measure(0.1, images=1)
    verdict = against_fp32(measurement_of(one, one), 0.1)
    assert verdict.passed and verdict.interval is None
    assert "at least two images" in verdict.notes[0]
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_images_without_labels_do_not_spoil_the_interval() -> None:
    images = [*measure(0.1, images=1), ConfusionMatrix(3)]
    assert against_fp32(measurement_of(images, images), 0.1).interval == (0.0, 0.0)
    nothing = [ConfusionMatrix(3), ConfusionMatrix(3)]
    verdict = against_fp32(measurement_of(nothing, nothing), 0.1)
    assert not verdict.passed and verdict.interval is None


# Collapse


def predictions(
    pixels: list[int], fp32: list[int] | None = None, agreement: float = 1.0, non_finite: int = 0
) -> Measurement:
    found = Measurement("", 100, 3, with_fp32=fp32 is not None)
    found.counts["non_finite"][:non_finite] = 1
    found.counts["pixels"][7] = pixels
    if fp32 is not None:
        found.counts["fp32_pixels"][8] = fp32
        found.counts["agreeing"][:], found.counts["compared"][:] = round(agreement * 10_000), 10_000
    return found


def test_a_sound_artifact_keeps_its_verdict() -> None:
    assert check_collapse(PASS, predictions([500, 400, 100], [510, 390, 100], 0.99), 0.99, CLASSES) == PASS


def test_logits_that_are_not_finite_fail() -> None:
    verdict = check_collapse(PASS, predictions([5, 4, 1], [5, 4, 1], non_finite=3), 0.99, CLASSES)
    assert not verdict.passed
    assert verdict.reasons == ("the logits of 3 of 100 images are not finite",)


@pytest.mark.parametrize(
    ("pixels", "fp32", "collapsed"),
    [
        ([0, 10000, 0], [5000, 4000, 1000], True),
        ([5, 9995, 0], [150, 9850, 0], True),
        ([10, 9990, 0], [150, 9850, 0], False),  # 99.9 % is not more than 99.9 %
        ([0, 10000, 0], [100, 9900, 0], False),  # FP32 sees one class above 1 %
        ([0, 1, 0], [1, 1, 0], True),
        ([0, 0, 0], [5000, 5000, 0], False),  # predictions that are no class are for the agreement
    ],
)
def test_one_class_everywhere_fails_where_fp32_sees_several(
    pixels: list[int], fp32: list[int], collapsed: bool
) -> None:
    verdict = check_collapse(PASS, predictions(pixels, fp32), 0.99, CLASSES)
    assert verdict.passed is not collapsed
    assert [reason.split(" of ")[0][:20] for reason in verdict.reasons] == ["class 'road' covers "] * collapsed


def test_low_agreement_with_fp32_fails() -> None:
    verdict = check_collapse(PASS, predictions([5, 4, 1], [5, 4, 1], 0.8999), 0.9, CLASSES)
    assert not verdict.passed
    assert verdict.reasons == ("89.99 % of the pixels get the class that FP32 gives; at least 90 % must",)
    assert check_collapse(PASS, predictions([5, 4, 1], [5, 4, 1], 0.9), 0.9, CLASSES).passed


def test_every_reason_is_given_and_earlier_ones_are_kept() -> None:
    failed = against_miou(40.0, 46.0, 0.5, "published mIoU")
    verdict = check_collapse(failed, predictions([0, 10, 0], [5, 4, 1], 0.4, non_finite=1), 0.9, CLASSES)
    assert len(verdict.reasons) == 4
    assert verdict.reasons[0] == failed.reasons[0]


def test_without_fp32_a_note_says_what_was_not_checked() -> None:
    verdict = check_collapse(PASS, predictions([0, 10, 0]), 0.9, CLASSES)
    assert verdict.passed
    assert "FP32 was not run beside it: neither a collapse" in verdict.notes[0]
    assert check_collapse(PASS, predictions([0, 10, 0]), 0.9, CLASSES, is_fp32=True) == PASS
    failed = check_collapse(PASS, predictions([0, 10, 0], non_finite=1), 0.9, CLASSES, is_fp32=True)
    assert not failed.passed and failed.notes == PASS.notes


def test_a_gate_takes_any_number_in_its_range() -> None:
    assert (Gate(budget=0).budget, Gate(budget=0.25).budget, Gate(agreement=0).agreement) == (0, 0.25, 0)
    assert (Gate(budget=100).budget, Gate(agreement=1).agreement) == (100, 1)
    assert [Gate(against).against for against in (0, "0", 100, "41.5", "a.onnx")] == [0, 0, 100, 41.5, "a.onnx"]
    assert Gate() == Gate("reference", None, None, strict=False)
    for options in (
        {"budget": -0.1},
        {"against": 100.5},
        {"against": "-1"},
        {"budget": 100.1},
        {"agreement": 1.1},
        {"against": 101},
    ):
        with pytest.raises(InputError, match="the gate's"):
            Gate(**options)

"""Sensitivity and search on a small graph: the harmful layer goes first, the budget holds, nothing is hidden."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import tiny_model

from denseport.calibration.errors import CalibrationError
from denseport.calibration.quantize.placement import Group, activations, find_groups
from denseport.calibration.quantize.qdq import Quantization, quantize
from denseport.calibration.search import search as searching
from denseport.calibration.search.search import Budget, Step, search
from denseport.calibration.search.sensitivity import Loss, Reference, sensitivities
from denseport.export.graph.model import serialise
from denseport.export.graph.probe import Probe

SIZE = (6, 10)
RNG = np.random.default_rng(3)
IMAGES = [RNG.standard_normal((1, 3, *SIZE)).astype(np.float32) for _ in range(4)]


@pytest.fixture
def case() -> tuple[ir.Model, dict[str, float], tuple[Group, ...]]:
    """A model whose layer ``left`` is ruined by a channel of its weight that spoils the tensor behind it."""
    model = tiny_model()
    groups = find_groups(model, SIZE)
    tensors = activations(model, [group for group in groups if group.possible])
    runs = [Probe(model, tensors).run(image) for image in IMAGES]
    thresholds = {name: max(float(np.abs(run[i]).max()) for run in runs) for i, name in enumerate(tensors)}
    thresholds["mixed"] *= 0.02  # block.out clips nearly everything
    return model, thresholds, groups


def test_the_spoiled_layer_is_the_most_sensitive(case: tuple[ir.Model, dict[str, float], tuple[Group, ...]]) -> None:
    model, thresholds, groups = case
    steps: list[int] = []
    losses = sensitivities(
        Reference(model, IMAGES), model, thresholds, groups, progress=lambda done, total: steps.append(done)
    )
    assert list(losses) == [group.name for group in groups if group.float_reason is None]
    assert steps == list(range(1, len(losses) + 1))
    assert max(losses, key=lambda name: losses[name].error) == "block.out"
    assert all(loss.miou is None and 0 <= loss.agreement <= 1 for loss in losses.values())


def test_known_losses_are_not_measured_again(case: tuple[ir.Model, dict[str, float], tuple[Group, ...]]) -> None:
    model, thresholds, groups = case
    known = {"stem": Loss(0.5, 0.25)}
    some = [group for group in groups if group.name in ("stem", "left")]
    losses = sensitivities(Reference(model, IMAGES), model, thresholds, some, losses=known)
    assert losses["stem"] == Loss(0.5, 0.25)
    assert list(losses) == ["stem", "left"] and known == losses, "each new one is entered"


def test_loss_equals_its_definition(case: tuple[ir.Model, dict[str, float], tuple[Group, ...]]) -> None:
    model, thresholds, groups = case
    quantized = model.clone()
    quantize(quantized, thresholds, groups, ["block.out"])
    # Kept as float16: the error is against these numbers.
    expected = np.concatenate([Probe(model).run(image)[0] for image in IMAGES]).astype(np.float16).astype(np.float32)
    found = np.concatenate([Probe(quantized).run(image)[0] for image in IMAGES])
    labels = [logits.argmax(0).astype(np.uint8) for logits in expected]
    loss = Reference(model, IMAGES, labels).measure(quantized)
    assert loss.error == pytest.approx(np.linalg.norm(found - expected) / np.linalg.norm(expected), rel=1e-5)
    assert loss.agreement == (found.argmax(1) == expected.argmax(1)).mean()
    ious = []
    for c in range(expected.shape[1]):
        mine, truth = found.argmax(1) == c, expected.argmax(1) == c
        if (mine | truth).any():
            ious.append(100 * (mine & truth).sum() / (mine | truth).sum())
    assert loss.miou == pytest.approx(100 - np.mean(ious), abs=0.5)  # the labels are FP32's own classes: it has 100


def test_every_pixel_of_images_of_different_sizes_counts_alike(
    case: tuple[ir.Model, dict[str, float], tuple[Group, ...]],
) -> None:
    model, thresholds, groups = case
    quantized = model.clone()
    quantize(quantized, thresholds, groups, ["block.out"])
    images = [IMAGES[0], np.concatenate([IMAGES[1], IMAGES[2], IMAGES[3]], axis=3), IMAGES[1][..., :4]]
    same = [Probe(model).run(each)[0].argmax(1) == Probe(quantized).run(each)[0].argmax(1) for each in images]
    found = Reference(model, images).measure(quantized).agreement
    assert found == sum(each.sum() for each in same) / sum(each.size for each in same)


def unneeded() -> Mapping[str, Loss]:
    raise AssertionError("all candidates together keep the budget: no single layer is measured")


def test_the_budget_holds_at_the_greatest_saving(case: tuple[ir.Model, dict[str, float], tuple[Group, ...]]) -> None:
    model, thresholds, groups = case
    reference, before = Reference(model, IMAGES), serialise(model)
    losses = sensitivities(reference, model, thresholds, groups)
    generous, everything = search(reference, model, thresholds, groups, Budget(agreement=0.0), unneeded)
    assert everything.within and len(everything.steps) == 1
    assert "block.out" in everything.chosen

    budget = Budget(agreement=0.9)
    quantized, found = search(reference, model, thresholds, groups, budget, lambda: losses, batch=0)
    assert found.within and found.loss.agreement >= 0.9 > found.steps[0].loss.agreement
    assert "block.out" not in found.chosen and len(found.chosen) == len(everything.chosen) - 1
    assert found.steps[-1].dropped == ("block.out",)
    assert reference.measure(quantized) == found.loss
    assert reference.measure(generous) == everything.loss
    assert serialise(model) == before, "the float model stays as it was"
    report = json.loads(json.dumps(found.to_dict()))
    assert "over budget" in report["float"]["block.out"]
    assert {row["group"] for row in report["groups"]} == {group.name for group in groups}
    assert sum(row["share"] for row in report["groups"]) == pytest.approx(1)


class Counting:
    """A stand-in for `Reference`: each layer whose weight or first input is quantized costs 1 % of the agreement."""

    def measure(self, model: ir.Model) -> Loss:
        narrow = {node.name for node in model.graph if node.inputs and _is_dequantized(node.inputs[0])}
        return Loss(error=0.0, agreement=1 - len(narrow - {"block.attn/MatMul_3"}) / 100)  # two of one group


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


# Squared error per multiply-add, from the worst on: right 1.5e-5, stem 1e-5, attention 6.3e-6, left 3.8e-6, qkv, out.
ALONE = {"stem": 0.36, "left": 0.12, "right": 0.24, "block.attn/qkv": 0.12, "block.attn/scores": 0.6, "block.out": 0.06}


@pytest.mark.parametrize(
    ("batch", "dropped"),
    [
        (0, ["right", "stem", "block.attn/scores", "left", "block.attn/qkv", "block.out"]),
        # Multiply-adds: 3840 + 12960 are the batch, 57600 more than it, 3840 + 11520 less, and 3840 more would not fit.
        (16800 / 116640, ["right stem", "block.attn/scores", "left block.attn/qkv", "block.out"]),
        (1, ["right stem block.attn/scores left block.attn/qkv block.out"]),
    ],
)
def test_layers_go_back_to_float_by_squared_error_per_multiply_add(
    case: tuple[ir.Model, dict[str, float], tuple[Group, ...]], batch: float, dropped: list[str]
) -> None:
    model, thresholds, groups = case
    losses = {name: Loss(error, 1.0) for name, error in ALONE.items()}
    told: list[Step] = []
    _, found = search(
        Counting(),
        model,
        thresholds,
        groups,
        Budget(agreement=0.995),
        lambda: losses,
        batch=batch,
        told=told.append,  # type: ignore[arg-type]
    )
    assert [" ".join(step.dropped) for step in found.steps] == ["", *dropped]
    assert [step.within for step in found.steps] == [False] * len(dropped) + [True]
    assert found.within and found.chosen == () and told == list(found.steps)
    assert [step.loss.agreement for step in found.steps][:: len(dropped)] == [0.94, 1]
    assert found.steps[0].share == pytest.approx(93600 / 116640)


def test_two_percent_of_the_multiply_adds_go_back_between_two_measurements(
    case: tuple[ir.Model, dict[str, float], tuple[Group, ...]],
) -> None:
    model, thresholds, groups = case
    macs = {
        "stem": 100,
        "right": 100,
        **dict.fromkeys(("left", "block.attn/qkv", "block.attn/scores", "block.out"), 2000),
    }
    other = next(group.name for group in groups if group.name not in ALONE)
    counted = [replace(group, macs={**macs, other: 1800}.get(group.name, 0)) for group in groups]
    losses = {name: Loss(error, 1.0) for name, error in ALONE.items()}
    _, found = search(Counting(), model, thresholds, counted, Budget(agreement=0.96), lambda: losses)  # type: ignore[arg-type]
    assert [step.dropped for step in found.steps] == [(), ("stem", "right")]
    assert found.steps[0].share == 0.82 and found.rows()[0]["share"] in (0.01, 0.2)


def test_a_loss_at_the_limit_is_within_the_budget(
    case: tuple[ir.Model, dict[str, float], tuple[Group, ...]],
) -> None:
    model, thresholds, groups = case
    losses = {name: Loss(error, 1.0) for name, error in ALONE.items()}
    _, found = search(Counting(), model, thresholds, groups, Budget(agreement=0.96), lambda: losses, batch=0)  # type: ignore[arg-type]
    assert found.within and found.loss.agreement == 0.96
    assert found.chosen == ("block.out", "block.attn/qkv", "left", "block.attn/scores"), "the least harmful first"
    reasons = {row["group"]: row["reason"] for row in found.rows()}
    assert reasons["right"] == "over budget: alone it changes the logits by 24 %" and reasons["left"] is None


def test_the_excess_is_that_of_the_tightest_limit() -> None:
    assert Budget(agreement=1.0).excess(Loss(0.5, 1.0)) == 0, "nothing lost, nothing allowed"
    assert Budget(miou=0.0).excess(Loss(0.5, 1.0, 1e-9)) == float("inf")
    assert Budget(agreement=1.0).excess(Loss(0.5, 0.999)) == float("inf")
    assert Budget(agreement=0.9, miou=2).excess(Loss(0.1, 0.6, 1.0)) == pytest.approx(4)
    assert Budget(agreement=0.9, miou=2).excess(Loss(0.1, 0.9, 10.0)) == pytest.approx(5)


def test_a_budget_that_nothing_keeps_is_told(case: tuple[ir.Model, dict[str, float], tuple[Group, ...]]) -> None:
    model, thresholds, groups = case
    losses = {name: Loss(error, 1.0) for name, error in ALONE.items()}
    _, found = search(Counting(), model, thresholds, groups, Budget(agreement=1.0), lambda: losses, batch=0)  # type: ignore[arg-type]
    assert found.within and found.chosen == (), "only the float model keeps it"

    class Spoilt:
        def measure(self, model: ir.Model) -> Loss:
            return Loss(0.1, 0.5)

    _, found = search(Spoilt(), model, thresholds, groups, Budget(agreement=0.9), lambda: losses)  # type: ignore[arg-type]
    assert not found.within and found.chosen == ()


def test_bad_input(case: tuple[ir.Model, dict[str, float], tuple[Group, ...]]) -> None:
    model, *_ = case
    with pytest.raises(CalibrationError, match="no images"):
        Reference(model, [])
    with pytest.raises(CalibrationError, match="labels for 1"):
        Reference(model, IMAGES, [np.zeros((4, 4), np.uint8)])
    with pytest.raises(CalibrationError, match="needs labelled images"):
        Budget(miou=0.5).excess(Loss(0.1, 0.95))
    with pytest.raises(CalibrationError, match="needs a limit"):
        Budget()
    for edge in ({"miou": 0.0}, {"miou": 100.0}, {"agreement": 0.0}, {"agreement": 1.0}):
        Budget(**edge)
    for bad in (
        {"miou": -0.1},
        {"miou": 100.5},
        {"agreement": 1.5},
        {"miou": -1.0},
        {"miou": 101.0},
        {"agreement": -0.1},
        {"agreement": 97.0},
        {"miou": float("nan")},
    ):
        with pytest.raises(CalibrationError, match=r"is not in 0\.\."):
            Budget(**bad)
    assert Budget(miou=0.5, agreement=0.9).excess(Loss(0.1, 0.95, -0.2)) == pytest.approx(0.5)


def test_after_four_sets_each_step_is_twice_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [Group(f"layer{i}", "linear", (f"layer{i}",), 1) for i in range(60)]
    kept: list[int] = []

    def written(_: object, __: object, ___: object, names: list[str], **____: object) -> Quantization:
        kept.append(len(names))
        return Quantization("int8", (), ())

    class Spoilt:
        def measure(self, model: ir.Model) -> Loss:
            return Loss(0.1, 0.5)

    monkeypatch.setattr(searching, "quantize", written)
    losses = {group.name: Loss(0.1, 1.0) for group in groups}
    search(Spoilt(), tiny_model(), {}, groups, Budget(agreement=0.9), lambda: losses, batch=1 / 60)  # type: ignore[arg-type]
    assert kept == [60, 59, 58, 57, 56, 54, 50, 42, 26, 0]

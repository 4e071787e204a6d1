"""The gate of depth against published figures: which test set it is, what rounding allows, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import depth_manifest, onnx_artifact

from denseport.export.models.presets import DEPTH_PRESETS
from denseport.runtime.bundle.manifest import DepthOutput, Manifest, Reference
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.depth.dataset import DepthDataset, DepthReading
from denseport.runtime.evaluation.depth.gate import Yardstick, choose_yardstick, judge
from denseport.runtime.evaluation.depth.measure import COLUMNS, DepthMeasurement
from denseport.runtime.evaluation.gate import Gate, Verdict
from denseport.runtime.evaluation.layouts import Sample

FIGURES = {"NYUv2": (0.053, 0.973), "KITTI": (0.078, 0.936)}


def published(figures: dict[str, tuple[float, float]] = FIGURES) -> Manifest:
    reference = Reference("v2_vits", "NYUv2 and KITTI", "zero-shot", None, None, "its hash", figures)
    return unknown(reference=reference, depth=DepthOutput("relative", "nearer", None, "bilinear"))


def unknown(**changes: Any) -> Manifest:
    """Of no published model, with an INT8 artifact."""
    manifest = depth_manifest(**changes)
    int8 = onnx_artifact({"int8.onnx": "0" * 64}, "int8", output="depth")
    return replace(manifest, artifacts={**manifest.artifacts, "int8.onnx": int8})


def images(number: int, most: float, crop: str | None = None) -> DepthDataset:
    sample = Sample("a", Path("a.png"), Path("a.npy"))
    return DepthDataset((sample,) * number, DepthReading(None, 0.001, most, crop))


def measured(abs_rel: float, d1: float) -> DepthMeasurement:
    values = np.zeros((1, 654, len(COLUMNS)))
    values[0, :, COLUMNS.index("AbsRel")], values[0, :, COLUMNS.index("d1")] = abs_rel, d1
    return DepthMeasurement(values, np.ones(654, np.int64), False, ("a",) * 654)


def judged(abs_rel: float, d1: float, artifact: str = "model.onnx") -> Verdict:
    yardstick = choose_yardstick(Gate(), published(), artifact, images(654, 10.0))
    return judge(yardstick, measured(abs_rel, d1))


def test_the_images_and_the_limit_say_which_test_set_it_is() -> None:
    nyu = choose_yardstick(Gate(), published(), "model.onnx", images(654, 10.0, "nyu"))
    assert (nyu.abs_rel, nyu.d1) == FIGURES["NYUv2"] and "published AbsRel on NYUv2, 0.053" in nyu.name
    assert "which crop the figure was measured with; here nyu" in nyu.notes[0]
    assert choose_yardstick(Gate(), published(), "model.onnx", images(697, 80.0)).abs_rel == 0.078


@pytest.mark.parametrize(
    ("manifest", "data", "words"),
    [
        (unknown(), images(654, 10.0), "not recognised as a published model"),
        (published({}), images(654, 10.0), "no AbsRel on NYUv2 or KITTI was published with v2_vits"),
        (
            published(),
            images(654, 80.0),
            "NYUv2's 654 images up to 10 m and KITTI's 697 images up to 80 m; 654 up",
        ),
        (published(), images(20, 10.0), "20 up to 10 m are measured"),
    ],
    ids=["unknown", "no figure", "another limit", "some images"],
)
def test_what_is_not_comparable_is_refused_or_compared_with_fp32(
    manifest: Manifest, data: DepthDataset, words: str
) -> None:
    with pytest.raises(InputError, match="--gate reference: ") as err:
        choose_yardstick(Gate(), manifest, "model.onnx", data)
    assert words in err.value.message
    other = choose_yardstick(Gate(), manifest, "int8.onnx", data)
    assert other.abs_rel is None and words in other.notes[0] and "FP32 instead" in other.notes[0]


def test_another_protocol_has_no_published_figure() -> None:
    with pytest.raises(InputError, match="no AbsRel was published for protocol fixed:518x518"):
        choose_yardstick(Gate(), published(), "model.onnx", images(654, 10.0), "fixed:518x518")


def test_a_published_figure_is_rounded() -> None:
    """0.053 may be 0.0534999: what rounds to it is not worse; beyond, the budget counts. d1 alike."""
    assert judged(0.05349, 0.97251).passed and judged(0.0529, 0.99).passed
    worse = judged(0.0537, 0.973)
    assert not worse.passed and "above v2_vits's published AbsRel on NYUv2, 0.053" in worse.reasons[0]
    assert worse.delta == pytest.approx(-100 * (0.0537 / 0.053 - 1)) and worse.budget == 0.1
    lost = judged(0.053, 0.9719)
    assert lost.reasons == ("d1 0.9719 is 0.11 points below the published 0.973; 0.05 may be lost",)
    assert judged(0.0541, 0.9695, "int8.onnx").passed


def test_presets_hand_over_their_figures() -> None:
    figures: Any = {name: preset.figures for name, preset in DEPTH_PRESETS.items()}
    assert figures["depth_anything_v2_vits"] == FIGURES and figures["depth_anything_v2_metric_vkitti_vits"] == {}


@pytest.mark.parametrize("name", ["agreement", "max_boundary_drop", "max_class_drop", "max_ece"])
def test_limits_of_segmentation_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} applies to segmentation"):
        choose_yardstick(Gate(0.06, **{name: 0.0}), published(), "model.onnx", images(3, 10.0))


def test_a_given_number_has_no_d1_to_lose() -> None:
    given = choose_yardstick(Gate(0.06), published(), "model.onnx", images(3, 10.0))
    assert given == Yardstick("the given AbsRel, 0.06", 0.1, 0.05, abs_rel=0.06)
    assert judge(given, measured(0.05, 0.1)).passed

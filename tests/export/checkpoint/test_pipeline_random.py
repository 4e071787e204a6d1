"""Test paths drawn at random from upstream's vocabulary, against upstream's steps done slowly (helpers/upstream.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import postprocess
import pytest
import torch
import upstream
from fake_network import network, runner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from denseport.export.checkpoint.file import Checkpoint
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.pipeline.reduce import Decision, decide
from denseport.runtime.pipeline.results import RequestedOutputs

SIDES = st.integers(20, 90)
SCALES = st.one_of(SIDES, st.tuples(SIDES, SIDES))
CV2_SAMPLING = st.sampled_from(["nearest", "bilinear", "bicubic", "area", "lanczos"])
PILLOW_SAMPLING = st.sampled_from(["nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"])
SAMPLING = st.one_of(
    st.fixed_dictionaries({}, optional={"interpolation": CV2_SAMPLING}),
    st.fixed_dictionaries({"interpolation": PILLOW_SAMPLING, "backend": st.just("pillow")}),
)


def step(kind: str, fields: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(kind), **fields}, optional=optional)


RESIZE = st.one_of(
    st.builds(lambda a, b: a | b, step("Resize", {"scale": SCALES}, keep_ratio=st.booleans()), SAMPLING),
    st.builds(
        lambda a, b: a | b,
        step(
            "Resize",
            {"scale_factor": st.one_of(st.floats(0.5, 2), st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)))},
            keep_ratio=st.booleans(),
        ),
        SAMPLING,
    ),
    step("ResizeShortestEdge", {"scale": SIDES, "max_size": SIDES}),
    step("ResizeToMultiple", {"size_divisor": st.integers(1, 32)}, interpolation=CV2_SAMPLING),
)
FILL = {"pad_val": st.integers(0, 255), "padding_mode": st.sampled_from(["constant", "edge", "symmetric", "reflect"])}
PAD = st.one_of(
    step("Pad", {"size": st.tuples(SIDES, SIDES)}, **FILL),
    step("Pad", {"size_divisor": st.integers(2, 32)}, **FILL),
    step("Pad", {"pad_to_square": st.just(True)}, size_divisor=st.integers(2, 32), **FILL),
)
NORMALISED = st.one_of(
    st.just({"mean": None, "std": None}), st.just({"mean": [120.0, 110.0, 100.0], "std": [50.0, 60.0, 70.0]})
)
PREPROCESSOR = st.builds(
    lambda a, b: a | b,
    NORMALISED,
    st.fixed_dictionaries(
        {"bgr_to_rgb": st.booleans()},
        optional={
            "pad_val": st.floats(-3, 3, width=16),
            "test_cfg": st.one_of(
                st.fixed_dictionaries({"size_divisor": st.integers(2, 32)}),
                st.fixed_dictionaries({"size": st.tuples(SIDES, SIDES)}),
            ),
        },
    ),
)
TEST_CFG = st.one_of(
    st.just({"mode": "whole"}),
    st.builds(
        lambda crop, share: {"mode": "slide", "crop_size": crop, "stride": tuple(max(1, int(c * share)) for c in crop)},
        st.tuples(st.integers(20, 60), st.integers(20, 60)),
        st.floats(0.3, 1),
    ),
)


@given(
    size=st.tuples(SIDES, SIDES),
    steps=st.lists(st.one_of(RESIZE, PAD), max_size=3),
    preprocessor=PREPROCESSOR,
    test_cfg=TEST_CFG,
    align_corners=st.booleans(),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_test_path_gives_upstreams_logits(
    sample: Bundle,
    size: tuple[int, int],
    steps: list[dict[str, Any]],
    preprocessor: dict[str, Any],
    test_cfg: dict[str, Any],
    align_corners: bool,
) -> None:
    image = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
    model = {"data_preprocessor": preprocessor, "test_cfg": test_cfg}
    expected = upstream.logits_of(image, steps, model, network, align_corners=align_corners)
    pipeline = [{"type": "LoadImageFromFile"}, *steps, {"type": "PackSegInputs"}]
    config = {"test_dataloader": {"dataset": {"pipeline": pipeline}}, "model": model}
    checkpoint = Checkpoint(Path("c.pth"), "", "mmseg 1.x", {}, config=config)
    run = runner(sample, checkpoint, align_corners=align_corners)
    job = run.infer(run.prepare(image, keep_logits=True))
    assert job.maps is not None
    found = postprocess.logits(job.maps[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * max(1, float(np.abs(expected).max())))
    mask = run.finish(run.infer(run.prepare(image))).mask
    best = np.sort(expected, 0)
    sure = best[-1] - best[-2] > 1e-3 * max(1, float(np.abs(expected).max()))
    np.testing.assert_array_equal(mask[sure], expected.argmax(0)[sure])


@pytest.mark.parametrize("ratios", [[0.5], [0.5, 1.5]])
@pytest.mark.parametrize("flip", [False, True])
def test_0x_averages_its_ratios_and_flips(sample: Bundle, ratios: list[float], flip: bool) -> None:
    """MultiScaleFlipAug by hand: each scale is cut to whole pixels, mirrored before it is padded, and mirrored back."""
    inner = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", "mean": [120.0, 110.0, 100.0], "std": [50.0, 60.0, 70.0], "to_rgb": True},
        {"type": "Pad", "size_divisor": 32},
        {"type": "Collect", "keys": ["img"]},
    ]
    scale = {"img_scale": (101, 75), "img_ratios": ratios, "flip": flip}
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "MultiScaleFlipAug", **scale, "transforms": inner}]
    checkpoint = Checkpoint(Path("c.pth"), "", "mmseg 0.x", {}, config={"data": {"test": {"pipeline": pipeline}}})
    image = np.random.default_rng(0).integers(0, 256, (53, 71, 3), np.uint8)
    chances = []
    for ratio in ratios:
        for mirrored in (False, True) if flip else (False,):
            longer, shorter = int(101 * ratio), int(75 * ratio)
            factor = min(longer / 71, shorter / 53)
            shown = cv2.resize(image, (int(71 * factor + 0.5), int(53 * factor + 0.5)))
            shown = (shown[:, ::-1] if mirrored else shown)[..., ::-1].astype(np.float32)
            shown = (shown - np.float32([120, 110, 100])) / np.float32([50, 60, 70])
            height, width = shown.shape[:2]
            tensor = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
            tensor[0, :, :height, :width] = torch.from_numpy(shown).permute(2, 0, 1)
            logits = F.interpolate(network(tensor), size=tensor.shape[2:], mode="bilinear")[:, :, :height, :width]
            chance = F.interpolate(logits, size=(53, 71), mode="bilinear").softmax(1)[0]
            chances.append(chance.flip(2) if mirrored else chance)
    expected = torch.stack(chances).mean(0).numpy()
    run = runner(sample, checkpoint)
    found = run.finish(run.infer(run.prepare(image, RequestedOutputs(scores=True))))
    np.testing.assert_allclose(found.scores, expected.max(0), atol=1e-4)
    sure = np.ptp(np.sort(expected, 0)[-2:], axis=0) > 1e-3
    np.testing.assert_array_equal(found.mask[sure], expected.argmax(0)[sure])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_of_two_classes_of_one_output_the_threshold_decides(threshold: float) -> None:
    """One view and several: the sigmoid against the threshold; scores are the probability of the pixel's class."""
    z = 2 * np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
    logits = np.stack([np.full_like(z, np.log(threshold / (1 - threshold))), z])
    maps = [postprocess.whole_map(logits, (24, 28), (50, 60))]
    other = [postprocess.whole_map(logits[:, ::-1].copy(), (24, 28), (50, 60))]
    for views in ([maps], [maps, other]):
        sigmoid = np.mean([1 / (1 + np.exp(-postprocess.logits(view)[1])) for view in views], axis=0)
        decision = Decision(len(views) > 1, threshold)
        canvas = decide(views, RequestedOutputs(scores=True, top_k=2), decision)
        sure = abs(sigmoid - threshold) > 1e-5
        np.testing.assert_array_equal(canvas.mask[sure], sigmoid[sure] > threshold)
        np.testing.assert_array_equal(decide(views, decision=decision).mask[sure], sigmoid[sure] > threshold)
        np.testing.assert_allclose(canvas.scores, np.where(canvas.mask, sigmoid, 1 - sigmoid), atol=1e-5)

"""The three steps of an image, with a network that hands its colours on: regions, sizes, times, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hostile import tiny_manifest
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.backends.shared import SharedSession
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.bundle.steps import Resize, ResizeToMultiple
from denseport.runtime.errors import BundleError, ImageError, InputError
from denseport.runtime.pipeline import pipeline
from denseport.runtime.pipeline.device_path import Painted
from denseport.runtime.pipeline.pipeline import SegmentationPipeline
from denseport.runtime.pipeline.reduce import Decision
from denseport.runtime.pipeline.results import RequestedOutputs, Timings

WIDTH, HEIGHT = 6, 4
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


class Colours(Session):
    """The logits of red, green and blue are each fourth pixel's levels.

    Args:
        spoiled: one number that is not, and where.
        run: in which it is, counted from 1; None: in each.
    """

    description = "colours"

    def __init__(self, spoiled: tuple[float, tuple[int, ...]] | None = None, run: int | None = None) -> None:
        self.spoiled, self.at, self.shapes = spoiled, run, list[tuple[int, ...]]()

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shapes.append(image.shape)
        logits = image[:, :, ::4, ::4].copy()
        if self.spoiled is not None and self.at in (None, len(self.shapes)):
            logits[self.spoiled[1]] = self.spoiled[0]
        return logits


def runs(protocol: str = "reference", session: Session | None = None, **changes: Any) -> SegmentationPipeline:
    """The tiny bundle's pipeline: the shorter side becomes 32 pixels unless the protocol says otherwise."""
    manifest = replace(tiny_manifest(), **changes)
    shared = SharedSession(session or Colours())
    return SegmentationPipeline(manifest, Path("bundle"), "model.onnx", parse_protocol(protocol, manifest), shared, 1)


@pytest.mark.parametrize("region", [(0, 0, 6, 4), (0, 0, 1, 1), (5, 3, 1, 1), (0, 3, 6, 1), (5, 0, 1, 4), (1, 2, 3, 2)])
def test_a_region_may_be_one_pixel_and_reach_every_edge(region: tuple[int, int, int, int]) -> None:
    x, y, width, height = region
    job = runs().prepare(IMAGE, region=region)
    np.testing.assert_array_equal(job.image, IMAGE[y:, x:][:height, :width])
    assert job.size == (height, width)


@pytest.mark.parametrize(
    "region",
    [
        *((-1, 0, 2, 1), (0, -1, 1, 2), (0, 0, 0, 1), (0, 0, 1, 0), (0, 0, -1, 4), (0, 0, 6, -1)),
        *((6, 0, 1, 1), (0, 4, 1, 1), (5, 0, 2, 1), (0, 3, 1, 2), (0, 0, 7, 4), (0, 0, 6, 5)),
    ],
)
def test_a_region_beyond_an_edge_or_without_pixels_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="does not lie inside the image of 6 x 4"):
        runs().prepare(IMAGE, region=region)


def test_an_image_of_one_pixel_is_an_image() -> None:
    assert runs().prepare(IMAGE[:1, :1]).size == (1, 1)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2), (4, 6, 4), (4, 3, 6), (4, 6, 3, 1), (3,), (4, 0, 3)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"expected an image of shape \(height, width, 3\), uint8 BGR; got \("):
        runs().prepare(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("kind", [np.int8, np.float32, np.bool_])
def test_an_array_of_other_numbers_is_refused(kind: Any) -> None:
    with pytest.raises(ImageError, match=r"uint8 BGR; got \(4, 6, 3\)"):
        runs().prepare(IMAGE.astype(kind))


@pytest.mark.parametrize(
    ("protocol", "shapes"), [("reference", [(1, 3, 32, 48)]), ("slide:32:16", [(1, 3, 32, 32)] * 2)]
)
def test_the_mask_is_the_strongest_colour_of_each_pixel(protocol: str, shapes: list[tuple[int, ...]]) -> None:
    session = Colours()
    image = np.zeros((32, 48, 3), np.uint8)
    for x, channel in ((0, 2), (16, 1), (32, 0)):
        image[:, x : x + 16, channel] = 255
    run = runs(protocol, session)
    job = run.infer(run.prepare(image))
    assert session.shapes == shapes
    assert (job.maps is None, job.canvas is None) == (protocol != "reference", protocol == "reference")
    mask = run.finish(job).mask
    np.testing.assert_array_equal(mask[:, 4:12], 0)
    np.testing.assert_array_equal(mask[:, 20:28], 1)
    np.testing.assert_array_equal(mask[:, 36:44], 2)


def test_logits_that_are_kept_are_of_every_window() -> None:
    run = runs("slide:32:16")
    job = run.infer(run.prepare(np.zeros((32, 48, 3), np.uint8), keep_logits=True))
    assert job.maps is not None and [len(view) for view in job.maps] == [2]


@pytest.mark.parametrize("protocol", ["reference", "slide:16:16", "ms-flip"])
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_one_logit_that_is_not_finite_is_refused_but_where_logits_are_asked_for(protocol: str, special: float) -> None:
    run = runs(protocol, Colours((special, (0, 2, 1, 3))))
    image = np.zeros((32, 40, 3), np.uint8)
    with pytest.raises(BundleError, match=r"bundle: model\.onnx gave logits that are not finite"):
        run.infer(run.prepare(image))
    kept = run.infer(run.prepare(image, keep_logits=True)).maps
    assert kept is not None
    with pytest.raises(BundleError, match="not finite"):
        run.check_finite(kept)


@pytest.mark.parametrize("protocol", ["slide:16:16", "ms-flip"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_one_window_or_view_that_is_not_finite_is_enough(protocol: str, at: int) -> None:
    run = runs(protocol, Colours((np.nan, (0, 2, 1, 3)), at))
    with pytest.raises(BundleError, match="not finite"):
        run.infer(run.prepare(np.zeros((32, 40, 3), np.uint8)))


@pytest.mark.parametrize(("protocol", "single"), [("reference", True), ("ms-flip", False), ("slide:16:16", False)])
def test_what_can_share_a_batch_is_seen_once_and_whole(protocol: str, single: bool) -> None:
    assert (runs(protocol).prepare(IMAGE).single is not None) is single


def test_windows_lie_in_the_size_that_the_network_sees() -> None:
    """The whole would be stretched by way of 100 x 100, an oddity of upstream."""
    preprocess = (ResizeToMultiple((100, 100)), Resize((64, 32), keep_ratio=False), tiny_manifest().preprocess[-1])
    run = runs("slide:32:32", preprocess=preprocess)
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :30, 2] = image[:, 30:, 0] = 255
    mask = run.finish(run.infer(run.prepare(image))).mask
    assert (mask[:, :28] == 0).all() and (mask[:, 32:] == 2).all()


def test_of_several_images_at_once_one_may_be_at_fault() -> None:
    run = runs(session=Colours((np.nan, (1, 0, 0, 0))))
    with pytest.raises(BundleError, match="not finite"):
        run.infer_together([run.prepare(IMAGE), run.prepare(IMAGE)])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("protocol", ["reference", "slide:16:16"])
def test_another_number_of_classes_is_refused(protocol: str, classes: int) -> None:
    run = runs(protocol, classes=tuple("abcd"[:classes]), palette=((0, 0, 0),) * classes)
    with pytest.raises(BundleError, match=f"tells 3 classes apart, the manifest names {classes}"):
        run.infer(run.prepare(IMAGE))


class Painter:
    """A GPU that paints all pixels with class 2, of images that are not too high."""

    def __init__(self, classes: int = 3) -> None:
        self.classes, self.finite, self.seen = classes, True, list[tuple[int, int]]()

    def takes(self, size: tuple[int, int], seen: tuple[int, int]) -> bool:
        return size[0] < 10 and seen[0] == 32

    def paint(self, image: NDArray[np.uint8], size: tuple[int, int], mask: NDArray[Any]) -> Painted:
        self.seen.append(size)
        mask[:] = 2
        return Painted(self.classes, self.finite)


def test_a_gpu_does_all_of_it_where_masks_alone_are_wanted() -> None:
    painter: Any = Painter()
    run = replace(runs(), device=painter)
    job = run.infer(run.prepare(IMAGE))
    assert job.on_device and not job.inputs and (run.finish(job).mask == 2).all()
    for requested in (RequestedOutputs(scores=True), RequestedOutputs(top_k=1)):
        assert not run.prepare(IMAGE, requested).on_device
    assert not run.prepare(IMAGE, keep_logits=True).on_device
    assert not run.prepare(np.zeros((10, 15, 3), np.uint8)).on_device
    assert not runs().prepare(IMAGE).on_device
    assert painter.seen == [(32, 48)]
    painter.classes = 4
    with pytest.raises(BundleError, match="tells 4 classes apart, the manifest names 3"):
        run.infer(run.prepare(IMAGE))
    painter.classes, painter.finite = 3, False
    with pytest.raises(BundleError, match="gave logits that are not finite"):
        run.infer(run.prepare(IMAGE))


@pytest.mark.parametrize(("protocol", "averaged"), [("reference", False), ("slide:16:16", False), ("ms-flip", True)])
def test_probabilities_of_several_views_are_averaged(protocol: str, averaged: bool) -> None:
    assert runs(protocol).decision == Decision(averaged, None)
    assert runs(protocol, threshold=0.25, classes=("a", "b"), palette=((0, 0, 0),) * 2).decision.threshold == 0.25


def test_more_classes_than_there_are_cannot_be_asked_for() -> None:
    assert runs().prepare(IMAGE, RequestedOutputs(top_k=3)).requested.top_k == 3
    with pytest.raises(InputError, match="top_k cannot be 4"):
        runs().prepare(IMAGE, RequestedOutputs(top_k=4))


@pytest.fixture
def _a_second_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second later each time somebody looks at it."""
    clock = SimpleNamespace(perf_counter=itertools.count(7).__next__)
    monkeypatch.setattr(pipeline, "time", clock)


@pytest.mark.usefixtures("_a_second_each")
def test_each_step_is_timed_in_milliseconds(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    run = runs()
    assert run.finish(run.infer(run.prepare(tmp_path / "a.png"))).timings == Timings(1000, 1000, 1000, 1000)
    assert run.finish(run.infer(run.prepare(IMAGE))).timings == Timings(0, 1000, 1000, 1000)


@pytest.mark.usefixtures("_a_second_each")
def test_the_time_of_a_batch_is_shared_out() -> None:
    run = runs()
    jobs = [run.prepare(IMAGE) for _ in range(4)]
    run.infer_together(jobs)
    assert [job.timings for job in jobs] == [Timings(0, 1000, 250, 0)] * 4


@pytest.mark.usefixtures("_a_second_each")
def test_the_times_of_sliding_windows_leave_nothing_out() -> None:
    """Of two windows: normalising takes a second a window, as looking for a third one does; the network two."""
    run = runs("slide:32:16")
    timings = run.finish(run.infer(run.prepare(np.zeros((32, 48, 3), np.uint8)))).timings
    # The clock is looked at when the windows begin, before and after each is normalised, before that and behind the
    # network, and at the end: a second each, 13 in all.
    assert timings == Timings(0, 1000 + 3000, 3 * 2000, 1000 * (13 - 9) + 1000)

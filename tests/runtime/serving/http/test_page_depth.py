"""The page of ``denseport serve`` for a depth bundle, in Chromium: colours, the bar, the value under the cursor."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from browsing import accessible, chromium, layer, needs_chromium, opened
from onnx import numpy_helper
from planting import with_graph
from playwright.sync_api import Browser, Page, expect
from serving import encoded, random_image, running

from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.media.depth_map import coloured

IMAGE = random_image(60, 80)
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def bundle(depth_sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample, and a copy of its network with one weight more than doubled."""

    def change(graph: onnx.GraphProto) -> None:
        weight = max((each for each in graph.initializer if len(each.dims) == 4), key=lambda each: each.dims[1])
        weight.CopyFrom(numpy_helper.from_array(np.float32(2.2) * numpy_helper.to_array(weight), weight.name))

    copy = Bundle(shutil.copytree(depth_sample.path, tmp_path_factory.mktemp("page") / "bundle"))
    return with_graph(copy, change, "int8.onnx", "int8")


@pytest.fixture(scope="module")
def depths(bundle: Bundle) -> dict[str, np.ndarray]:
    names = ("model.onnx", "int8.onnx")
    return {name: DepthEstimator(bundle, artifact=name, threads=1)(IMAGE).depth for name in names}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def given(page: Page) -> None:
    page.set_input_files("#file", {"name": "room.png", "mimeType": "image/png", "buffer": encoded(IMAGE)})
    expect(page.locator("#status")).to_contain_text("room.png: 80 × 60")


def hover(page: Page, x: int, y: int) -> None:
    box = page.locator("#first .view").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + (x + 0.5) / 80 * box["width"], box["y"] + (y + 0.5) / 60 * box["height"])


def amount(value: float) -> float:
    return float(f"{value:.3g}")


def test_metres_are_coloured_and_told(
    browser: Browser, bundle: Bundle, depths: dict[str, np.ndarray], tmp_path: Path
) -> None:
    own, other = depths["model.onnx"], depths["int8.onnx"]
    with running(bundle) as server, opened(browser, server.url) as page:
        expect(page.locator("#about")).to_contain_text("depth up to 10 metres")
        accessible(page)
        given(page)
        expected = coloured(own, (own.min(), own.max()), near_is_large=False)[..., ::-1]
        shown = layer(page, "#first .colours")[..., :3]
        assert np.abs(shown.astype(int) - expected).max() <= 8, "a neighbouring colour at most"
        assert np.mean(shown == expected) > 0.99
        near, middle, far = page.locator("#ends span").all_inner_texts()
        assert near == f"near {amount(own.min()):g} m" and far == f"{amount(own.max()):g} m far" and " m" in middle
        for x, y in ((0, 0), (79, 59), (33, 20)):
            hover(page, x, y)
            expect(page.locator("#tip")).to_have_text(f"{amount(own[y, x]):g} m")
            expect(page.locator("#value")).to_have_text(f"{amount(own[y, x]):g} m ({x}, {y})")
        left = float(re.sub("[^0-9.]", "", page.locator("#pointed").get_attribute("style") or ""))
        assert left == pytest.approx(100 * (own[20, 33] - own.min()) / np.ptp(own), abs=0.3)
        page.get_by_label("Compare with").select_option("int8.onnx")
        change = 100 * np.abs(other - own).mean() / np.abs(own).mean()
        expect(page.locator("#differing")).to_contain_text(f"{change:.2f} %")
        share = np.mean(np.abs(other - own) > 0.05 * np.abs(own).mean())
        assert 0 < share < 1
        expect(page.locator("#changes")).to_contain_text(f"{100 * share:.1f} %")
        hover(page, 33, 20)
        text = page.locator("#tip").inner_text()
        assert text == f"{amount(own[20, 33]):g} m → {amount(other[20, 33]):g} m"
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        accessible(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the depth").click()
        assert download.value.suggested_filename == "room_depth.png"
        download.value.save_as(tmp_path / "depth.png")
        kept = cv2.imread(str(tmp_path / "depth.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_allclose(kept / 1000, np.maximum(own, 0), atol=0.00051)


def test_a_relative_depth_has_no_unit_but_a_direction(
    browser: Browser, bundle: Bundle, depths: dict[str, np.ndarray]
) -> None:
    copy, own = Bundle(bundle.path), depths["model.onnx"]
    copy.manifest = replace(copy.manifest, depth=DepthOutput("relative", "nearer", None, "bicubic"))
    with running(copy) as server, opened(browser, server.url) as page:
        expect(page.locator("#about")).to_contain_text("relative depth, larger is nearer")
        given(page)
        expected = coloured(own, (own.min(), own.max()), near_is_large=True)[..., ::-1]
        assert np.abs(layer(page, "#first .colours")[..., :3].astype(int) - expected).max() <= 8
        near, middle, _ = page.locator("#ends span").all_inner_texts()
        assert near == f"near {amount(own.max()):g}" and middle.endswith("relative, larger is nearer")
        page.locator("#first .view").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#spoken")).to_have_text(f"{amount(own[30, 39]):g} (relative, larger is nearer)")

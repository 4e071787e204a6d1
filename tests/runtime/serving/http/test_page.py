"""The page of ``denseport serve``, used as a person uses it: in Chromium."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from browsing import accessible, chromium, layer, needs_chromium, opened
from onnx import numpy_helper
from planting import with_graph
from playwright.sync_api import Browser, Page, expect
from serving import Running, encoded, random_image, running

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media.images import decode_image
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.http.limits import Limits
from denseport.runtime.serving.http.page import SAMPLE, load_page

IMAGE = random_image(240, 320)
PNG = encoded(IMAGE)

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def bundle(sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample, and a copy of its network with rounded weights."""

    def round_weights(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            weights = numpy_helper.to_array(tensor)
            if weights.dtype == np.float32 and weights.size > 1000:
                step = np.abs(weights).max() / 15
                tensor.CopyFrom(numpy_helper.from_array(np.round(weights / step) * step, tensor.name))

    copy = Bundle(shutil.copytree(sample.path, tmp_path_factory.mktemp("page") / "bundle"))
    return with_graph(copy, round_weights, "int8.onnx", "int8")


@pytest.fixture(scope="module")
def masks(bundle: Bundle) -> dict[str, np.ndarray]:
    return {name: Segmenter(bundle, artifact=name, threads=1)(IMAGE).mask for name in ("model.onnx", "int8.onnx")}


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Running]:
    with running(bundle, Limits(max_bytes=1 << 20, max_pixels=2_000_000)) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with opened(browser, server.url) as page:
        yield page


def upload(page: Page, data: bytes = PNG, name: str = "street.png", mime: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": mime, "buffer": data})


def uploaded(page: Page) -> None:
    upload(page)
    expect(page.locator("#status")).to_contain_text("street.png: 320 × 240")


def drop(page: Page, event: str, kind: str, data: bytes = PNG) -> None:
    """Dispatch a drop or a paste of a file."""
    page.evaluate(
        """([event, kind, data]) => {
            const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], "street.png", { type: "image/png" }));
            const given = { bubbles: true, cancelable: true, dataTransfer: held, clipboardData: held };
            document.body.dispatchEvent(new window[kind](event, given));
        }""",
        [event, kind, base64.b64encode(data).decode()],
    )


def colours(page: Page, view: str = "#first") -> np.ndarray:
    return layer(page, f"{view} .colours")


def marks(page: Page) -> int:
    """Marked pixels of the first view."""
    return int(np.count_nonzero(layer(page, "#first .marks")[..., 3]))


def hover(page: Page, x: int, y: int) -> None:
    """Point at a pixel of the image."""
    box = page.locator("#first .view").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + (x + 0.5) / 320 * box["width"], box["y"] + (y + 0.5) / 240 * box["height"])


def name_at(bundle: Bundle, mask: np.ndarray, x: int, y: int) -> str:
    return bundle.manifest.classes[mask[y, x]].strip()


def test_an_upload_is_coloured_as_the_segmenter_sees_it(page: Page, bundle: Bundle, masks: dict[str, Any]) -> None:
    uploaded(page)
    mask = masks["model.onnx"]
    expected = np.array(bundle.manifest.palette, np.uint8)[mask]
    np.testing.assert_array_equal(colours(page)[..., :3], expected)
    shown = page.locator("#legend li").all_inner_texts()
    counts = np.bincount(mask.ravel(), minlength=150) / mask.size
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    assert [text.split("\n")[0] for text in shown] == [bundle.manifest.classes[index].strip() for index in order]
    assert shown[0].endswith(f"{100 * counts[order[0]]:.1f} %")
    stages = page.locator("#times tbody th").all_inner_texts()
    assert stages[0] == "Waiting" and "Network" in stages and stages[-1] == "Round trip"


@pytest.mark.parametrize(("event", "kind"), [("drop", "DragEvent"), ("paste", "ClipboardEvent")])
def test_an_image_may_be_dropped_or_pasted(page: Page, event: str, kind: str) -> None:
    drop(page, event, kind)
    expect(page.locator("#status")).to_contain_text("street.png: 320 × 240")


def test_the_sample_is_segmented(page: Page) -> None:
    page.get_by_role("button", name="Try the sample").click()
    expect(page.locator("#status")).to_contain_text("sample.jpg: 1,200 × 800")


def test_the_legend_hides_and_shows(page: Page, bundle: Bundle, masks: dict[str, Any]) -> None:
    uploaded(page)
    first = page.locator("#legend button").first
    index = [name.strip() for name in bundle.manifest.classes].index(first.locator(".name").inner_text())
    of_class = masks["model.onnx"] == index
    expect(first).to_have_attribute("aria-pressed", "true")
    first.click()
    expect(first).to_have_attribute("aria-pressed", "false")
    page.mouse.move(0, 0)
    alpha = colours(page)[..., 3]
    assert (alpha[of_class] == 0).all() and (alpha[~of_class] == 255).all()
    page.get_by_role("button", name="Show all").click()
    assert (colours(page)[..., 3] == 255).all()
    page.get_by_role("button", name="Hide all").click()
    assert not colours(page)[..., 3].any()


def test_pointing_names_the_class(page: Page, bundle: Bundle, masks: dict[str, Any]) -> None:
    uploaded(page)
    for x, y in ((0, 0), (319, 239), (100, 120), (250, 60)):
        hover(page, x, y)
        name = name_at(bundle, masks["model.onnx"], x, y)
        expect(page.locator("#value")).to_have_text(f"{name} ({x}, {y})")
        expect(page.locator("#tip")).to_have_text(name)
    page.mouse.move(0, 0)
    expect(page.locator("#tip")).to_be_hidden()


def test_the_keyboard_reaches_everything(page: Page, bundle: Bundle, masks: dict[str, Any]) -> None:
    # Listened to from the start: Playwright does not wait until Chromium knows that a chooser is to be intercepted.
    page.on(
        "filechooser", lambda chooser: chooser.set_files({"name": "street.png", "mimeType": "image/png", "buffer": PNG})
    )
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the controls")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose a file")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("street.png: 320 × 240")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.classList[0]"))
    wanted = {"view", "another", "resample", "artifact", "versus", "opacity", "all", "save-result", "save-overlay"}
    assert wanted <= reached
    page.locator("#first .view").focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "Shift+ArrowUp"):
        page.keyboard.press(key)
    name = name_at(bundle, masks["model.onnx"], 158, 111)
    expect(page.locator("#spoken")).to_have_text(name)
    expect(page.locator("#value")).to_have_text(f"{name} (158, 111)")
    expect(page.locator("#first .cross")).to_be_visible()
    page.locator("#legend button").first.focus()
    page.keyboard.press("Space")
    expect(page.locator("#legend button").first).to_have_attribute("aria-pressed", "false")


def test_the_slider_sets_the_opacity(page: Page) -> None:
    uploaded(page)
    page.get_by_role("slider", name="Opacity").focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#percent")).to_have_text("50 %")
    expect(page.locator("#first .colours")).to_have_css("opacity", "0.5")


def test_two_artifacts_are_compared(page: Page, bundle: Bundle, masks: dict[str, Any]) -> None:
    uploaded(page)
    page.get_by_label("Compare with").select_option("int8.onnx")
    first, second = masks["model.onnx"], masks["int8.onnx"]
    differing = first != second
    assert 0 < differing.sum() < differing.size
    expect(page.locator("#differing")).to_contain_text(f"{differing.sum():,} pixels")
    np.testing.assert_array_equal(colours(page, "#second")[..., :3], np.array(bundle.manifest.palette)[second])
    pairs, counts = np.unique(np.stack([first, second])[:, differing], axis=1, return_counts=True)
    top = counts.argmax()
    names = [bundle.manifest.classes[index].strip() for index in pairs[:, top]]
    expect(page.locator("#changes li").first).to_contain_text(f"{names[0]} → {names[1]}{counts[top]:,}")
    assert marks(page) >= differing.sum()
    y, x = np.argwhere(differing)[0]
    hover(page, int(x), int(y))
    expect(page.locator("#value")).to_contain_text(
        f"{name_at(bundle, first, x, y)} → {name_at(bundle, second, x, y)} ({x}, {y})"
    )
    page.get_by_label("Mark the pixels that differ").uncheck()
    assert marks(page) == 0
    assert page.locator("#times thead th").all_inner_texts() == ["model.onnx", "int8.onnx"]
    page.get_by_label("Compare with").select_option("")
    expect(page.locator("#second")).to_be_hidden()


def test_another_artifact_is_used(page: Page, bundle: Bundle, masks: dict[str, Any]) -> None:
    uploaded(page)
    with page.expect_response(re.compile("artifact=int8.onnx")):
        page.get_by_label("Artifact").select_option("int8.onnx")
    expect(page.locator("#times thead th")).to_have_text("int8.onnx")
    expected = np.array(bundle.manifest.palette, np.uint8)[masks["int8.onnx"]]
    np.testing.assert_array_equal(colours(page)[..., :3], expected)


def test_the_mask_and_the_overlay_are_kept(page: Page, bundle: Bundle, masks: dict[str, Any], tmp_path: Path) -> None:
    uploaded(page)
    saved = {}
    for what in ("mask", "overlay"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download the {what}").click()
        assert download.value.suggested_filename == f"street_{what}.png"
        download.value.save_as(tmp_path / what)
        saved[what] = decode_image((tmp_path / what).read_bytes(), what)
    palette = np.array(bundle.manifest.palette, np.uint8)[:, ::-1]
    coloured = palette[masks["model.onnx"]]
    np.testing.assert_array_equal(saved["mask"], coloured)
    np.testing.assert_allclose(saved["overlay"], 0.4 * IMAGE + 0.6 * coloured, atol=2)


@pytest.mark.parametrize(
    ("data", "name", "mime", "words"),
    [
        (b"text", "notes.txt", "text/plain", "notes.txt is not an image"),
        (b"no image at all", "street.png", "image/png", "street.png cannot be read as an image"),
        (PNG + bytes(2 << 20), "large.png", "image/png", "large.png has 2.1 MiB; this server takes 1.0 MiB at most"),
        (encoded(np.zeros((1500, 1500, 3), np.uint8)), "wide.png", "image/png", "the limit is 2000000 pixels"),
    ],
)
def test_a_bad_file_is_told(page: Page, data: bytes, name: str, mime: str, words: str) -> None:
    upload(page, data, name, mime)
    expect(page.get_by_role("alert")).to_contain_text(words)
    uploaded(page)
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_server_that_is_gone_is_told(page: Page) -> None:
    page.route("**/v1/segment*", lambda route: route.abort())
    upload(page)
    expect(page.get_by_role("alert")).to_contain_text("does not answer")


def test_a_busy_server_is_asked_again(page: Page) -> None:
    answers = iter([503])

    def handle(route: Any) -> None:
        status = next(answers, None)
        route.continue_() if status is None else route.fulfill(status=status, headers={"Retry-After": "1"}, body="{}")

    page.route("**/v1/segment*", handle)
    uploaded(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_anyone_from_it(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    accessible(page)
    uploaded(page)
    page.get_by_label("Compare with").select_option("int8.onnx")
    expect(page.locator("#differing")).to_contain_text("pixels")
    page.locator("#legend button").first.click()
    accessible(page)


def test_it_fits_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    uploaded(page)
    page.get_by_label("Compare with").select_option("int8.onnx")
    expect(page.locator("#differing")).to_contain_text("pixels")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for button in page.locator("button:visible, select:visible").all():
        box = button.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["height"] >= 28
    accessible(page)


def test_touch_names_the_class(browser: Browser, server: Running, bundle: Bundle, masks: dict[str, Any]) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#status")).to_have_text("Ready.")
    uploaded(page)
    page.locator("#first .view").tap(position={"x": 100, "y": 100})
    text = page.locator("#value").inner_text()
    found = re.fullmatch(r"(.+) \((\d+), (\d+)\)", text)
    assert found and found[1] == name_at(bundle, masks["model.onnx"], int(found[2]), int(found[3]))
    context.close()


def test_the_policy_lets_nothing_else_run(browser: Browser, server: Running) -> None:
    """A script that slipped into the page would be refused, and so would a request to another origin."""
    page = browser.new_page()
    page.goto(server.url)
    blocked = page.evaluate(
        """async () => {
            const seen = [];
            addEventListener("securitypolicyviolation", event => seen.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.slipped = true";
            document.body.append(script);
            await fetch("https://example.org/").catch(() => {});
            await new Promise(done => setTimeout(done, 50));
            return [...seen, String(window.slipped)];
        }"""
    )
    page.close()
    assert set(blocked) == {"script-src-elem", "connect-src", "undefined"}


def test_the_description_of_the_api_is_shown_as_it_was_made(page: Page, server: Running) -> None:
    """Its policy allows its style; on a narrow screen only tables and examples scroll sideways."""
    page.get_by_role("link", name="description").click()
    expect(page.get_by_role("heading", name="POST /v1/batch")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).margin") == "0px"
    accessible(page)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_the_document_names_no_other_origin(task: str) -> None:
    text = load_page(task)[0].decode()
    assert not re.search(r"https?://|//[a-z]+\.", text)
    assert cv2.imdecode(np.frombuffer(SAMPLE.read_bytes(), np.uint8), cv2.IMREAD_COLOR).shape == (800, 1200, 3)

"""Pages as Chromium shows them: reports, and those of ``denseport serve``."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 10_000  # ms
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def shown(page: Path, width: int) -> tuple[int, list[str]]:
    """How wide a page becomes in a window of ``width`` pixels, and what is wrong with it.

    That is: what the console said, what the page asked for, and what axe finds.
    """
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        window = browser.new_page(viewport={"width": width, "height": 800})
        window.on("console", lambda message: said.append(message.text))
        window.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        window.goto(page.resolve().as_uri())
        said += violations(window)
        return window.evaluate("document.documentElement.scrollWidth"), said


def violations(page: Page) -> list[str]:
    """What axe finds on a page: the rule and the element."""
    from axe_playwright_python.sync_playwright import Axe

    found = [each for each in Axe().run(page).response["violations"] if each["impact"] != "minor"]
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def accessible(page: Page) -> None:
    assert not violations(page)


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        expect.set_options(timeout=WAIT)
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The loaded page; afterwards, nothing may have gone wrong in its script, nor left for another origin."""
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(WAIT)
    wrong: list[str] = []
    page.on("pageerror", lambda err: wrong.append(str(err)))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("request", lambda asked: wrong.append(asked.url) if not ours(asked.url, url) else None)
    page.goto(url)
    expect(page.locator("#status")).to_have_text("Ready.")
    yield page
    page.close()
    # The console repeats each error that the server answers; what the page does with it is tested.
    assert not [each for each in wrong if not each.startswith("Failed to load resource")]


def ours(url: str, origin: str) -> bool:
    return url.startswith((f"{origin}/", "data:", f"blob:{origin}"))


def layer(page: Page, selector: str) -> np.ndarray:
    """(H, W, 4) RGBA of a canvas; transparent pixels have lost their colour."""
    url = page.evaluate("selector => document.querySelector(selector).toDataURL()", selector)
    data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)

"""Reports as Chromium shows them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def shown(page: Path, width: int) -> tuple[int, list[str]]:
    """How wide a page becomes in a window of ``width`` pixels, and what is wrong with it.

    That is: what the console said, what the page asked for, and what axe finds.
    """
    from axe_playwright_python.sync_playwright import Axe
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
        violations = Axe().run(window).response["violations"]
        said += [f"{each['id']}: {node['html']}" for each in violations for node in each["nodes"]]
        return window.evaluate("document.documentElement.scrollWidth"), said

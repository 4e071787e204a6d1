"""Make docs/images/page.png, page_compare.png and page_depth.png: the page of `denseport serve` with its sample.

    denseport export tests/assets/dpt_tiny_street.pth -o BUNDLE
    denseport build BUNDLE --precision fp16 --engine onnx
    python scripts/doc_images/screenshot_page.py BUNDLE [--dark]
    python scripts/doc_images/screenshot_page.py BUNDLE --compare fp16.onnx -o docs/images/page_compare.png
    denseport export tests/assets/depth/network -o DEPTH
    python scripts/doc_images/screenshot_page.py DEPTH -o docs/images/page_depth.png

The image is the one that scripts/doc_images/draw_sample.py draws. Needs the extra `test`, and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright


def show(page: Page, url: str, compare: str | None) -> None:
    """Segment the sample, compare, and point at the car."""
    page.goto(url)
    expect(page.locator("#status")).to_have_text("Ready.")
    page.get_by_role("button", name="Try the sample").click()
    expect(page.locator("#status")).to_contain_text("sample.jpg:", timeout=60_000)
    if compare:
        page.get_by_label("Compare with").select_option(compare)
        expect(page.locator("#differing")).not_to_be_empty(timeout=60_000)
        # Once more, now that both are loaded: the times are then those of any image.
        page.get_by_role("button", name="Sample").click()
        expect(page.locator("#times")).not_to_contain_text("Loading the model", timeout=60_000)
    box = page.locator("#first .view").bounding_box()
    if box is None:
        raise SystemExit("the image is not shown")
    page.mouse.move(box["x"] + 0.63 * box["width"], box["y"] + 0.64 * box["height"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--compare", metavar="NAME")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/page.png"))
    arguments = parser.parse_args()
    command = [str(Path(sys.executable).with_name("denseport")), "serve", arguments.bundle, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next((line.strip() for line in server.stdout or () if line.startswith("http://")), None)
        if url is None:
            raise SystemExit("the server did not start")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            scheme = "dark" if arguments.dark else "light"
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            show(page, url, arguments.compare)
            page.screenshot(path=arguments.output)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

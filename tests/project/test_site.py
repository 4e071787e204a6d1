"""The documentation site: built from the pages and the docstrings, strict, and alone on its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import CHROMIUM, needs_chromium
from documents import parsers
from playwright.sync_api import Browser, Route, sync_playwright
from support import REPO

PATIENCE = 300  # seconds; the machine may be busy
PHONE, DESKTOP = 390, 1280  # CSS pixels
MAIN = ("index.html", "int8.html", "tutorials/export.html", "commands.html", "python/index.html")

BAD = """\
'''Of [none][bad.none].'''

__all__ = ["f"]


def f(x: int) -> None:
    '''Do.

    Args:
        x, y: both.
    '''
"""

pytest.importorskip("zensical")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "docs"
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(REPO / "scripts/docs"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def test_the_commands_have_all_their_options(site: Path) -> None:
    page = (site / "commands.html").read_text(encoding="utf-8")
    for name, parser in parsers().items():
        section = page.partition(f'id="denseport-{name}"')[2].partition("<h2")[0]
        assert section, name
        for action in parser._actions:
            if action.help is not argparse.SUPPRESS:
                assert all(f"<code>{option}" in section or f", {option}" in section for option in action.option_strings)


def test_the_docstrings_are_the_reference(site: Path) -> None:
    page = (site / "python/denseport-runtime-backends.html").read_text(encoding="utf-8")
    assert 'id="denseport.runtime.backends.onnxruntime.OnnxRuntimeSession"' in page and "MachineError" in page
    assert "OnnxRuntimeSession._" not in page  # what is not promised


@needs_chromium
def test_pages_load_nothing_from_elsewhere_and_fit(address: str, browser: Browser) -> None:
    asked: list[str] = []
    said: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    window = browser.new_page()
    window.route(lambda url: not url.startswith(address), refuse)
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda err: said.append(str(err)))
    for page in MAIN:
        window.goto(f"{address}/{page}")
        for width in (PHONE, DESKTOP):
            window.set_viewport_size({"width": width, "height": 800})
            assert window.evaluate("document.documentElement.scrollWidth") <= width, page
    window.close()
    assert not asked and not said


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("page", "width"), [(MAIN[0], DESKTOP), (MAIN[1], PHONE)])
def test_pages_are_accessible(
    page: str, width: int, scheme: Literal["light", "dark"], address: str, browser: Browser
) -> None:
    window = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    window.goto(f"{address}/{page}")
    window.wait_for_selector('.md-typeset__scrollwrap[tabindex="0"]')  # site.js has run
    found = Axe().run(window).response["violations"]
    window.close()
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    assert not [(each["id"], each["nodes"][0]["html"]) for each in grave]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPO / "scripts/site"))
    import build

    return build


def test_warnings_of_docstrings_and_broken_links_are_errors(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Home\n\n[there](nowhere.md)\n\n::: bad\n", encoding="utf-8")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/bad.py").write_text(BAD, encoding="utf-8")
    settings = build.SETTINGS.read_text(encoding="utf-8")
    start, end = settings.index("nav = ["), settings.index("[project.theme]")
    (tmp_path / "zensical.toml").write_text(settings[:start] + settings[end:], encoding="utf-8")
    said = "\n".join(build.built(tmp_path))
    assert "Parameter 'y' does not appear" in said and "Parameter 'x'" not in said
    assert "nowhere.md" in said and "bad.none" in said


def test_what_a_page_loads_and_where_it_leads_is_checked(build: ModuleType, tmp_path: Path) -> None:
    loads = '<link href="https://a.example/x.css" rel=stylesheet><img src="//b.example/y.png">'
    leads = '<a href="https://c.example">c</a><a href="no.html">n</a><a href="#no">m</a><p id=yes><a href="#yes">y</a>'
    (tmp_path / "index.html").write_text(loads + leads)
    found = build.faults(tmp_path)
    assert len(found) == 4
    for part in ("https://a.example/x.css", "//b.example/y.png", "no.html, which", "#no, which"):
        assert any(part in each for each in found), part


def test_a_page_in_no_menu_is_an_error(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "index.md").touch()
    (tmp_path / "new.md").touch()
    assert build.unlisted('nav = ["index.md"]', tmp_path) == ["new.md: in no menu of zensical.toml"]

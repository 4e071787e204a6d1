"""The pages: one to look at images, one that describes the API. Neither loads anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from denseport.runtime.media.depth_map import coloured
from denseport.runtime.media.page import render

__all__ = ["SAMPLE", "load_page", "load_reference"]

STATIC = Path(__file__).parent / "static"
SAMPLE = STATIC / "sample.jpg"  # an image to try


def load_page(task: str) -> tuple[bytes, dict[str, str]]:
    """The HTML with its style and its script inside, and headers whose policy allows these two by their hashes.

    Args:
        task: whose results it shows: its script comes before page.js.
    """
    html, style, script = ((STATIC / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    colours = coloured(np.arange(256, dtype=np.float32)[None], (0, 255), near_is_large=True)[0, :, ::-1].tobytes().hex()
    script = (STATIC / f"{task}.js").read_text("utf-8").replace("/* colours */", colours) + script
    html = html.replace("/* page.css */", style).replace("/* page.js */", script)
    sources = {
        "style-src": _hash(style),
        "script-src": _hash(script),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
    }
    return html.encode(), _headers(sources)


def load_reference(openapi: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A description of the API as HTML without any script, and headers whose policy allows its style alone.

    Args:
        openapi: the document of /openapi.json.
    """
    html = render(STATIC / "reference.html", api=openapi)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    return html.encode(), _headers({"style-src": " ".join(map(_hash, styles)), "img-src": "data:"})


def _headers(sources: dict[str, str]) -> dict[str, str]:
    """Of a page that may load from these sources alone."""
    policy = {
        "default-src": "'none'",
        **sources,
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


def _hash(text: str) -> str:
    """Source: https://www.w3.org/TR/CSP3/ (section 2.3.1, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

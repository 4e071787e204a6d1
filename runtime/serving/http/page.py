"""The page: one document that holds its script and style, and may load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

__all__ = ["SAMPLE", "load_page"]

STATIC = files("denseport.runtime.serving.http") / "static"
SAMPLE = STATIC / "sample.jpg"  # an image to try


def load_page() -> tuple[bytes, dict[str, str]]:
    """The HTML with page.css and page.js inside, and headers whose policy allows these two by their hashes."""
    html, style, script = ((STATIC / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    html = html.replace("/* page.css */", style).replace("/* page.js */", script)
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return html.encode(), headers


def _hash(text: str) -> str:
    """Source: https://www.w3.org/TR/CSP3/ (section 2.3.1, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

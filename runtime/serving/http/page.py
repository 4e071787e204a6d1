"""The page: one document with everything in it, which may load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from importlib.resources import files

__all__ = ["Page", "load_page"]


@dataclass(frozen=True)
class Page:
    """What a browser gets."""

    html: bytes
    sample: bytes  # an image to try, JPEG
    headers: dict[str, str] = field(default_factory=dict)


def load_page() -> Page:
    """Join page.html, page.css and page.js into one document, and name the hashes of both in its policy."""
    folder = files("denseport.runtime.serving.http") / "static"
    html, style, script = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
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
    return Page(html.encode(), folder.joinpath("sample.jpg").read_bytes(), headers)


def _hash(text: str) -> str:
    """Source: https://www.w3.org/TR/CSP3/ (section 2.3.1, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

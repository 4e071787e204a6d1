"""Pieces of Denseport's HTML reports: one page that needs nothing but itself.

No script, no framework, no request: images are data URIs, bars are CSS, and the page's own content security
policy forbids the rest. Whatever comes from a file or a person is escaped by whoever passes it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

__all__ = ["fact_list", "page", "section"]

_TEMPLATE = Path(__file__).with_name("report.html")


def page(title: str, header: str, main: str, footer: str) -> str:
    """A whole page.

    Args:
        title: text, escaped here.
        header, main, footer: HTML.
    """
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), header=header, main=main, footer=footer)


def section(name: str, title: str, hint: str, body: str) -> str:
    """A part of the page under a heading; HTML in, HTML out."""
    note = f'<p class="hint">{hint}</p>\n' if hint else ""
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{note}{body}\n</section>'


def fact_list(facts: Mapping[str, str]) -> str:
    """Names and values, HTML both."""
    return f'<dl class="facts-list">{"".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())}</dl>'

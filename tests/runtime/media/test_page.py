"""What is common to the reports: text is escaped, and a name that is missing is an error."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2
import pytest

from denseport.runtime.media.page import render


def template(folder: Path, text: str) -> Path:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


def test_text_is_escaped_and_a_missing_name_is_an_error(tmp_path: Path) -> None:
    path = template(tmp_path, '<p title="{{ text }}">{{ text }}</p>')
    assert "<b>" not in render(path, text="<b>'\"") and render(path, text="<b>'\"").count("&lt;b&gt;&#39;&#34;") == 2
    with pytest.raises(jinja2.UndefinedError, match="text"):
        render(path)


def test_numbers_are_written_as_in_the_terminal(tmp_path: Path) -> None:
    path = template(
        tmp_path, "{{ a | number }} {{ a | signed(1) }} {{ n | count('image') }} {{ b is nan }} {{ a is nan }}"
    )
    assert render(path, a=-1.25, b=math.nan, n=2) == "-1.25 −1.2 2 images True False"


def test_a_page_extends_the_base_and_carries_its_policy(tmp_path: Path) -> None:
    path = template(
        tmp_path,
        '{% extends "base.html" %}{% from "pieces.html" import section %}'
        '{% block main %}{% call section("a", "<i>") %}x{% endcall %}{% endblock %}',
    )
    text = render(path)
    assert '<h2 id="a">&lt;i&gt;</h2>' in text and "default-src 'none'; img-src data:" in text

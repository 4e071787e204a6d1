"""Denseport's HTML reports: each is one page that needs nothing but itself.

No script, no framework, no request: images are data URIs, bars are CSS, and the page's own content security policy
forbids the rest. Jinja2 escapes whatever a template is given.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from denseport.runtime.system.text import count, number, signed

__all__ = ["render"]

_SHARED = Path(__file__).parent  # base.html, which every page extends, and pieces.html


def render(template: Path, **values: Any) -> str:
    """Fill a template, which may extend ``base.html``.

    Beside Jinja2's own filters there are `count` (in place of Jinja2's), `number` and `signed`, and the test ``nan``.

    Args:
        template: the file.
        values: what the template names. A name that is missing is an error, never an empty text.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, number=number, signed=signed)
    environment.tests.update(nan=math.isnan)
    return environment.get_template(template.name).render(values)

"""Denseport's HTML reports: each is one page that needs nothing but itself.

No script, no framework, no request: images are data URIs, bars are CSS, and the page's own content security policy
forbids the rest. Jinja2 escapes whatever a template is given.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.system.text import count, number, signed

__all__ = ["data_uri", "render", "thumbnail"]

_SHARED = Path(__file__).parent  # base.html, which every page extends, and pieces.html
_THUMBNAIL = 320  # px, of the longer side


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


def thumbnail(array: NDArray[Any], interpolation: int = cv2.INTER_AREA) -> NDArray[Any]:
    """An image (H, W) or (H, W, 3), scaled down to what a report shows; a smaller one as it is."""
    height, width = array.shape[:2]
    factor = _THUMBNAIL / max(height, width)
    if factor >= 1:
        return array
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(array, size, interpolation=interpolation))


def data_uri(kind: str, image: NDArray[np.uint8], *params: int) -> str:
    """An image (H, W, 3) BGR as the source of an ``img``: a ``jpeg`` or a ``png``, with OpenCV's parameters."""
    data = cv2.imencode(f".{kind}", image, params)[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

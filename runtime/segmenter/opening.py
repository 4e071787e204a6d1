"""The predictor of a bundle, whatever its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.segmenter.depth import DepthEstimator

__all__ = ["open_predictor"]


def open_predictor(bundle: Path | str | Bundle, **options: Any) -> Segmenter | DepthEstimator:
    """A `Segmenter` or a `DepthEstimator`, by the bundle's task; options and errors as of either."""
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    return (DepthEstimator if bundle.manifest.task == "depth" else Segmenter)(bundle, **options)

"""The predictor of a bundle, whatever its task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from denseport.runtime.segmenter.depth import DepthEstimator

__all__ = ["open_predictor"]


def open_predictor(bundle: Path | str | Bundle, **options: Any) -> Segmenter | DepthEstimator:
    """A `Segmenter` or a `DepthEstimator`, by the bundle's task; options and errors as of either."""
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    if bundle.manifest.task != "depth":
        return Segmenter(bundle, **options)
    from denseport.runtime.segmenter.depth import DepthEstimator  # what no segmenter needs

    return DepthEstimator(bundle, **options)

"""Run a bundle: image in, mask or depth out. No torch, no onnx.

The names below are imported on first use, so that ``denseport --help`` needs neither numpy nor OpenCV.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle as Bundle
    from denseport.runtime.errors import DenseportError as DenseportError
    from denseport.runtime.evaluation.depth.evaluate import evaluate_depth as evaluate_depth
    from denseport.runtime.evaluation.evaluate import evaluate as evaluate
    from denseport.runtime.evaluation.gate import Gate as Gate
    from denseport.runtime.evaluation.report import Evaluation as Evaluation
    from denseport.runtime.pipeline.depth import Depth as Depth
    from denseport.runtime.pipeline.results import Segmentation as Segmentation
    from denseport.runtime.pipeline.results import Timings as Timings
    from denseport.runtime.segmenter import Segmenter as Segmenter
    from denseport.runtime.segmenter.depth import DepthEstimator as DepthEstimator

# ONNX Runtime's wheels write an identifier below the home folder and look for their makers' server as soon as they are
# imported. Every part of Denseport imports this module first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Bundle": "bundle.bundle",
    "DenseportError": "errors",
    "Depth": "pipeline.depth",
    "DepthEstimator": "segmenter.depth",
    "Evaluation": "evaluation.evaluate",
    "Gate": "evaluation.gate",
    "Segmentation": "pipeline.results",
    "Segmenter": "segmenter",
    "Timings": "pipeline.results",
    "evaluate": "evaluation.evaluate",
    "evaluate_depth": "evaluation.depth.evaluate",
}

__all__ = [
    "Bundle",
    "DenseportError",
    "Depth",
    "DepthEstimator",
    "Evaluation",
    "Gate",
    "Segmentation",
    "Segmenter",
    "Timings",
    "evaluate",
    "evaluate_depth",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"denseport.runtime.{_HOMES[name]}"), name)
    return found

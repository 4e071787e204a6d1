"""The statistics of one calibration: smoothing first, then a threshold for every tensor that may become INT8.

Each collection has a state file in a work folder. An interrupted collection goes on there. A finished one is not
repeated for another method or budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from denseport.calibration.observe.collect import collect, collection_key
from denseport.calibration.observe.images import ImageStatistics, identity_of
from denseport.calibration.observe.observers import ChannelMaximum, Histogram, Method, Observer, RowSample, threshold
from denseport.calibration.quantize.placement import Group, activations
from denseport.calibration.quantize.smoothing import SmoothingRecord, find_norms, smooth
from denseport.runtime.backends.onnxruntime import INPUT
from denseport.runtime.pipeline.network_input import NetworkInputs
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["Thresholds", "find_thresholds", "smooth_norms"]

_ROWS = 1024  # of each LayerNorm's output, all images together


@dataclass(frozen=True)
class Thresholds:
    """What was observed of the tensors."""

    limits: dict[str, float]  # by tensor: the magnitude that becomes the largest number
    warnings: tuple[str, ...]  # what speaks against the images, with figures
    key: str  # a hash of the model, the images and the tensors


def smooth_norms(
    model: ir.Model,
    images: NetworkInputs,
    state_file: Path,
    *,
    threads: int | None = None,
    progress: StepCallback = no_steps,
) -> SmoothingRecord:
    """Observe the outliers behind a model's LayerNorms and migrate them into the next weights, in place."""
    norms = find_norms(model)
    if not norms:
        return SmoothingRecord(())
    maxima = {name: ChannelMaximum() for name in norms}
    rows = {name: RowSample(per_image=max(1, _ROWS // len(images)), capacity=_ROWS) for name in norms}
    _collect(model, images, {name: [maxima[name], rows[name]] for name in norms}, state_file, threads, progress)
    return smooth(model, maxima, rows)


def find_thresholds(
    model: ir.Model,
    groups: Iterable[Group],
    images: NetworkInputs,
    state_file: Path,
    method: Method,
    *,
    threads: int | None = None,
    progress: StepCallback = no_steps,
) -> Thresholds:
    """The thresholds of all tensors that ``groups`` read, and of what their convolutions write.

    Raises:
        CalibrationError: a tensor holds values that are not finite.
    """
    histograms = {name: Histogram() for name in activations(model, groups, outputs=True)}
    statistics = ImageStatistics()
    observers: dict[str, list[Observer]] = {name: [histogram] for name, histogram in histograms.items()}
    observers.setdefault(INPUT, []).append(statistics)
    key = _collect(model, images, observers, state_file, threads, progress)
    limits = {name: threshold(histogram, method) for name, histogram in histograms.items()}
    return Thresholds(limits, tuple(statistics.warnings()), key)


def _collect(
    model: ir.Model,
    images: NetworkInputs,
    observers: dict[str, list[Observer]],
    file: Path,
    threads: int | None,
    progress: StepCallback,
) -> str:
    """Show all tensors to their observers, or restore these from the file of the same key; returns the key."""
    key = collection_key(model, identity_of(images), observers)
    collect(model, images, observers, threads=threads, state_file=file, key=key, progress=progress)
    return key

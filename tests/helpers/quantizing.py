"""Quantize a model with ranges of one image: enough to look at graphs and engines, not for accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.quantize.graph import GraphSession, load_model, serialise
from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.calibration.quantize.unpack import unpack_projections


def write_quantized(source: Path, target: Path, image: NDArray[np.float32], kind: str = "int8") -> int:
    """Write the 8-bit graph of an FP32 one with every candidate but attention in it; the number of its layers."""
    model, _ = unpack_projections(load_model(source))
    groups = find_groups(model, image.shape[2:])
    chosen = [group for group in groups if group.float_reason is None and group.kind != "attention"]
    limits = {}
    names = activations(model, chosen)
    for start in range(0, len(names), 16):  # at full size not all tensors at once
        some = names[start : start + 16]
        found = GraphSession(model, some).run(image)
        limits |= {name: float(np.abs(value).max()) for name, value in zip(some, found, strict=True)}
    result, _ = quantize(model, limits, groups, [group.name for group in chosen], kind=kind)
    target.write_bytes(serialise(result))
    return sum(len(group.nodes) for group in chosen)

"""Write typed graphs, and 8-bit ones with ranges of one image, to look at graphs and engines; shorten races."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.calibration.quantize.placement import activations, find_groups
from denseport.calibration.quantize.qdq import quantize
from denseport.export.graph.model import PROTOBUF_LIMIT, read_model, save_model, serialise
from denseport.export.graph.precision import PrecisionRecord, set_types
from denseport.export.graph.probe import Probe, observe
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.benchmark import race


def write_typed(
    source: Path,
    target: Path,
    precision: str,
    images: Iterable[NDArray[np.float32]] | None = None,
    *,
    limit: int = PROTOBUF_LIMIT,
) -> PrecisionRecord:
    """Write the FP16 or BF16 graph of an FP32 one."""
    ranges = observe(source, images) if images is not None else None
    model = read_model(source)
    record = set_types(model, precision, ranges)
    save_model(model, target, limit)
    return record


def write_quantized(source: Path, target: Path, image: NDArray[np.float32], kind: str = "int8") -> int:
    """Write the 8-bit graph of an FP32 one with every candidate but attention in it; the number of its layers."""
    model = read_model(source)
    unpack_projections(model)
    groups = find_groups(model, image.shape[2:])
    chosen = [group for group in groups if group.float_reason is None and group.kind != "attention"]
    limits = {}
    names = activations(model, chosen)
    for start in range(0, len(names), 16):  # at full size not all tensors at once
        some = names[start : start + 16]
        found = Probe(model, some).run(image)
        limits |= {name: float(np.abs(value).max()) for name, value in zip(some, found, strict=True)}
    quantize(model, limits, groups, [group.name for group in chosen], kind=kind)
    target.write_bytes(serialise(model))
    return sum(len(group.nodes) for group in chosen)


def shorten_races(patch: pytest.MonkeyPatch) -> None:
    """Time networks for a tenth of a second, not for ten: for tests that look at the verdict, not at the speeds."""
    patch.setattr(race, "ROUNDS", (3, 3))
    patch.setattr(race, "SETTLED", 0.0)

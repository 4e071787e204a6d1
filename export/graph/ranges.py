"""How large the tensors of a graph grow on calibration images: the largest magnitude of each, in FP32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.export.graph.probe import Probe
from denseport.runtime.errors import InputError

__all__ = ["Ranges", "observe"]


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes by tensor name; nothing where no image was observed."""

    largest: dict[str, float] = field(default_factory=dict)  # inf or NaN where FP32 itself overflowed
    images: int = 0


def observe(path: Path, images: Iterable[NDArray[np.float32]], *, threads: int | None = None) -> Ranges:
    """Run a model on images and note the largest magnitude of every floating-point tensor.

    Args:
        path: an FP32 ONNX file with one input.
        images: normalised batches (N, 3, H, W) float32, read one at a time.
        threads: of ONNX Runtime; default: the CPUs this process may use.

    Raises:
        MachineError: ONNX Runtime is not installed.
        ExportError: ONNX Runtime cannot run the model.
        InputError: there is not one image.
    """
    model = ir.load(path)
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    tensors = [str(value.name) for value in values if value.dtype == ir.DataType.FLOAT]
    probe = Probe(model, (), largest=tensors, threads=threads, name=str(path))
    largest, count = np.zeros(len(tensors)), 0
    for image in images:
        largest = np.maximum(largest, np.array(probe.run(image), np.float64))  # keeps a NaN
        count += len(image)
    if not count:
        raise InputError(f"{path}: no calibration image was given", "Name a folder with images, or leave it out.")
    return Ranges(dict(zip(tensors, largest.tolist(), strict=True)), count)

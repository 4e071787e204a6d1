"""How large the tensors of a graph grow on calibration images: the largest magnitude of each, in FP32.

The reduction is part of the graph that runs (Abs, ReduceMax behind every tensor), so only one number a tensor leaves
ONNX Runtime, and a tensor is freed as soon as it would be without the observation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.export.errors import ExportError
from denseport.runtime.errors import InputError, MachineError

__all__ = ["Ranges", "observe"]


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes by tensor name; nothing where no image was observed."""

    largest: dict[str, float] = field(default_factory=dict)  # inf or NaN where FP32 itself overflowed
    images: int = 0


def observe(path: Path, images: Iterable[NDArray[np.float32]], *, threads: int = 0) -> Ranges:
    """Run a model on images and note the largest magnitude of every floating-point tensor.

    Args:
        path: an FP32 ONNX file with one input.
        images: normalised batches (N, 3, H, W) float32, read one at a time.
        threads: of ONNX Runtime; 0: as many as there are cores.

    Raises:
        MachineError: ONNX Runtime is not installed.
        ExportError: ONNX Runtime cannot run the model.
        InputError: there is not one image.
    """
    with tempfile.TemporaryDirectory(prefix="denseport-ranges-") as folder:
        probed = Path(folder) / "probed.onnx"
        tensors = _save_with_probes(path, probed)
        session = _open(probed, path, threads)
        source = session.get_inputs()[0].name
        outputs = [output.name for output in session.get_outputs()]
        largest, count = np.zeros(len(tensors)), 0
        for image in images:
            found = np.array(session.run(outputs, {source: image}), np.float64)
            largest = np.maximum(largest, found)  # keeps a NaN
            count += len(image)
    if not count:
        raise InputError(f"{path}: no calibration image was given", "Name a folder with images, or leave it out.")
    return Ranges(dict(zip(tensors, largest.tolist(), strict=True)), count)


def _save_with_probes(path: Path, probed: Path) -> list[str]:
    """Save the model with one scalar output for each floating-point tensor; their names, in the order of outputs."""
    model = ir.load(path)
    graph = model.graph
    computed = [value for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    values = [value for value in (*graph.inputs, *computed) if value.dtype == ir.DataType.FLOAT]
    graph.outputs.clear()
    for i, value in enumerate(values):
        magnitude = ir.node("Abs", [value], name=f"probe_{i}/Abs")
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0}, name=f"probe_{i}/ReduceMax")
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], (magnitude, largest))
        else:
            graph.insert_after(producer, (magnitude, largest))
        output = largest.outputs[0]
        output.name, output.dtype, output.shape = f"probe_{i}", ir.DataType.FLOAT, ir.Shape([])
        graph.outputs.append(output)
    # Weights go to a second file, since a protobuf holds no more than 2 GB.
    ir.save(model, probed, external_data=f"{probed.name}.data")
    return [str(value.name) for value in values]


def _open(probed: Path, path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as err:
        raise MachineError("ONNX Runtime is not installed", "pip install 'denseport[onnxruntime]'") from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # In the order of the nodes: by default every reduction would wait until the end, and every tensor with it
    # (DPT DeiT-S, 512 x 1024: 4.7 GB of memory instead of 0.6).
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(probed, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # ONNX Runtime raises a class of its own for every status code
        raise ExportError(f"{path}: ONNX Runtime cannot run it: {err}", "Export the checkpoint again.") from err

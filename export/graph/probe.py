"""A graph on ONNX Runtime's CPU back end that also gives inner tensors, their shapes or their largest magnitudes.

Shapes and magnitudes are computed by nodes right behind the tensor's producer, and nodes run in their order, so that
ONNX Runtime frees a tensor as soon as it would without them. By default it would run them last, and keep every tensor
until then (DPT DeiT-S, 512 x 1024: 4.7 GB of memory instead of 0.6).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.helper import make_node

from denseport.export.errors import ExportError
from denseport.export.graph.model import serialise
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.system.cpus import usable_cpus
from denseport.runtime.system.machine import install_command

__all__ = ["Probe", "Ranges", "in_groups", "observe", "open_session"]

SHAPE, LARGEST = "::shape", "::largest"  # end the names of outputs that hold a tensor's shape, its largest magnitude


class Probe:
    """A model that can be run, and asked for its tensors.

    Args:
        model: one input (N, 3, H, W) float32. Weights in files of their own are read from there.
        outputs: tensors to give; default: the model's own. Nodes that they do not need are not run.
        shapes: of these tensors give the shapes, after the outputs.
        largest: of these tensors give the largest magnitude, a number, after the shapes.
        as_written: compute each node as it stands, without ONNX Runtime's optimizations.
        threads: default: the CPUs this process may use.
        name: what messages call the model.

    Raises:
        MachineError: ONNX Runtime is not installed.
        ExportError: ONNX Runtime cannot load the model.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Iterable[str] | None = None,
        *,
        shapes: Sequence[str] = (),
        largest: Sequence[str] = (),
        as_written: bool = False,
        threads: int | None = None,
        name: str = "the model",
    ) -> None:
        given = [str(value.name) for value in model.graph.outputs] if outputs is None else outputs
        self.outputs = [*given, *(each + SHAPE for each in shapes), *(each + LARGEST for each in largest)]
        self._name, self._input = name, str(model.graph.inputs[0].name)
        proto = ir.to_proto(model)
        nodes = _with_probes(proto.graph, shapes, largest)
        if as_written:
            wanted = set(self.outputs)
            last = max((i for i, node in enumerate(nodes) if wanted.intersection(node.output)), default=-1)
            del nodes[last + 1 :]
        kept = {value.name: value for value in proto.graph.output}
        del proto.graph.node[:], proto.graph.output[:]
        proto.graph.node.extend(nodes)
        proto.graph.output.extend(kept.get(each, onnx.ValueInfoProto(name=each)) for each in self.outputs)
        external = (value.const_value for value in model.graph.initializers.values())
        folder = next((Path(each.base_dir) for each in external if isinstance(each, ir.ExternalTensor)), None)
        ordered = bool(shapes or largest)
        self._session = open_session(
            proto, name, folder=folder, as_written=as_written, in_order=ordered, threads=threads
        )
        shape = self._session.get_inputs()[0].shape
        self.channels = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 3  # of the input

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs, shapes and magnitudes for a normalised image batch (N, C, H, W).

        Raises:
            ExportError: another shape or type, or an image that the network cannot take.
        """
        if image.ndim != 4 or image.shape[1] != self.channels or image.dtype != np.float32 or not image.size:
            wanted = f"(N, {self.channels}, height, width)"
            raise ExportError(
                f"expected normalised images of shape {wanted}, float32; got {image.shape} {image.dtype}",
                "denseport.runtime.pipeline.network_input.NetworkInputs makes them from image files.",
            )
        try:
            return list(self._session.run(self.outputs, {self._input: image}))
        except Exception as err:  # ONNX Runtime raises a class of its own for every status code
            raise ExportError(f"ONNX Runtime cannot run {self._name} on an image of {image.shape}: {err}") from err


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

    Raises:
        MachineError, ExportError: see `Probe`.
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


def in_groups(
    model: ir.Model,
    image: NDArray[np.float32],
    names: Sequence[str],
    limit: int,
    *,
    as_written: bool = False,
    threads: int | None = None,
) -> list[list[str]]:
    """Tensors, in their order, in groups that take at most ``limit`` bytes as float32 for an image, or hold only one.

    Errors are those of `Probe`.
    """
    if not names:
        return []
    shapes = Probe(model, (), shapes=names, as_written=as_written, threads=threads).run(image)
    groups, room = list[list[str]](), 0
    for name, shape in zip(names, shapes, strict=True):
        size = np.dtype(np.float32).itemsize * math.prod(shape.tolist())
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def open_session(
    proto: onnx.ModelProto,
    name: str = "the model",
    *,
    folder: Path | None = None,
    as_written: bool = False,
    in_order: bool = False,
    threads: int | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        folder: of the files that hold its weights.
        in_order: run the nodes in their order.
        name, as_written, threads: as of `Probe`, which raises the same.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise MachineError("ONNX Runtime is not installed", install_command("onnxruntime")) from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = 3
    # Without it x86 without VNNI saturates on int8 weights: the error would be the machine's, not the model's.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    # ONNX Runtime would make integer operators of FP8, and then refuse them.
    if as_written or any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in proto.graph.initializer):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if in_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    data = serialise(proto)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # ONNX Runtime raises a class of its own for every status code
        raise ExportError(f"ONNX Runtime cannot load {name}: {err}", "Export or import it again.") from err


def _with_probes(graph: onnx.GraphProto, shapes: Iterable[str], largest: Iterable[str]) -> list[onnx.NodeProto]:
    """The graph's nodes, with those that compute shapes and magnitudes behind what they read."""
    probes: dict[str, list[onnx.NodeProto]] = {}
    for name in shapes:
        probes.setdefault(name, []).append(make_node("Shape", [name], [name + SHAPE]))
    for name in largest:
        magnitude = make_node("Abs", [name], [f"{name}::abs"])
        reduced = make_node("ReduceMax", magnitude.output, [name + LARGEST], keepdims=0)
        probes.setdefault(name, []).extend((magnitude, reduced))
    nodes = [probe for value in graph.input for probe in probes.get(value.name, ())]
    for node in graph.node:
        nodes += [node, *(probe for name in node.output for probe in probes.get(name, ()))]
    return nodes

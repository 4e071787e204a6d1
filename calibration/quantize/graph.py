"""ONNX models in memory, and ONNX Runtime sessions that also give inner tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError
from denseport.runtime.system.cpus import usable_cpus

__all__ = [
    "INPUT",
    "LARGEST",
    "GraphSession",
    "has_flag",
    "load_model",
    "new_constant",
    "serialise",
    "shapes_at",
    "weight_of",
]

INPUT, OUTPUT = "image", "logits"
LARGEST = 2**31 - 2**20  # bytes of a model that fits a single protobuf message
SHAPE = "::shape"  # ends the names of outputs that hold a tensor's shape


def load_model(path: Path) -> ir.Model:
    """An ONNX model with all its weights in memory.

    Raises:
        CalibrationError: the file cannot be read as such, or has no input ``image`` and output ``logits``.
    """
    try:
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    except Exception as err:  # protobuf, onnx_ir and the file system each raise classes of their own
        raise CalibrationError(
            f"{path}: cannot be read as an ONNX model: {err}", "Export the checkpoint again."
        ) from err
    names = [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]
    if names != ([INPUT], [OUTPUT]):
        raise CalibrationError(
            f"{path}: expected the input {INPUT!r} and the output {OUTPUT!r}, found {names[0]} and {names[1]}",
            "Calibrate the FP32 model of a bundle, model.onnx.",
        )
    return model


def serialise(model: ir.Model) -> bytes:
    """The model as one protobuf message.

    Raises:
        CalibrationError: it is too large for that.
    """
    proto = ir.to_proto(model)
    size = proto.ByteSize()
    if size > LARGEST:
        raise CalibrationError(
            f"a model of {size / 2**30:.1f} GiB is too large to be quantized: the limit is 2 GiB",
            "Type it instead: denseport build --precision fp16.",
        )
    data: bytes = proto.SerializeToString()
    return data


def weight_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer; None for what is computed."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def has_flag(node: ir.Node, name: str) -> bool:
    """Whether an attribute of ONNX that is 0 by default, such as Gemm's ``transB``, is set."""
    return name in node.attributes and bool(node.attributes[name].as_int())


def new_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer of a graph."""
    tensor = ir.tensor(array, name=name)
    shape = ir.Shape(array.shape)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


class GraphSession:
    """A model on ONNX Runtime's CPU provider.

    Args:
        outputs: tensors to give; default: the logits. Nodes that they do not need are not run.
        shapes: of these tensors give the shapes instead.
        threads: default: the CPUs this process may use.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Iterable[str] = (OUTPUT,),
        *,
        shapes: Iterable[str] = (),
        threads: int | None = None,
    ) -> None:
        proto = ir.to_proto(model)
        shapes = list(shapes)
        proto.graph.node.extend(onnx.helper.make_node("Shape", [name], [name + SHAPE]) for name in shapes)
        self.outputs = [*outputs, *(name + SHAPE for name in shapes)]
        kept = {value.name: value for value in proto.graph.output}
        del proto.graph.output[:]
        proto.graph.output.extend(kept.get(name, onnx.ValueInfoProto(name=name)) for name in self.outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.log_severity_level = 3
        # Without it x86 without VNNI saturates on int8 weights: the error would be the machine's, not the model's.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in proto.graph.initializer):
            # It would make integer operators of FP8, which it then refuses.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if shapes:
            # Else the nodes that read a shape run last, and keep every tensor until then.
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        try:
            self._session: Any = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # ONNX Runtime raises a class of its own for every status code
            raise CalibrationError(f"ONNX Runtime cannot load the model: {err}") from err

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs for a normalised image batch (N, 3, H, W).

        Raises:
            CalibrationError: another shape or type, or an image that the network cannot take.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.dtype != np.float32 or not image.size:
            raise CalibrationError(
                f"expected normalised images of shape (N, 3, height, width), float32; got {image.shape} {image.dtype}",
                "denseport.calibration.observe.images.CalibrationImages makes them from image files.",
            )
        try:
            return list(self._session.run(self.outputs, {INPUT: image}))
        except Exception as err:  # see above
            raise CalibrationError(f"ONNX Runtime cannot run the model on an image of {image.shape}: {err}") from err


def shapes_at(model: ir.Model, names: Iterable[str], size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors for one image of ``size`` (height, width), as ONNX Runtime finds them."""
    names = list(dict.fromkeys(names))
    found = GraphSession(model, (), shapes=names).run(np.zeros((1, 3, *size), np.float32))
    return {name: tuple(int(n) for n in shape) for name, shape in zip(names, found, strict=True)}

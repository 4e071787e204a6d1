"""Read a model with all its weights; write it whole or not at all, above 2 GiB with its weights in a second file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from denseport.export.errors import ExportError
from denseport.runtime.backends.onnxruntime import INPUT
from denseport.runtime.system.files import work_folder, writing

__all__ = [
    "DEPTH",
    "LOGITS",
    "MASK",
    "PROTOBUF_LIMIT",
    "output_of",
    "read_model",
    "save_model",
    "serialise",
    "weight_bytes",
]

LOGITS, MASK, DEPTH = "logits", "mask", "depth"  # what a graph of a bundle can end in
PROTOBUF_LIMIT = 2**31 - 2**20  # bytes; a single ONNX file cannot be larger


def read_model(path: Path) -> ir.Model:
    """A model with all its weights in memory, so that it can be written elsewhere than beside its external data.

    Raises:
        ExportError: it is not an ONNX model, or its external data cannot be read.
    """
    try:
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    except Exception as err:  # protobuf, onnx_ir and the file system each raise classes of their own
        raise ExportError(f"{path}: cannot be read as an ONNX model: {err}", "Export or import it again.") from err
    return model


def output_of(model: ir.Model) -> str:
    """What a graph of a bundle ends in: `LOGITS`, `MASK` or `DEPTH`.

    Raises:
        ExportError: it has another output, or another input than ``image``.
    """
    graph = model.graph
    names = [value.name for value in graph.inputs], [value.name for value in graph.outputs]
    if names not in [([INPUT], [output]) for output in (LOGITS, MASK, DEPTH)]:
        raise ExportError(
            f"the graph has the inputs {names[0]} and the outputs {names[1]}; expected {INPUT!r}, and {LOGITS!r}, "
            f"{MASK!r} or {DEPTH!r}",
            "Export the model again.",
        )
    return str(names[1][0])


def weight_bytes(model: ir.Model) -> int:
    """Bytes of a model's constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.nbytes for constant in constants if constant is not None)


def serialise(model: ir.Model | onnx.ModelProto) -> bytes:
    """The model as one protobuf message.

    Raises:
        ExportError: it is too large for that.
    """
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    size = proto.ByteSize()
    if size > PROTOBUF_LIMIT:
        raise ExportError(
            f"a model of {size / 2**30:.1f} GiB is too large to be quantized: the limit is 2 GiB",
            "Type it instead: denseport build --precision fp16.",
        )
    data: bytes = proto.SerializeToString()
    return data


def save_model(model: ir.Model, output: Path, limit: int = PROTOBUF_LIMIT) -> None:
    """Write a model and check it.

    Args:
        limit: bytes of weights beyond which they go to ``output`` + ".data".

    Raises:
        ExportError: it is not valid ONNX.
        OutputError: ``output`` cannot be written.
    """
    data = output.with_name(f"{output.name}.data")
    large = weight_bytes(model) > limit
    with work_folder(output.parent) as folder:
        whole = folder / output.name
        # Shapes stay inside: the checker reads them.
        ir.save(model, whole, external_data=data.name if large else None, size_threshold_bytes=1024)
        try:
            onnx.checker.check_model(whole, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
            raise ExportError(f"the written model is not valid ONNX: {err}", "Please report this.") from err
        with writing(output):
            if large:
                whole.with_name(data.name).replace(data)
            whole.replace(output)
    if not large:
        data.unlink(missing_ok=True)  # of a larger model that had this name

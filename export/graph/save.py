"""Read a model whole; write it whole or not at all, its weights in a file of their own where one cannot hold all."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from denseport.export.errors import ExportError
from denseport.runtime.system.files import new_file

__all__ = ["PROTOBUF_LIMIT", "read_model", "save_model", "weight_bytes"]

PROTOBUF_LIMIT = 2**31 - 2**20  # bytes; a single ONNX file cannot be larger


def read_model(path: Path) -> ir.Model:
    """A model with all its weights in memory, so that it can be written elsewhere than beside its external data.

    Raises:
        google.protobuf.message.DecodeError: it is no ONNX model.
    """
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def weight_bytes(model: ir.Model) -> int:
    """Bytes of a model's constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.nbytes for constant in constants if constant is not None)


def save_model(model: ir.Model, output: Path, limit: int = PROTOBUF_LIMIT) -> None:
    """Write a model and check it.

    Args:
        limit: bytes of weights beyond which they go to ``output`` + ".data".

    Raises:
        ExportError: it is no valid ONNX.
        OutputError: ``output`` cannot be written.
    """
    size = weight_bytes(model)
    data = output.with_name(f"{output.name}.data")
    if size > limit:
        with new_file(data) as temporary:
            # Shapes stay inside: the checker reads them.
            ir.external_data.unload_from_model(model, temporary.parent, temporary.name, size_threshold_bytes=1024)
        _point_to(model, data)
    with new_file(output) as temporary:
        ir.save(model, temporary)
        try:
            onnx.checker.check_model(temporary, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
            raise ExportError(f"the written model is no valid ONNX: {err}", "Please report this.") from err
    if size <= limit:
        data.unlink(missing_ok=True)  # of a larger model that had this name


def _point_to(model: ir.Model, data: Path) -> None:
    """Tell external tensors the name that their file got."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                data.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=str(tensor.name),
                base_dir=data.parent,
            )

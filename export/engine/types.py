"""The types that a graph computes in: as asked for in ONNX, and as TensorRT's inspector reports them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes

from denseport.runtime.backends.tensorrt_engine import deserialise, last_error
from denseport.runtime.backends.tensorrt_library import Library
from denseport.runtime.errors import MachineError

__all__ = ["built_types", "inspect_engine", "onnx_types"]

SHORT = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
}
# TensorRT's words: "Half", "FP16 NC/8HW8", "Row major linear FP32", "Int8 …", by version.
BUILT = {
    "fp32": ("fp32", "float32", "float"),
    "fp16": ("fp16", "half"),
    "bf16": ("bf16", "bfloat16"),
    "int8": ("int8",),
    "fp8": ("fp8",),
}


def onnx_types(model: ir.Model) -> dict[str, int]:
    """Nodes by the type of what they give; a node whose input was dequantized counts as its stored type.

    Shapes' integer arithmetic is "other", what shape inference does not reach is "unknown".
    """
    passes.ShapeInferencePass()(model)
    counts: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        dtype = _dequantized_from(node) or node.outputs[0].dtype
        counts["unknown" if dtype is None else SHORT.get(dtype, "other")] += 1
    return dict(sorted(counts.items()))


def _dequantized_from(node: ir.Node) -> ir.DataType | None:
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return None
    return producer.inputs[0].dtype


def built_types(information: str) -> dict[str, int]:
    """Layers by the type of their first output, from the inspector's JSON (built with detailed verbosity)."""
    counts: Counter[str] = Counter()
    for layer in json.loads(information).get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        text = _datatype(outputs[0]) if outputs else ""
        words = text.lower().replace("/", " ").replace(",", " ").split()
        found = [name for name, spellings in BUILT.items() if any(word in spellings for word in words)]
        counts[found[0] if found else "other" if text else "unknown"] += 1
    return dict(sorted(counts.items()))


def _datatype(tensor: dict[str, Any]) -> str:
    """TensorRT 10 tells a tensor's type in one text with its memory layout, TensorRT 11 and TensorRT-RTX in two."""
    return str(next((tensor[key] for key in ("Datatype", "DataType", "Format/Datatype") if key in tensor), ""))


def inspect_engine(library: Library, engine: Any, *, host_code: bool = False) -> dict[str, int]:
    """Types of an engine's layers. Opening an engine takes a GPU that it fits.

    Args:
        engine: the serialized engine, anything with the buffer protocol.
        host_code: it is version compatible (`denseport.runtime.backends.tensorrt_engine.deserialise`).

    Raises:
        MachineError: it cannot be opened here.
    """
    with library.log.collect() as lines:
        opened = deserialise(library, engine, host_code=host_code)
    if opened is None:
        raise MachineError(f"the engine cannot be opened here: {last_error(lines)}")
    inspector = opened.create_engine_inspector()
    return built_types(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))

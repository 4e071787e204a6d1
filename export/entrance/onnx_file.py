"""A foreign ONNX file, read with care and brought to the form that the passes of the house expect.

The file may come from a stranger: nothing outside its own folder is opened, and what is no float network of standard
operators is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from denseport.export.checkpoint.labels import plain_text
from denseport.export.errors import ExportError
from denseport.export.graph.model import DEPTH, LOGITS, MASK, PROTOBUF_LIMIT, weight_bytes
from denseport.runtime.backends.onnxruntime import INPUT
from denseport.runtime.bundle.external_data import external_files

__all__ = ["OLDEST_OPSET", "ForeignModel", "read_onnx"]

OPSET = 20  # older graphs are brought to it, so that every pass finds the operators that it writes
OLDEST_OPSET = 13  # that is taken as it is where ONNX cannot convert it: QuantizeLinear has its axis since
STANDARD = ("", "ai.onnx")
NARROW = {ir.DataType.FLOAT16: "FP16", ir.DataType.BFLOAT16: "BF16"}
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
QUANTIZED |= {"MatMulInteger", "ConvInteger"}
EXPORT_PLAIN = (
    "Export the network in FP32 without optimisations of one runtime; denseport build and calibrate do the rest."
)


@dataclass(frozen=True)
class ForeignModel:
    """A model as it came, and in the form of the house."""

    original: ir.Model  # to compare with
    model: ir.Model  # standard operators, no functions, constants as initializers, named nodes, typed tensors
    opset: int  # of the file
    producer: str  # who wrote the file, as it says itself


def read_onnx(path: Path) -> ForeignModel:
    """Read an ONNX file.

    Raises:
        ExportError: not an ordinary file, no ONNX, weights that lie elsewhere or are cut short, operators that are not
            ONNX's own, weights in FP16, or a quantized graph.
    """
    _check_files(path)
    try:
        original = ir.load(path)
        _check_weights(original, path)
        if weight_bytes(original) <= PROTOBUF_LIMIT:
            ir.external_data.load_to_model(original)
        model = original.clone()
        common.InlinePass()(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _refuse_what_is_no_plain_network(model, path)
        opset = model.opset_imports.get("", 0)
        model = _converted(model, path)
        _name(model)
        _type(model)
    except ExportError:
        raise
    except Exception as err:  # protobuf, onnx_ir and the file system each raise classes of their own
        said = plain_text(str(err))[:200]  # onnx_ir's errors may hold the whole graph
        raise ExportError(f"{path}: cannot be read as an ONNX model: {said}", EXPORT_PLAIN) from err
    return ForeignModel(original, model, opset, plain_text(model.producer_name or "an unknown tool"))


def _check_files(path: Path) -> None:
    """Refuse a file whose weights do not lie beside it; none of them is opened here."""
    try:
        if not path.exists():
            raise ExportError(f"{path}: no such file", "Give an ONNX file.")
        if not path.is_file():
            raise ExportError(f"{path}: not an ordinary file", "Give an ONNX file.")
        if path.stat().st_size > PROTOBUF_LIMIT:
            raise ExportError(f"{path}: larger than 2 GiB, as no ONNX file is", "Keep its weights in a second file.")
        locations = sorted(external_files(path))
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise ExportError(f"{path}: cannot be read as an ONNX model: {reason}", "Give an ONNX file.") from err
    for name in locations:
        file = path.parent / name
        if not name or Path(name).name != name or file.is_symlink():
            raise ExportError(
                f"{path}: has weights in {plain_text(name)!r}, which is not a file beside it",
                "Do not use this file unless you know why; save the model with its weights beside it.",
            )
        if not file.is_file():
            raise ExportError(f"{path}: its weights are in {plain_text(name)!r}, which is missing", "Copy both files.")


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in (model.graph, *model.graph.subgraphs(), *(each.graph for each in model.functions.values())):
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _check_weights(model: ir.Model, path: Path) -> None:
    """A tensor must not claim more than its file holds."""
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            start, size = tensor.offset or 0, (path.parent / tensor.location).stat().st_size
            length = tensor.nbytes if tensor.length is None else tensor.length
            if start < 0 or tensor.nbytes != length or start + length > size:
                what = f"{path}: the weight {plain_text(str(tensor.name))!r} is not whole in {tensor.location}"
                raise ExportError(what, "Copy both files again.")


def _refuse_what_is_no_plain_network(model: ir.Model, path: Path) -> None:
    nodes = list(model.graph.all_nodes())
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD})
    if foreign:
        what = f"{path}: holds {', '.join(map(plain_text, foreign[:5]))}: operators that are not ONNX's own"
        raise ExportError(what, EXPORT_PLAIN)
    if quantized := sorted({node.op_type for node in nodes} & QUANTIZED):
        what = f"{path}: is quantized already: it holds {', '.join(quantized)}"
        raise ExportError(what, "Import the float network that it was made of; denseport calibrate quantizes it.")
    for tensor in _tensors(model):
        if tensor.dtype in NARROW:
            what = f"{path}: has weights in {NARROW[tensor.dtype]}; a bundle's source is FP32"
            raise ExportError(what, "Export it in FP32; denseport build --precision fp16 makes the rest.")


def _converted(model: ir.Model, path: Path) -> ir.Model:
    """The model in `OPSET`, or as it is where it is newer, or can stay."""
    opset = model.opset_imports.get("", 0)
    if opset >= OPSET:
        return model
    try:
        if weight_bytes(model) > PROTOBUF_LIMIT:
            raise ValueError("it is larger than 2 GiB")
        newer = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), OPSET))
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(newer)
        return newer
    except Exception as err:  # whatever the converter raises
        if opset >= OLDEST_OPSET:
            return model
        raise ExportError(
            f"{path}: is of opset {opset}, and ONNX cannot bring it to opset {OPSET}: {plain_text(str(err))}",
            f"Export it again with opset {OLDEST_OPSET} or newer.",
        ) from err


def _name(model: ir.Model) -> None:
    """Each node a name of its own, and what it computes the same, as in the graphs that Denseport exports."""
    common.ClearMetadataAndDocStringPass()(model)
    graphs = (model.graph, *model.graph.subgraphs())
    taken = {INPUT, LOGITS, MASK, DEPTH, *(value.name for value in model.graph.inputs)}

    def unused(name: str) -> str:
        name = plain_text(name).removeprefix("ends/")  # those are of `denseport.export.graph.ends`
        found, number = name, 1
        while found in taken:
            number += 1
            found = f"{name}_{number}"
        taken.add(found)
        return found

    for graph in graphs:
        for value in (*graph.initializers.values(), *(graph.inputs if graph is not model.graph else ())):
            value.name = unused(str(value.name))
    for node in model.graph.all_nodes():
        node.name = unused(node.name or node.op_type)
        for i, value in enumerate(node.outputs):
            if value.name:
                value.name = node.name if i == 0 else unused(f"{node.name}:{i}")


def _type(model: ir.Model) -> None:
    """Every tensor its type; shapes are found by running, since exporters write wrong ones."""
    values = [value for graph in (model.graph, *model.graph.subgraphs()) for node in graph for value in node.outputs]
    for value in values:
        value.shape = None
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for value in values:
        value.shape = None

"""Small ONNX files as other tools write them: two convolutions, and one of many ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from denseport.export.entrance.declared import Declared
from denseport.runtime.bundle.manifest import DepthOutput

__all__ = ["MEAN", "METRES", "STD", "Graph", "computed", "declared_depth", "estimating", "normalised", "segmenting"]

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
METRES = DepthOutput("metres", "farther", 10.0, "bicubic")
TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("uint8"): TensorProto.UINT8}


class Graph:
    """A graph that grows node by node; each node's output is named after it."""

    def __init__(self, shape: tuple[Any, ...], *, dtype: str = "float32", opset: int = 17) -> None:
        self.inputs = [helper.make_tensor_value_info("input", TYPES[np.dtype(dtype)], shape)]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.opset = opset
        self.rng = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, array: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def conv(self, value: str, channels: tuple[int, int], stride: int = 1, size: int = 3) -> str:
        weight = self.rng.standard_normal((channels[1], channels[0], size, size)) / np.sqrt(channels[0] * size)
        attributes = {"pads": [size // 2] * 4, "strides": [stride] * 2, "kernel_shape": [size] * 2}
        return self.node("Conv", value, self.constant(weight), **attributes)

    def resize(self, value: str, like: str = "input", rule: str = "half_pixel") -> str:
        """Bilinear, to the height and width of another tensor (N, C, H, W)."""
        size = self.node("Slice", self.node("Shape", like), self.constant([2], "int64"), self.constant([4], "int64"))
        kept = self.node("Slice", self.node("Shape", value), self.constant([0], "int64"), self.constant([2], "int64"))
        empty, sizes = self.constant([]), self.node("Concat", kept, size, axis=0)
        return self.node("Resize", value, empty, empty, sizes, mode="linear", coordinate_transformation_mode=rule)

    def output(self, value: str, dtype: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(value, dtype, None))

    def model(self, **opsets: int) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "foreign", self.inputs, self.outputs, self.constants)
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(*each) for each in opsets.items())]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="a tool")

    def save(self, path: Path, **opsets: int) -> Path:
        onnx.save(self.model(**opsets), path)
        return path


def segmenting(
    end: str = "logits",
    *,
    classes: int = 4,
    shape: tuple[Any, ...] = ("n", 3, "h", "w"),
    dtype: str = "float32",
    opset: int = 17,
    rule: str = "half_pixel",
) -> Graph:
    """A network of stride 4.

    Args:
        end: "logits"; "resized" to the input; "softmax", "argmax" or "nhwc" of what was resized; "probabilities" that
            no softmax gives; "compared", classes that no argmax gives; "sigmoid" of one channel.
    """
    g = Graph(shape, dtype=dtype, opset=opset)
    image = "input"
    if dtype != "float32":
        image = g.node("Div", g.node("Cast", image, to=TensorProto.FLOAT), g.constant(128))
    if shape[1] not in (1, 3):
        image = g.node("Transpose", image, perm=[0, 3, 1, 2])
    channels = shape[1] if shape[1] in (1, 3) else shape[3]
    logits = g.conv(g.node("Relu", g.conv(image, (channels, 8), 2)), (8, classes), 2)
    if end == "logits":
        g.output(logits)
        return g
    if end == "sigmoid":
        g.output(g.node("Sigmoid", logits))
        return g
    value, kind = g.resize(logits, image, rule), TensorProto.FLOAT
    if end == "softmax":
        value = g.node("Softmax", value, axis=1)
    elif end == "argmax":
        value, kind = g.node("ArgMax", value, axis=1, keepdims=1), TensorProto.INT64
    elif end == "nhwc":
        value = g.node("Transpose", g.node("Softmax", value, axis=1), perm=[0, 2, 3, 1])
    elif end == "probabilities":
        powers = g.node("Exp", value)
        value = g.node("Div", powers, g.node("ReduceSum", powers, g.constant([1], "int64")))
    elif end == "compared":
        first, second = (g.node("Gather", value, g.constant(i, "int64"), axis=1) for i in (0, 1))
        value = g.node("Cast", g.node("Greater", second, first), to=TensorProto.UINT8)
        kind = TensorProto.UINT8
    g.output(value, kind)
    return g


def normalised(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) BGR to (1, 3, H, W) RGB, with `MEAN` and `STD`."""
    found: NDArray[np.float32] = ((image[..., ::-1] - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    return found.transpose(2, 0, 1)[None]


def computed(path: Path, value: NDArray[Any], output: int = 0) -> NDArray[Any]:
    """What ONNX Runtime gives for a file as it is."""
    session = onnxruntime.InferenceSession(path)
    found: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: value})[output]
    return found


def estimating(end: str = "NHW", channels: int = 1) -> Graph:
    """A network of stride 4 that gives depths up to 10.

    Args:
        end: the layout of its output.
    """
    g = Graph(("n", 3, "h", "w"))
    found = g.conv(g.node("Relu", g.conv("input", (3, 8), 2)), (8, channels), 2)
    found = g.node("Sigmoid", g.node("Mul", found, g.constant(0.1)))  # else most pixels are at 0 or at 10
    found = g.node("Mul", found, g.constant(10))
    if end == "NHW":
        found = g.node("Squeeze", found, g.constant([1], "int64"))
    elif end == "NHWC":
        found = g.node("Transpose", found, perm=[0, 2, 3, 1])
    g.output(found)
    return g


def declared_depth(**fields: Any) -> Declared:
    """Metres of images of 96 x 64 pixels, but for ``fields``."""
    return Declared(**{"task": "depth", "depth": METRES, "mean": MEAN, "std": STD, "size": (96, 64), **fields})

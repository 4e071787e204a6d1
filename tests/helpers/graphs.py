"""Small graphs, made by hand, whose right quantization can be read off."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.parser import parse_model

TEXT = """
< ir_version: 10, opset_import: ["" : 20] >
tiny (float[batch, 3, height, width] image) => (float[batch, 4, rows, columns] logits) {
  [stem/Conv] stem = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, stem_weight, stem_bias)
  [relu/Relu] relu = Relu (stem)
  [left/Conv] left = Conv <kernel_shape = [1, 1]> (relu, left_weight)
  [right/Conv] right = Conv <kernel_shape = [1, 1]> (relu, right_weight)
  [unit/Add] unit = Add (left, right)
  [tokens/Shape] sizes = Shape (unit)
  [tokens/Reshape] flat = Reshape (unit, tokens_shape)
  [tokens/Transpose] tokens = Transpose <perm = [0, 2, 1]> (flat)
  [block.ln/LayerNormalization] normed = LayerNormalization <axis = -1, epsilon = 1e-5> (tokens, gamma, beta)
  [block.attn/MatMul] packed = MatMul (normed, qkv_weight)
  [block.attn/Split] q, k, v = Split <axis = 2, num_outputs = 3> (packed)
  [block.attn/Mul] scaled = Mul (q, factor)
  [block.attn/Transpose] kt = Transpose <perm = [0, 2, 1]> (k)
  [block.attn/MatMul_2] scores = MatMul (scaled, kt)
  [block.attn/Softmax] weights = Softmax <axis = -1> (scores)
  [block.attn/MatMul_3] mixed = MatMul (weights, v)
  [block.out/MatMul] out = MatMul (mixed, out_weight)
  [block/Add] residual = Add (tokens, out)
  [block.gelu/Gelu] gelu = Gelu (residual)
  [back/Transpose] turned = Transpose <perm = [0, 2, 1]> (gelu)
  [back/Reshape] map = Reshape (turned, sizes)
  [up/ConvTranspose] up = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (map, up_weight)
  [decode_head.conv_seg/Conv] logits = Conv <kernel_shape = [1, 1]> (up, seg_weight)
}
"""
SHAPES = {
    "stem_weight": (8, 3, 3, 3),
    "stem_bias": (8,),
    "left_weight": (8, 8, 1, 1),
    "right_weight": (8, 8, 1, 1),
    "gamma": (8,),
    "beta": (8,),
    "qkv_weight": (8, 24),
    "out_weight": (8, 8),
    "up_weight": (8, 8, 2, 2),
    "seg_weight": (4, 8, 1, 1),
}


def tiny_model() -> ir.Model:
    """A stem, two convolutions of one tensor and their sum, an attention block, an upsampling, a last convolution."""
    # The parser takes no slash in a name.
    proto: onnx.ModelProto = parse_model(re.sub(r"\[.*?/.*?\]", "", TEXT))
    for node, name in zip(proto.graph.node, re.findall(r"\[(.*?/.*?)\]", TEXT), strict=True):
        node.name = name
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape).astype(np.float32) * 0.3
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 8, -1], np.int64), "tokens_shape"))
    proto.graph.initializer.append(helper.make_tensor("factor", onnx.TensorProto.FLOAT, [], [8**-0.5]))
    return ir.from_proto(proto)

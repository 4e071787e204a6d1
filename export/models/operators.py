"""Operators whose rule depends on the input size, with their ONNX form.

``torch.export`` follows one branch of an ``if`` over sizes and then refuses every size that would take the other.
Upstream's position embedding has such an ``if``. Here it is one operator, opaque to ``torch.export``, that becomes
plain ONNX nodes that compute the choice from the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset20 as op
from torch import Tensor

__all__ = ["onnx_translations", "pyramid_matrix", "resize_pos_embed", "resize_with_offset"]

CUBIC_COEFF = -0.75  # torch's bicubic kernel (Keys, 1981)


@torch.library.custom_op("denseport::resize_pos_embed", mutates_args=())
def resize_pos_embed(grid: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Position embedding (1, D, gh, gw) to tokens (1, height * width, D).

    Bicubic or bilinear, half-pixel centres, no antialias. As upstream (``mmseg/models/backbones/vit.py``,
    ``_pos_embeding``), the grid is not resized when the *number* of tokens is equal: 2 x 8 tokens take a 4 x 4 grid's
    in reading order.
    """
    if height * width != grid.shape[2] * grid.shape[3]:
        grid = F.interpolate(grid, size=(height, width), mode=mode, align_corners=False)
    return grid.flatten(2).transpose(1, 2).clone()  # an operator may not return a view


@resize_pos_embed.register_fake
def _(grid: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    return grid.new_empty(1, height * width, grid.shape[1])


def _resize_pos_embed_onnx(grid: Any, height: Any, width: Any, mode: str = "bicubic") -> Any:
    _, dims, rows, columns = (int(n) for n in grid.shape)
    one: Any = op.Constant(value_ints=[1])
    size = op.Concat(op.Reshape(height, one), op.Reshape(width, one), axis=0)
    keep = op.Equal(op.ReduceProd(size, keepdims=0), op.Constant(value_int=rows * columns))
    size = op.Where(keep, op.Constant(value_ints=[rows, columns]), size)
    size = op.Concat(op.Constant(value_ints=[1, dims]), size, axis=0)
    rule: dict[str, Any] = {"mode": "cubic", "cubic_coeff_a": CUBIC_COEFF} if mode == "bicubic" else {"mode": "linear"}
    resized = op.Resize(grid, None, None, size, coordinate_transformation_mode="half_pixel", **rule)
    shape: Any = op.Constant(value_ints=[1, dims, -1])
    return op.Transpose(op.Reshape(resized, shape), perm=[0, 2, 1])


def _attention_onnx(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    """Attention without mask in the four nodes that engines know how to fuse.

    torch's own translation transposes the keys by way of their dynamic shape, six nodes more in each layer.
    """
    scaled = op.Mul(query, op.Constant(value_float=int(query.shape[3]) ** -0.5))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` for ``torch.onnx.export``."""
    return {
        torch.ops.denseport.resize_pos_embed.default: _resize_pos_embed_onnx,
        torch.ops.aten.scaled_dot_product_attention.default: _attention_onnx,
    }


def resize_with_offset(grid: Tensor, height: int, width: int, offset: float) -> Tensor:
    """Position embedding (1, D, gh, gw) to (1, D, height, width), bicubic, as DINOv2's own code has it.

    Its factors are (height + offset) / gh and (width + offset) / gw: the grid is laid over ``offset`` more places than
    there are. A grid of that very size stays as it is. Two small products, because factors that follow from the shape
    are no input that engines take.
    """
    rows, columns = grid.shape[2:]
    # 0 where neither side differs: an if would tie the graph to one answer.
    one = torch.ones(1, device=grid.device)
    differs = ((one * height - rows).abs() + (one * width - columns).abs()).clamp(max=1)
    down = _cubic_matrix(rows, height, offset * differs)
    across = _cubic_matrix(columns, width, offset * differs)
    return down @ grid @ across.T


def _cubic_matrix(n: int, m: int, offset: Tensor) -> Tensor:
    """(m, n): bicubic interpolation of n places at m, half-pixel centres, with the factor (m + offset) / n."""
    place = (torch.arange(m, device=offset.device) + 0.5) * n / (m + offset) - 0.5
    taps = place.floor()[:, None] + torch.arange(-1, 3, device=offset.device)  # (m, 4)
    t, a = (place[:, None] - taps).abs(), CUBIC_COEFF
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    weights = torch.where(t <= 1, near, far)
    # Places beyond the border take those on it.
    hits = taps.clamp(0, n - 1)[:, :, None] == torch.arange(n, device=offset.device)  # (m, 4, n)
    return (weights[:, :, None] * hits.to(weights.dtype)).sum(1)


def pyramid_matrix(n: int, scales: tuple[int, ...], like: Tensor) -> Tensor:
    """Averaging matrix (sum(scales), n): for each scale k, the k rows of an adaptive average pooling.

    Row i of scale k averages the cells floor(i*n/k) <= j < ceil((i+1)*n/k), as ``torch.nn.AdaptiveAvgPool2d`` does.
    Tensor arithmetic on ``n`` is exact at every size of a dynamic graph. All scales share one matrix, because the
    small integer nodes of a matrix for each scale make a graph slow to start.
    """
    bins = torch.tensor([k for k in scales for _ in range(k)], device=like.device)
    index = torch.tensor([i for k in scales for i in range(k)], device=like.device)
    start = index * n // bins
    stop = ((index + 1) * n + bins - 1) // bins
    cell = torch.arange(n, device=like.device)
    inside = (cell >= start[:, None]) & (cell < stop[:, None])  # (sum(scales), n)
    return inside.to(like.dtype) / (stop - start)[:, None].to(like.dtype)

"""Round the weights of linear layers so that the layers' outputs change least, not each weight by itself.

The weights are rounded one input channel after the other. What rounding a channel did to the outputs is made up for as
well as the channels that are still to be rounded can, given how the channels occur together on calibration images.
The channels are taken as the layer will see them, rounded themselves.

Source: Frantar et al., "GPTQ" (ICLR 2023), algorithm 1; the channels with the largest activations come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.calibration.observe.observers import LEVELS, RowSample
from denseport.calibration.quantize.qdq import RoundedWeight
from denseport.calibration.quantize.saturation import unsaturated_scales, within_pairs
from denseport.calibration.quantize.smoothing import linear_inputs, linear_weight

__all__ = ["round_weights"]

_DAMPING = 0.1  # of the mean of the diagonal: a sample of rows says little about channels that hardly occur together
_BLOCK = 128  # channels between two updates of all that follow

Array = NDArray[np.float64]


def round_weights(
    model: ir.Model, rows: Mapping[str, RowSample], thresholds: Mapping[str, float]
) -> dict[str, RoundedWeight]:
    """The weights of the linear layers that read the observed tensors, by name; those of several layers are left out.

    They cannot saturate on any CPU (`saturation`).

    Args:
        rows: by tensor: some of its rows.
        thresholds: by tensor: the magnitude that becomes 127.
    """
    found: dict[str, RoundedWeight] = {}
    for name, linears in linear_inputs(model).items():
        alone = [node for node in linears if len(node.inputs[1].uses()) == 1]  # type: ignore[union-attr]
        if not alone or name not in thresholds or name not in rows or not len(rows[name].rows):
            continue
        weights = [linear_weight(node) for node in alone]
        scales = [unsaturated_scales(weight) for weight in weights]
        step = thresholds[name] / LEVELS or 1.0
        seen = np.rint(rows[name].rows / step).clip(-LEVELS, LEVELS) * step
        together = _rounded(np.concatenate(weights, axis=1), np.concatenate(scales), seen.astype(np.float64))
        parts = np.split(together, np.cumsum([len(each) for each in scales])[:-1], axis=1)
        for node, part, own in zip(alone, parts, scales, strict=True):
            integers = within_pairs(part).astype(np.int8)
            stored = integers.T if node.attributes.get_int("transB", 0) else integers
            found[str(node.inputs[1].name)] = RoundedWeight(np.ascontiguousarray(stored), own)  # type: ignore[union-attr]
    return found


def _rounded(weight: NDArray[Any], scales: NDArray[Any], rows: Array) -> Array:
    """A weight (in, out) in steps of its ``scales`` (out,), for inputs like ``rows`` (n, in)."""
    hessian = rows.T @ rows
    order = np.argsort(-hessian.diagonal(), kind="stable")
    hessian = hessian[np.ix_(order, order)]
    hessian[np.diag_indices_from(hessian)] += max(_DAMPING * hessian.diagonal().mean(), 1e-12)
    # Row i: how the error of channel i is spread over the channels from i on when those before it are settled.
    spread = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left = weight[order] / scales
    result = np.empty_like(left, np.float64)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]))
        for i in range(start, stop):
            result[i] = np.rint(left[i]).clip(-LEVELS, LEVELS)
            errors[i - start] = (left[i] - result[i]) / spread[i, i]
            left[i:stop] -= np.outer(spread[i, i:stop], errors[i - start])
        left[stop:] -= spread[start:stop, stop:].T @ errors
    return result[np.argsort(order)]

"""Compare what the house makes of an adapted graph with what the network gave before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.export.entrance.foreign_network import ForeignNetwork, Run
from denseport.export.errors import ExportError
from denseport.export.graph.ends import CLASSES, NHW, NHWC, PROBABILITIES, TO_NCHW, Ends, EndsRecord
from denseport.export.graph.model import LOGITS
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.pipeline.resample import ResampleMatrix

__all__ = ["TOLERANCE", "Check", "as_nchw", "compare", "record_of"]

TOLERANCE = 1e-4  # on logits; float32's own noise on them is 2.5e-5
Shape = tuple[int, int, int, int]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Check:
    """One comparison of ONNX Runtime with what is trusted."""

    shape: tuple[int, ...]  # of the input
    max_difference: float  # of the logits, probabilities or depths, absolute; 0 of classes
    agreement: float  # share of pixels whose class is the same; 1 of depths
    logits: tuple[int, ...]  # shape of the adapted graph's output


def record_of(checks: Sequence[Check]) -> dict[str, Any]:
    """What the source's record says of its comparisons."""
    largest = max(check.max_difference for check in checks)
    return {"tolerance": TOLERANCE, "max_difference": largest, "checks": [asdict(check) for check in checks]}


def as_nchw(found: NDArray[Any], layout: str) -> NDArray[Any]:
    """An output in that layout as (N, C, h, w)."""
    if layout == NHW:
        return found[:, None]
    return found.transpose(TO_NCHW) if layout == NHWC else found


def compare(
    network: ForeignNetwork,
    path: Path,
    ends: Ends,
    shapes: Sequence[Shape],
    adapted: EndsRecord,
    reference: Run | None = None,
) -> list[Check]:
    """Run the adapted graph and the network before it on the same images.

    Args:
        network: as it came; its output is as ``ends`` says.
        path: of the adapted graph.
        adapted: what was cut off the graph: a resize, or a LogSoftmax of values, is done here again.
        reference: runs the network elsewhere than on ONNX Runtime.

    Raises:
        ExportError: values differ by more than `TOLERANCE` times the largest (where that exceeds 1), or classes where
            the two best logits are further apart than that.
    """
    session, run = OnnxRuntimeSession(path), reference or network.run
    checks = []
    for seed, shape in enumerate(shapes):  # a network of one size is shown several images
        image = network.sample(shape[0], *shape[2:], seed=seed)
        want, found = as_nchw(run(image), ends.output_layout), session.run(image)
        grid = found.shape
        if adapted.align_corners is not None:
            found = _resized(found, (shape[2], shape[3]), align_corners=adapted.align_corners)
        if ends.gives == LOGITS and "LogSoftmax" in adapted.cut:
            found = found - found.max(1, keepdims=True)
            found = found - np.log(np.exp(found).sum(1, keepdims=True))
        checks.append(Check(shape, *_difference(shape, want, found, ends), grid))
    return checks


def _resized(logits: Floats, size: tuple[int, int], *, align_corners: bool) -> Floats:
    """(N, C, h, w) to (N, C, *size), as the runtime resizes logits."""
    rows, cols = (  # (n_out, n_in)
        ResampleMatrix.linear(n_in, n_out, align_corners).apply(np.eye(n_in, dtype=np.float32))
        for n_in, n_out in zip(logits.shape[2:], size, strict=True)
    )
    found: Floats = rows @ (logits @ cols.T)
    return found


def _difference(shape: Shape, want: NDArray[Any], found: Floats, ends: Ends) -> tuple[float, float]:
    """The largest difference of values, and the share of equal classes."""
    if ends.gives == CLASSES:
        return 0.0, _agreement(shape, want[:, 0].astype(np.int64), found)
    values: NDArray[Any] = found if ends.threshold is None else found[:, 1:]
    if ends.gives == PROBABILITIES:
        values = _softmax(found) if ends.threshold is None else 1 / (1 + np.exp(-values))
    if values.shape != want.shape:
        raise ExportError(f"for an input of {shape} the adapted graph gives {values.shape}, the network {want.shape}")
    difference = float(np.abs(values - want).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(want).max()))
    if not difference <= allowed:
        raise ExportError(
            f"for an input of {shape} the adapted graph differs from the network by {difference:.2g}; {allowed:.2g} is "
            "allowed",
            "No bundle was written. Please report this with the file and the versions.",
        )
    if ends.threshold is not None:
        t = ends.threshold
        least = t if ends.gives == PROBABILITIES else math.log(t / (1 - t))
        return difference, float(((values > least) == (want > least)).mean())
    return difference, float((values.argmax(1) == want.argmax(1)).mean())


def _agreement(shape: Shape, want: NDArray[np.int64], logits: Floats) -> float:
    if logits.shape[2:] != want.shape[1:]:
        raise ExportError(
            f"for an input of {shape} the adapted graph gives {logits.shape[2:]}, the network {want.shape[1:]}"
        )
    first_two = np.partition(logits, -2, axis=1)[:, -2:]
    clear = first_two[:, 1] - first_two[:, 0] > TOLERANCE * max(1.0, float(np.abs(logits).max()))
    same = logits.argmax(1) == want
    if not same[clear].all():
        raise ExportError(
            f"for an input of {shape} {np.mean(~same[clear]):.2%} of the pixels get another class from the adapted "
            "graph than from the network",
            "No bundle was written. Please report this with the file and the versions.",
        )
    return float(same.mean())


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: Floats = powers / powers.sum(1, keepdims=True)
    return found

"""Which kernel to launch, on how many threads, with which numbers: pure functions of type and size.

Sizes may be integers or TensorRT's symbolic expressions, which know ``+``, ``*`` and ``//`` with the expression on the
left and have no values yet: what the plugin shares compares no sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

__all__ = [
    "KERNELS",
    "LARGEST_SIDE",
    "Launch",
    "Precision",
    "Size",
    "ceil_div",
    "image_mask",
    "non_finite",
    "resize_normalise",
    "strips",
]

Size: TypeAlias = Any  # an int, or a tensorrt.plugin.SymInt32 (TensorRT is not needed to import this module)
Precision = Literal["f32", "f16"]

LARGEST_SIDE = 2**15 - 1  # of anything that is resized: coordinates are products of two sides, in 32 bits
_STRIP_ROWS = 8  # as in resize_argmax.cu
_PIXELS = 8  # of a thread of resize_normalise, which divides in double precision once for all of them
_LOGITS: dict[np.dtype[Any], str] = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}
_CLASSES: dict[np.dtype[Any], str] = {np.dtype(np.uint8): "u8", np.dtype(np.uint16): "u16"}

KERNELS: tuple[str, ...] = (
    "resize_normalise",
    *(f"image_mask_{logits}_{classes}" for logits in _LOGITS.values() for classes in _CLASSES.values()),
    *(f"non_finite_{logits}" for logits in _LOGITS.values()),
)


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel.

    The kernel's parameters are the input pointers, ``scalars`` as int32, and the output pointer, in this
    order. Every kernel strides over its work, so any positive ``grid`` gives the right result; this one gives
    each thread one strip where the row length allows the widest vectors.
    """

    kernel: str  # the entry point in the PTX
    grid: Size  # blocks, in x
    block: int  # threads a block, in x
    scalars: tuple[Size, ...]  # int32


def resize_normalise(size: tuple[int, int], network: tuple[int, int], *, bgr_to_rgb: bool) -> Launch:
    """An image (H, W, 3) uint8 of ``size`` to the network's input (1, 3, h, w) float32 of size ``network``.

    Inputs: the image, and `denseport.runtime.pipeline.preprocess.levels`. Sizes are (height, width).
    """
    block = 256
    grid = ceil_div(network[0] * network[1], block * _PIXELS)
    return Launch("resize_normalise", grid, block, (*size, *network, int(bgr_to_rgb)))


def image_mask(
    shape: tuple[int, int, int], network: tuple[int, int], size: tuple[int, int], logits: DTypeLike, mask: DTypeLike
) -> Launch:
    """Logits (C, h, w) of ``shape``, resized to ``network`` and then to the image's ``size``, to its mask.

    Args:
        logits: their type, float32 or float16.
        mask: its type, uint8 or uint16.
    """
    kernel = f"image_mask_{_LOGITS[np.dtype(logits)]}_{_CLASSES[np.dtype(mask)]}"
    return Launch(kernel, ceil_div(strips(1, size), 128), 128, (*shape, *network, *size))


def non_finite(shape: tuple[int, int, int], logits: DTypeLike) -> Launch:
    """logits -> one int32, which becomes 1 if one of them is not finite, and is left as it is if all are.

    Args:
        shape: of the logits: classes, height, width.
        logits: their type, float32 or float16.
    """
    return Launch(f"non_finite_{_LOGITS[np.dtype(logits)]}", ceil_div(shape[1] * shape[2], 256), 256, shape)


def strips(batch: Size, image: tuple[Size, Size]) -> Size:
    """Threads that the argmax of twice resized logits keeps busy."""
    return batch * ceil_div(image[0], _STRIP_ROWS) * image[1]


def ceil_div(value: Size, by: int) -> Size:
    """``value`` divided by ``by``, rounded up."""
    return (value + (by - 1)) // by

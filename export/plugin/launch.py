"""Which kernel to launch, on how many threads, with which numbers: pure functions of type, layout and size.

TensorRT (through :mod:`denseport.export.plugin.tensorrt_plugin`), the CPU tests and ``scripts/gpu/check`` all
launch with what these functions return. Sizes may be integers or TensorRT's symbolic expressions, which know
``+``, ``*`` and ``//`` with the expression on the left and have no values yet: nothing here compares sizes.
"""

from __future__ import annotations

from typing import Literal

from denseport.runtime.backends.cuda.kernels.launch import Launch, Precision, Size, ceil_div, strips

__all__ = [
    "KERNELS",
    "SCALES",
    "STRIPS",
    "Launch",
    "Layout",
    "Precision",
    "Strip",
    "resize_argmax",
    "upsample_add",
    "upsample_argmax",
]

Layout = Literal["linear", "hwc8"]
Strip = Literal["wide", "slim"]  # a thread's outputs: 32 or 16

SCALES = (2, 4, 16)  # the output strides of DPT, UPerNet with a neck, and UPerNet without
STRIPS: tuple[Strip, ...] = ("wide", "slim")
ARGMAX_BLOCK = 128  # threads; the argmax kernels take no more

# (columns of the source, rows of the output) of a thread's strip, by scale and precision, as in kernels.cu.
_STRIP_SHAPE: dict[tuple[int, Precision], dict[Strip, tuple[int, int]]] = {
    (2, "f32"): {"wide": (4, 2), "slim": (2, 2)},
    (2, "f16"): {"wide": (8, 2), "slim": (4, 2)},
    (4, "f32"): {"wide": (2, 4), "slim": (2, 2)},
    (4, "f16"): {"wide": (2, 4), "slim": (2, 2)},
    (16, "f32"): {"wide": (1, 2), "slim": (1, 1)},
    (16, "f16"): {"wide": (1, 2), "slim": (1, 1)},
}

KERNELS: tuple[str, ...] = (
    *(f"upsample_add_{kind}_{grid}" for kind in ("f32", "f16", "f16_hwc8") for grid in ("corners", "centres")),
    *(f"upsample_argmax_x{scale}_{kind}_{strip}" for scale, kind in _STRIP_SHAPE for strip in STRIPS),
    "resize_argmax_f32",
    "resize_argmax_f16",
)


def upsample_add(
    batch: Size,
    channels: Size,
    height: Size,
    width: Size,
    *,
    precision: Precision,
    layout: Layout = "linear",
    align_corners: bool,
    block: int = 256,
) -> Launch:
    """UpsampleAdd of an input (batch, channels, height, width) and a residual of twice its height and width.

    Args:
        layout: "hwc8" (FP16 only, else a ValueError) holds the channels last, padded to whole groups of eight.
        block: threads, at most 256.
    """
    grid_name = "corners" if align_corners else "centres"
    if layout == "hwc8":
        if precision != "f16":
            raise ValueError(f"layout hwc8 needs f16, not {precision}")
        groups = ceil_div(channels, 8)
        cells, scalars = batch * (height + 1) * (width + 1) * groups, (batch, groups, height, width)
        return Launch(f"upsample_add_f16_hwc8_{grid_name}", ceil_div(cells, block), block, scalars)
    planes = batch * channels
    pieces = planes * (height + 1) * ceil_div(width, 8 if precision == "f16" else 4)
    return Launch(f"upsample_add_{precision}_{grid_name}", ceil_div(pieces, block), block, (planes, height, width))


def upsample_argmax(
    batch: Size, classes: Size, height: Size, width: Size, *, precision: Precision, scale: int, strip: Strip = "wide"
) -> Launch:
    """UpsampleArgmax of logits (batch, classes, height, width) by ``scale``.

    Args:
        scale: one of `SCALES`, else a ValueError.
        strip: how many outputs a thread has.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, not {scale}")
    columns, rows = _STRIP_SHAPE[scale, precision][strip]
    pieces = batch * (height + 1) * (scale // rows) * ceil_div(width, columns)
    kernel = f"upsample_argmax_x{scale}_{precision}_{strip}"
    return Launch(kernel, ceil_div(pieces, ARGMAX_BLOCK), ARGMAX_BLOCK, (batch, classes, height, width))


def resize_argmax(
    batch: Size,
    classes: Size,
    size: tuple[Size, Size],
    network: tuple[Size, Size],
    image: tuple[Size, Size],
    *,
    precision: Precision,
) -> Launch:
    """ResizeArgmax of logits, from ``size`` to ``network`` and then to ``image``, each (height, width).

    A single resize is the case ``network == image``. Sides stay below 2^15.
    """
    scalars = (batch, classes, *size, *network, *image)
    grid = ceil_div(strips(batch, image), ARGMAX_BLOCK)
    return Launch(f"resize_argmax_{precision}", grid, ARGMAX_BLOCK, scalars)

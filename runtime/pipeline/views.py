"""How an image is shown to the network: its views, whole or in sliding windows, at one scale or at several.

Sources: ``mmseg/models/segmentors/encoder_decoder.py`` (whole_inference, slide_inference) and
``mmseg/models/segmentors/seg_tta.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Inference, NetworkInput
from denseport.runtime.bundle.preprocessing import LARGEST_SIDE, Preprocessing, Resize, resized_to, resizing
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import ImageError
from denseport.runtime.pipeline.preprocess import rescaled_size, resize, resized_size

__all__ = [
    "RATIOS",
    "Span",
    "View",
    "input_sizes",
    "protocol_views",
    "show",
    "single_view",
    "tta_views",
    "window_starts",
    "windows",
]

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of multi-scale testing, in every published configuration
Span = tuple[int, int]  # start, stop; pixels
IMAGE = (1536, 2048)  # height, width: what most cameras take, and larger than any window


@dataclass(frozen=True)
class View:
    """One way to show an image to the network: its size there (height, width), mirrored or not."""

    size: tuple[int, int]
    flip: bool = False


def single_view(size: tuple[int, int], preprocess: Preprocessing, patch_size: int) -> View:
    """The view of ordinary inference for an image of ``size`` (height, width).

    Raises:
        ImageError: the image would reach the network with a side below one patch.
    """
    resized = resized_size(size, preprocess)
    if min(resized) < patch_size:
        raise ImageError(
            f"an image of {size[1]} x {size[0]} pixels reaches the network as {resized[1]} x {resized[0]}, "
            f"less than one patch of {patch_size} x {patch_size}",
            "Crop or tile such a narrow image, or export with a larger --scale.",
        )
    return View(resized)


def tta_views(size: tuple[int, int], preprocess: Preprocessing, convention: str) -> list[View]:
    """The twelve views of multi-scale and flip testing for an image of ``size`` (height, width).

    Args:
        convention: "0.x" applies the ratios to the test scale, as the published figures did; "1.x" applies
            them to the image itself, as ``tta_pipeline`` does.
    """
    resize = resizing(preprocess) or Resize((size[1], size[0]), keep_ratio=False)
    views = []
    for ratio in RATIOS:
        if convention == "1.x":
            # mmcv rounds the scaled size, takes it for a scale, and fits the image into that again.
            scale, keep_ratio = rescaled_size(size, ratio), True
        else:
            longer, shorter = resize.size
            scale, keep_ratio = (int(longer * ratio), int(shorter * ratio)), resize.keep_ratio
        resized = resized_size(size, resized_to(preprocess, scale, keep_ratio=keep_ratio))
        views += [View(resized), View(resized, flip=True)]
    return views


def protocol_views(size: tuple[int, int], protocol: Protocol, patch_size: int) -> list[View]:
    """The views of an image of ``size`` (height, width) under a protocol.

    Raises:
        ImageError: as `single_view`, or the network does not take that size.
    """
    if protocol.tta is not None:
        views = tta_views(size, protocol.preprocess, protocol.tta)
    else:
        views = [single_view(size, protocol.preprocess, patch_size)]
    allowed = protocol.input.shape
    for view in views:
        shape = (1, 3, *(spans[0][1] - spans[0][0] for spans in windows(view.size, protocol.inference)))
        if any(side not in (None, found) for side, found in zip(allowed, shape, strict=True)):
            raise ImageError(
                f"an image of {size[1]} x {size[0]} pixels reaches the network as {shape}; it takes {allowed}",
                f"Give such a size: --protocol fixed:{allowed[3] or 'WIDTH'}x{allowed[2] or 'HEIGHT'}",
            )
    return views


def input_sizes(protocol: Protocol) -> tuple[tuple[int, int], ...]:
    """(height, width) of what the network is shown of images of 4:3 and of 3:4 under a protocol, each once."""
    protocol = replace(protocol, input=NetworkInput())  # nothing is refused here
    views = protocol_views(IMAGE, protocol, 1) + protocol_views(IMAGE[::-1], protocol, 1)
    crop = protocol.inference.crop if protocol.inference.mode == "slide" else None
    height, width = crop or (LARGEST_SIDE, LARGEST_SIDE)
    return tuple(dict.fromkeys((min(view.size[0], height), min(view.size[1], width)) for view in views))


def window_starts(length: int, crop: int, stride: int) -> list[Span]:
    """Windows (start, stop) along one axis: the last is moved back to end with the image."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    stops = [min(i * stride + crop, length) for i in range(count)]
    return [(max(stop - crop, 0), stop) for stop in stops]


def windows(size: tuple[int, int], inference: Inference) -> tuple[list[Span], list[Span]]:
    """(start, stop) of the windows along the rows and along the columns of a view; whole: one that is all of it."""
    if inference.crop is None or inference.stride is None:
        return [(0, size[0])], [(0, size[1])]
    rows, cols = (window_starts(*sides) for sides in zip(size, inference.crop, inference.stride, strict=True))
    return rows, cols


def show(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """The image, HWC uint8 BGR, as ``view`` shows it to the network; not a copy where nothing changes."""
    resized = resize(image, view.size)
    return np.ascontiguousarray(resized[:, ::-1]) if view.flip else resized

"""How an image is shown to the network: its views, whole or in sliding windows, at one scale or at several.

Sources: ``mmseg/models/segmentors/{base,encoder_decoder,seg_tta}.py`` (1.2.2: whole_inference, slide_inference,
postprocess_result) and ``mmseg/models/decode_heads/decode_head.py`` (predict_by_feat).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Inference, NetworkInput
from denseport.runtime.bundle.preprocessing import (
    Preprocessing,
    normalisation,
    output_size,
    paddings,
    size_steps,
    with_resize,
)
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import LARGEST_SIDE, Pad, ResizeToMultiple
from denseport.runtime.errors import ImageError
from denseport.runtime.pipeline.preprocess import fit_image, normalise

__all__ = [
    "Span",
    "View",
    "input_sizes",
    "protocol_views",
    "show",
    "view_of",
    "window_input",
    "window_starts",
    "windows",
]

Size = tuple[int, int]  # height, width
Span = tuple[int, int]  # start, stop; pixels
IMAGE = (1536, 2048)  # height, width: what most cameras take, and larger than any window


@dataclass(frozen=True)
class View:
    """One way to show an image to the network. Sizes are (height, width) in pixels."""

    steps: Preprocessing
    size: Size  # of what the network sees
    stretched: Size  # to which the logits of the whole are resized first: ``size``, but for an oddity of upstream
    cut: Size  # pixels at the bottom and at the right that were added, and whose logits are cut off
    flip: bool = False


def view_of(size: Size, steps: Preprocessing, *, flip: bool = False) -> View:
    """How an image of ``size`` (height, width) is seen after some steps.

    mmsegmentation 1.x resizes the logits of a whole image to the size that the last pad or resize to a multiple left,
    even if another resize came behind it. 0.x, whose pads are cut off, does not.

    Raises:
        ImageError: a step makes it too large.
    """
    at, stretched, cut = size, None, (0, 0)
    for step in (*size_steps(steps), *paddings(steps)):
        before, at = at, output_size(at, step)
        if isinstance(step, Pad) and step.crop:
            stretched, cut = None, (cut[0] + at[0] - before[0], cut[1] + at[1] - before[1])
        else:
            stretched, cut = at if isinstance(step, Pad | ResizeToMultiple) else stretched, (0, 0)
    return View(steps, at, stretched or at, cut, flip)


def protocol_views(size: Size, protocol: Protocol, patch_size: int) -> list[View]:
    """The views of an image of ``size`` (height, width) under a protocol.

    Raises:
        ImageError: the image would reach the network with a side below one patch, or in a size it does not take.
    """
    steps, augmentation = protocol.preprocess, protocol.augmentation
    if augmentation is None:
        views = [view_of(size, steps)]
    else:
        flips = (False, True) if augmentation.flip else (False,)
        all_steps = [with_resize(steps, scale) for scale in augmentation.scales]
        views = [view_of(size, each, flip=flip) for each in all_steps for flip in flips]
    allowed = protocol.input.shape
    for view in views:
        if augmentation is None and min(view.size) < patch_size:
            raise ImageError(
                f"an image of {size[1]} x {size[0]} pixels reaches the network as {view.size[1]} x {view.size[0]}, "
                f"less than one patch of {patch_size} x {patch_size}",
                "Crop or tile such a narrow image, or export with a larger --scale.",
            )
        # The first window begins at 0, and all are of one size.
        shape = (1, allowed[1], *(spans[0][1] for spans in windows(view.size, protocol.inference)))
        if any(side not in (None, found) for side, found in zip(allowed, shape, strict=True)):
            raise ImageError(
                f"an image of {size[1]} x {size[0]} pixels reaches the network as {shape}; it takes {allowed}",
                f"Give such a size: --protocol fixed:{allowed[3] or 'WIDTH'}x{allowed[2] or 'HEIGHT'}",
            )
        if any(side % protocol.input.divisor for side in shape[2:]):
            raise ImageError(
                f"an image of {size[1]} x {size[0]} pixels reaches the network as {shape[3]} x {shape[2]}; it takes "
                f"multiples of {protocol.input.divisor}",
                "Give a protocol of such a size, or the bundle's own: --protocol reference.",
            )
    return views


def input_sizes(protocol: Protocol) -> tuple[Size, ...]:
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


def windows(size: Size, inference: Inference) -> tuple[list[Span], list[Span]]:
    """(start, stop) of the windows along the rows and along the columns of a size; whole: one that is all of it."""
    if inference.crop is None or inference.stride is None:
        return [(0, size[0])], [(0, size[1])]
    rows, cols = (window_starts(*sides) for sides in zip(size, inference.crop, inference.stride, strict=True))
    return rows, cols


def show(image: NDArray[np.uint8], view: View) -> NDArray[Any]:
    """The image, HWC uint8 BGR, as ``view`` shows it before it is normalised; not a copy where nothing changes."""
    return fit_image(image, view.steps, flip=view.flip)


def window_input(shown: NDArray[Any], view: View, row: Span, col: Span) -> NDArray[np.float32]:
    """The network's input (1, C, h, w) float32 of the rows and columns of a view.

    Args:
        shown: of `show`; what is padded after normalising lies beyond it.
    """
    pads = [step for step in paddings(view.steps) if isinstance(step, Pad)]  # all of them: check_steps
    (rows, cols), *frames = _frames((shown.shape[0], shown.shape[1]), pads)
    part = shown[_inside(row, rows), _inside(col, cols)]
    height, width = row[1] - row[0], col[1] - col[0]
    if part.shape[:2] == (height, width):
        return normalise(part, view.steps)
    channels = len(normalisation(view.steps).mean)
    out = np.empty((1, channels, height, width), np.float32)
    for pad, (down, across) in reversed([*zip(pads, frames, strict=True)]):  # from the outermost inwards
        out[..., _inside(down, row), _inside(across, col)] = np.reshape(pad.value[:channels], (-1, 1, 1))
    if part.size:
        out[..., _inside(rows, row), _inside(cols, col)] = normalise(part, view.steps)
    return out


def _frames(size: Size, pads: Sequence[Pad]) -> list[tuple[Span, Span]]:
    """Rows and columns, of what the network sees, that an image of ``size`` takes up, and the same after each pad."""
    frames = [((0, size[0]), (0, size[1]))]
    for pad in pads:
        (top, _), (left, _) = pad.added(size)
        size = pad.output(size)
        frames = [((a + top, b + top), (c + left, d + left)) for (a, b), (c, d) in frames]
        frames.append(((0, size[0]), (0, size[1])))
    return frames


def _inside(part: Span, whole: Span) -> slice:
    """Where ``part`` lies in ``whole``, counted from its start; what is beyond it is left out."""
    return slice(max(part[0] - whole[0], 0), max(min(part[1], whole[1]) - whole[0], 0))

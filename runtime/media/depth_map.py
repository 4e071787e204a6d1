"""Depths as people see and keep them: in colours, with a bar that says what they stand for, and as PNGs of 16 bits."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError, OutputError
from denseport.runtime.media.images import png_chunk
from denseport.runtime.media.overlay import FAINT, PANEL, SMALLEST_SIDE, TEXT, draw_text, text_width

__all__ = ["DepthPng", "coloured", "encode_depth_png", "with_colour_bar"]

COLOURS = cv2.COLORMAP_INFERNO  # dark to bright without steps, also for the colour-blind and in print
LARGEST = 65535  # value of a pixel of 16 bits
MILLIMETRES, KITTI = 1000.0, 256.0  # values a metre: of NYUv2's files, and of KITTI's, which reach 256 m
HEADER = 33  # bytes: the signature, and IHDR with its length and checksum


class DepthPng(NamedTuple):
    """A PNG of 16 bits: ``depth = value / scale + offset``, which its tEXt chunk "Depth" says as JSON too."""

    data: bytes
    scale: float
    offset: float


def encode_depth_png(
    depth: NDArray[np.float32], unit: str, larger_is: str, largest: float | None, scale: float | None = None
) -> DepthPng:
    """As `denseport.runtime.pipeline.depth.Depth.to_png` says.

    Args:
        largest: the network's limit, in the unit.
    """
    if unit == "metres":  # a bicubic resize may fall below 0
        depth = np.maximum(depth, np.float32(0))
    offset = 0.0
    if scale is None and unit == "metres":
        # A resize may also exceed the limit.
        scale = MILLIMETRES if largest is not None and 1.2 * largest * MILLIMETRES <= LARGEST else KITTI
    elif scale is None:
        offset, most = float(depth.min()), float(depth.max())
        scale = LARGEST / (most - offset) if most > offset else 1.0
    elif not (math.isfinite(scale) and scale > 0):
        raise OutputError(f"the scale {scale} of a depth PNG is not above 0", "Give values a unit, such as 1000.")
    values = np.rint((depth.astype(np.float64) - offset) * scale)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= LARGEST):
        what = f"a PNG of 16 bits holds 0 to {LARGEST / scale:.6g} {unit} at the scale {scale:g}"
        found = f"the depths go from {depth.min():.6g} to {depth.max():.6g}"
        raise OutputError(f"{what}, and {found}", "Give another scale, or write .npy or .npz.")
    if high == 0 < float(depth.max()) - offset:
        what = f"at the scale {scale:g} every value of a PNG is 0: the depths go up to {depth.max():.6g} {unit}"
        raise OutputError(what, "Give a larger scale, or write .npy or .npz.")
    data = cv2.imencode(".png", values.astype(np.uint16))[1].tobytes()
    said = {"unit": unit, "larger_is": larger_is, "scale": scale, "offset": offset, "formula": "value / scale + offset"}
    text = png_chunk(b"tEXt", b"Depth\0" + json.dumps(said).encode("latin-1"))
    return DepthPng(data[:HEADER] + text + data[HEADER:], scale, offset)


def coloured(
    depth: NDArray[np.float32],
    span: tuple[float, float],
    *,
    near_is_large: bool,
    image: NDArray[np.uint8] | None = None,
    opacity: float = 1.0,
) -> NDArray[np.uint8]:
    """Depths in colours, near ones bright, over an image of their size.

    Args:
        depth: (H, W).
        span: what the ends of the colours stand for; what lies beyond has the colour of the nearest end.
        image: (H, W, 3) BGR; None: nothing shines through.

    Returns:
        (H, W, 3) BGR.

    Raises:
        InputError: an opacity outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise InputError(f"the opacity is {opacity}", "Give a number between 0 and 1.")
    low, high = span
    share = np.clip((depth - low) / ((high - low) or 1.0), 0, 1)
    levels = np.rint(255 * (share if near_is_large else 1 - share)).astype(np.uint8)
    colours = np.asarray(cv2.applyColorMap(levels, COLOURS), np.uint8)
    if image is None or opacity == 1:
        return colours
    return np.asarray(cv2.addWeighted(image, 1 - opacity, colours, opacity, 0), np.uint8)


def with_colour_bar(
    colours: NDArray[np.uint8], span: tuple[float, float], unit: str, *, near_is_large: bool
) -> NDArray[np.uint8]:
    """The image with a bar at its right: the near end above, and the depths at both ends and in the middle.

    Its width depends on the image's size alone, so that the frames of a video come out alike. An image below 256 pixels
    is enlarged by a whole factor.
    """
    factor = math.ceil(SMALLEST_SIDE / max(colours.shape[:2]))
    colours = colours.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = colours.shape[:2]
    text = max(13, round(0.028 * math.sqrt(min(height, width) * min(max(height, width), 2 * min(height, width)))))
    panel = round(2.5 * text) + text_width("-0000.00 far", text)
    high = max(height, 8 * text)
    canvas = np.full((high, width + panel, 3), PANEL, np.uint8)
    canvas[:height, :width] = colours
    top, bottom, left = 3 * text, high - text, width + text // 2
    ramp = np.linspace(255, 0, bottom - top).astype(np.uint8)[:, None]
    canvas[top:bottom, left : left + text] = cv2.applyColorMap(ramp, COLOURS)
    draw_text(canvas, unit, (left, round(1.8 * text)), FAINT, text)
    near, far = span[::-1] if near_is_large else span
    marks = ((near, "near", top + text), ((near + far) / 2, "", (top + bottom) // 2), (far, "far", bottom))
    for value, word, baseline in marks:
        draw_text(canvas, f"{value:.4g} {word}".strip(), (left + round(1.5 * text), baseline), TEXT, text)
    return canvas

"""Draws a mask over its image, with a legend that gives each class's share of the image."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.system.text import count

__all__ = [
    "FAINT",
    "PANEL",
    "RGB",
    "SMALLEST_SIDE",
    "TEXT",
    "class_shares",
    "default_palette",
    "draw_text",
    "overlay",
    "palette_image",
    "text_width",
]

RGB = tuple[int, int, int]

PANEL = (30, 27, 26)  # BGR
TEXT = (236, 232, 230)
FAINT = (172, 165, 162)
_RIM = (110, 103, 100)
_WEIGHT = 500  # of the font: a little above regular, for light text on dark
_SMALLEST_SHARE = 0.001  # classes below it share the legend's last line
SMALLEST_SIDE = 256  # px; an image whose longer side is shorter is enlarged beside a legend
_OUTLINE = 0.6  # opacity of the white line between regions
_MOST_LINES = 16  # of a legend below the image


def class_shares(mask: NDArray[Any], n_classes: int) -> list[tuple[int, float]]:
    """The classes that occur in a mask, largest first, each with its share of all pixels, (0, 1].

    Pixels outside [0, n_classes), such as 255 for "ignore", count as pixels but not as a class.
    """
    counts = np.bincount(_labels(mask, n_classes).ravel(), minlength=n_classes)[:n_classes]
    order = np.argsort(-counts, kind="stable")
    return [(int(index), float(counts[index] / mask.size)) for index in order if counts[index]]


def palette_image(mask: NDArray[Any], palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Paint each pixel in the colour of its class.

    Args:
        mask: (H, W) of class indices; those outside the palette are painted black.
        palette: RGB triples, [0, 255], one a class.

    Returns:
        (H, W, 3) BGR uint8.
    """
    colours = np.zeros((len(palette) + 1, 3), np.uint8)
    colours[:-1] = np.asarray(palette).reshape(-1, 3)[:, ::-1]
    return colours.take(_labels(mask, len(palette)), axis=0, mode="clip")  # 3 times as fast as []


def default_palette(n: int) -> list[RGB]:
    """``n`` distinct colours, the same at each call; a longer palette starts with the shorter one.

    Hues advance by the golden ratio, which keeps neighbours in the list apart; the tone varies besides.
    """
    golden = (math.sqrt(5) - 1) / 2
    tones = [(0.62, 0.92), (0.80, 0.62), (0.38, 0.98), (0.92, 0.85), (0.50, 0.50)]  # saturation, value
    colours = []
    for index in range(n):
        red, green, blue = colorsys.hsv_to_rgb((0.58 + index * golden) % 1, *tones[index % len(tones)])
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


def overlay(
    image_bgr: NDArray[np.uint8],
    mask: NDArray[Any],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None,
    *,
    opacity: float = 0.5,
    legend: bool = True,
) -> NDArray[np.uint8]:
    """Blend an image with the colours of its classes, outline the regions and add a legend.

    The legend lists the classes in descending share, to the right of the image, or below one that is more
    than twice as wide as high. Its size depends on the image's size and the class names alone, so that the
    frames of a video come out alike. An image below 256 pixels is enlarged by a whole factor for it.

    Args:
        image_bgr: (H, W, 3) BGR uint8.
        mask: (H, W) of class indices; those outside the classes are drawn black and listed as "ignored".
        classes: the names, one a class.
        palette: RGB triples, [0, 255], one a class; None for `default_palette`.
        opacity: of the colours over the image, [0, 1].
        legend: False gives the image alone, at its own size.

    Returns:
        BGR uint8: (H, W, 3) without a legend, larger with one.

    Raises:
        InputError: the blended, the mask, the classes and the palette do not fit together.
    """
    palette = default_palette(len(classes)) if palette is None else palette
    _check(image_bgr, mask, classes, palette, opacity)
    factor = math.ceil(SMALLEST_SIDE / max(mask.shape)) if legend else 1
    labels = _enlarge(_labels(mask, len(classes)), factor)
    image = _enlarge(image_bgr, factor)
    colours = palette_image(labels, palette)
    blended = np.asarray(cv2.addWeighted(image, 1 - opacity, colours, opacity, 0), np.uint8)
    _outline(blended, labels)
    if not legend:
        return blended
    names = [name.strip() for name in classes]  # mmsegmentation's ADE20K has "bed "
    layout = _layout(*labels.shape, tuple(names))
    canvas = np.full((*layout.size, 3), PANEL, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = blended
    lines = _lines(class_shares(mask, len(classes)), names, palette, len(layout.places))
    for line, place in zip(lines, layout.places, strict=False):
        _draw_line(canvas, line, place, layout.text)
    return canvas


def _check(
    image: NDArray[np.uint8],
    mask: NDArray[Any],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float,
) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"an image is (H, W, 3) of uint8, found {image.shape} of {image.dtype}", "Give it as cv2.imread does."
        )
    if mask.shape != image.shape[:2] or mask.dtype.kind not in "ui":
        raise InputError(
            f"the mask is {mask.shape} of {mask.dtype}, the image {image.shape[:2]}",
            "Give class indices at the image's own size.",
        )
    if not classes or len(palette) != len(classes):
        message = f"there are {len(classes)} classes and {len(palette)} colours"
        raise InputError(message, "Give a name and a colour for each class.")
    if not 0 <= opacity <= 1:
        raise InputError(f"the opacity is {opacity}", "Give a number between 0 and 1.")


def _labels(mask: NDArray[Any], n_classes: int) -> NDArray[Any]:
    """The mask, uint8 or uint16, with ``n_classes`` in place of whatever is no class."""
    dtype = np.uint8 if n_classes < 256 else np.uint16
    if mask.dtype.kind == "u":
        labels: NDArray[Any] = np.minimum(mask, min(n_classes, np.iinfo(mask.dtype).max))
        return labels.astype(dtype, copy=False)
    wide = mask.astype(np.int64)
    return np.where((wide < 0) | (wide > n_classes), n_classes, wide).astype(dtype)


def _enlarge(array: NDArray[Any], factor: int) -> NDArray[Any]:
    return array if factor == 1 else array.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(image: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    """Lightens, in place, the pixels where the class changes."""
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, 1:] = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    width = round(max(labels.shape) / 1000)
    if width > 1:
        edge = np.asarray(cv2.dilate(edge, np.ones((width, width), np.uint8)), np.uint8)
    light = cv2.convertScaleAbs(image, alpha=1 - _OUTLINE, beta=255 * _OUTLINE)
    cv2.copyTo(light, edge, image)


# The legend


@dataclass(frozen=True)
class _Layout:
    """Where the lines of a legend go, in pixels."""

    size: tuple[int, int]  # (height, width) of the image and the legend together
    text: int  # size of the text, and the margin; all distances are multiples of it
    places: list[tuple[int, int, int]]  # left end, baseline and right end of each line


@dataclass(frozen=True)
class _Line:
    name: str
    share: float
    colour: Sequence[int] | None  # RGB; None for the line that stands for several classes


@lru_cache(maxsize=16)
def _layout(height: int, width: int, names: tuple[str, ...]) -> _Layout:
    """Fits a legend to an image of ``height`` x ``width`` and to the longest of the class names."""
    short, long = sorted((height, width))
    text = max(13, round(0.028 * math.sqrt(short * min(long, 2 * short))))
    line_height = round(1.75 * text)
    texts = (*names, "ignored", f"{len(names)} others")
    longest = max(text_width(name, 32) for name in texts) / 32  # in units of the text size
    # 1.6 for the swatch, 4.2 for the share
    line_width = round(text * (1.6 + min(longest, 11.0) + 4.2))
    if below := width > 2 * height:
        gap = 3 * text
        columns = max(1, width // (line_width + gap))
        line_width = max(line_width, (width + gap - 2 * text) // columns - gap)
        rows = math.ceil(min(len(names) + 1, _MOST_LINES) / columns)
    else:
        gap, columns, rows = 0, 1, max(6, (height - 2 * text) // line_height)
    high, wide = rows * line_height + 2 * text, columns * (line_width + gap) - gap + 2 * text
    size = (height + high, max(width, wide)) if below else (max(height, high), width + wide)
    top, left = (height, 0) if below else (0, width)
    lefts = [left + text + column * (line_width + gap) for column in range(columns)]
    # A capital is 0.70 of the text high.
    baselines = [top + text + row * line_height + (line_height + round(0.70 * text)) // 2 for row in range(rows)]
    return _Layout(size, text, [(x, y, x + line_width) for x in lefts for y in baselines])


def _lines(
    shares: Sequence[tuple[int, float]], names: Sequence[str], palette: Sequence[Sequence[int]], most: int
) -> list[_Line]:
    """The lines of a legend, ``most`` at most; what finds no room is summed up in the last one."""
    ignored = 1 - sum(share for _, share in shares)
    tail = [_Line("ignored", ignored, (0, 0, 0))] if ignored > 1e-9 else []
    shown = [(index, share) for index, share in shares if share >= _SMALLEST_SHARE]
    room = most - len(tail)
    if len(shown) > room or (len(shown) < len(shares) and len(shown) == room):
        shown = shown[: room - 1]
    others = [share for _, share in shares[len(shown) :]]
    lines = [_Line(names[index], share, palette[index]) for index, share in shown]
    if others:
        lines.append(_Line(count(len(others), "other"), sum(others), None))
    return lines + tail


def _draw_line(canvas: NDArray[np.uint8], line: _Line, place: tuple[int, int, int], text: int) -> None:
    left, baseline, right = place
    colour = TEXT if line.colour else FAINT
    if line.colour:  # a square, with a rim that keeps a dark one apart from the panel
        top, rim = baseline - round(0.85 * text), max(1, text // 14)
        canvas[top : top + text, left : left + text] = _RIM
        canvas[top + rim : top + text - rim, left + rim : left + text - rim] = list(line.colour)[::-1]
    percent = f"{line.share:.1%}".replace("%", " %") if line.share >= 0.0005 else "<0.1 %"
    start = right - text_width(percent, text)
    draw_text(canvas, percent, (start, baseline), FAINT, text)
    name = _elide(line.name, start - left - round(2.2 * text), text)
    draw_text(canvas, name, (left + round(1.6 * text), baseline), colour, text)


# Text: OpenCV 5 has a TrueType font, OpenCV 4 the strokes of Hershey


def draw_text(
    image: NDArray[np.uint8], text: str, origin: tuple[int, int], colour: tuple[int, int, int], size: int
) -> None:
    """Draws a text with its baseline's left end at ``origin`` (x, y); ``size`` in pixels."""
    if hasattr(cv2, "FontFace"):
        cv2.putText(image, text, origin, colour, _font(), size, _WEIGHT)
    else:
        thickness = max(1, size // 16)
        cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size / 32, colour, thickness, cv2.LINE_AA)


@lru_cache(maxsize=4096)
def text_width(text: str, size: int) -> int:
    """Of a text drawn by `draw_text`, in pixels."""
    if hasattr(cv2, "FontFace"):
        return int(cv2.getTextSize((0, 0), text, (0, 0), _font(), size, _WEIGHT)[2])
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 32, max(1, size // 16))[0][0])


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _elide(text: str, width: int, size: int) -> str:
    """Cuts a text to ``width`` pixels, and marks the cut."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}...", size) > width:
        text = text[:-1].rstrip()
    return f"{text}..."

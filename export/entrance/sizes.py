"""The sizes of images that a foreign network takes, found by running it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.export.entrance.compare import as_nchw
from denseport.export.entrance.foreign_network import ForeignNetwork
from denseport.export.errors import ExportError
from denseport.export.graph.ends import NCHW, NHW, NHWC
from denseport.runtime.bundle.steps import LARGEST_SIDE

__all__ = ["Found", "Search", "Size", "divisor_of", "first_size", "free_sides", "output_layouts", "sizes_to_check"]

Size = tuple[int, int]  # height, width
Found = NDArray[Any]
# Where the search begins: not square, so that rows and columns differ; then sizes that networks are often tied to.
FIRST = ((256, 320), (448, 896))
USUAL = (512, 224, 256, 384, 480, 518, 520, 640, 768, 1024)
DIVISORS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 128)


@dataclass
class Search:
    """The runs made so far, of one image each, and what they gave."""

    network: ForeignNetwork
    found: dict[Size, Found] = field(default_factory=dict)
    why_not: dict[Size, str] = field(default_factory=dict)

    def run(self, size: Size) -> Found | None:
        """What the network gives for images of ``size``; None where it cannot be run."""
        if size not in self.found and size not in self.why_not:
            try:
                found = self.network.run(self.network.sample(1, *size))
            except ExportError as err:
                self.why_not[size] = err.message
            else:
                _check_finite(found, size, self.network.label)
                self.found[size] = found
        return self.found.get(size)


def first_size(search: Search, sides: tuple[int | None, int | None], hint: Size | None) -> Size:
    """A size that the network takes, and for which it gives a grid in the input's proportions."""
    label, given = search.network.label, [] if hint is None else [hint]
    candidates = dict.fromkeys((sides[0] or h, sides[1] or w) for h, w in (*FIRST, *given, *((n, n) for n in USUAL)))
    for size in candidates:
        _check_not_exchanged(search, size)
        if size in search.found and output_layouts(search.found[size], size):
            others = {found.shape for other, found in search.found.items() if other != size}
            if size not in given and search.found[size].shape in others:
                break  # one output for inputs of several sizes
            return size
    ran = {size: found for size, found in search.found.items() if size in candidates}
    if not ran:
        size, why = next(iter(search.why_not.items()))
        raise ExportError(
            f"{label}: runs at none of {len(search.why_not)} sizes. At {size[1]} x {size[0]}: {why}",
            "Give the size that it was exported for: --size WIDTHxHEIGHT.",
        )
    size, found = next(iter(ran.items()))
    shapes = ", ".join(f"{found.shape} for {size[1]} x {size[0]}" for size, found in list(ran.items())[:3])
    if found.ndim in (3, 4) and len({each.shape for each in ran.values()}) == 1 < len(ran):
        raise ExportError(
            f"{label}: gives an output of the same size for every input ({shapes}): its exporter fixed it",
            "Give the size that it was exported for (--size WIDTHxHEIGHT), or export it with dynamic sizes.",
        )
    what = f"{label}: gives no class for each pixel: its output has the shape {shapes} (width x height)"
    raise ExportError(what, "Give a network for segmentation: (N, classes, height, width), or a map of classes.")


def _check_not_exchanged(search: Search, size: Size) -> None:
    """Refuse a network whose rows are the image's columns: at a square size it would seem to be right."""
    found = search.run(size)
    if found is None or size[0] == size[1] or output_layouts(found, size):
        return
    if output_layouts(found, (size[1], size[0])):
        what = f"{search.network.label}: exchanges height and width: its output has the shape {found.shape}"
        raise ExportError(
            f"{what} for an image of {size[1]} x {size[0]} (width x height)",
            "Export it with an output whose rows are the image's rows.",
        )


def output_layouts(found: Found, size: Size) -> list[str]:
    """The layouts in which an image's output is a grid over it: as many cells a pixel along rows as along columns."""
    spots = {4: ((NCHW, 2), (NHWC, 1)), 3: ((NHW, 1),)}.get(found.ndim, ())
    if not spots or len(found) != 1:
        return []
    return [layout for layout, at in spots if _is_grid((found.shape[at], found.shape[at + 1]), size)]


def _is_grid(cells: Size, size: Size) -> bool:
    """Whether a grid has the proportions of a size, up to a cell that is cut off or added at an edge."""
    if min(cells) < 1:
        return False
    stride = math.sqrt(math.prod(size) / math.prod(cells))
    if stride < 1.01:  # a cell for each pixel, or finer: a row that is missing would shift all others
        return cells[0] * size[1] == cells[1] * size[0] and cells[0] >= size[0]
    return all(abs(n - side / stride) <= 1 for n, side in zip(cells, size, strict=True))


def free_sides(
    search: Search, first: Size, sides: tuple[int | None, int | None]
) -> tuple[tuple[bool, bool], list[str]]:
    """Which of height and width can be had in other lengths, and warnings about those that cannot though declared."""
    if None not in sides:
        return (False, False), []
    height, width = first
    free = (
        sides[0] is None and _same_grid(search, (2 * height, width), first),
        sides[1] is None and _same_grid(search, (height, 2 * width), first),
    )
    tied = [
        name
        for name, side, is_free in zip(("height", "width"), sides, free, strict=True)
        if side is None and not is_free
    ]
    if not tied:
        return free, []
    words = f"Its {' and '.join(tied)} {'are' if len(tied) > 1 else 'is'} declared free, but of what was tried"
    return free, [f"{words} only {first[1]} x {first[0]} pixels give a right output: taken as fixed."]


def _same_grid(search: Search, size: Size, first: Size) -> bool:
    """Whether the network takes a size too, and its output has as many cells a pixel as for the first size.

    A side may lack a cell or have one more, since networks round; not where a cell is a pixel, as in `_is_grid`.
    """
    found = search.run(size)
    layouts = [] if found is None else output_layouts(found, size)
    if found is None or not layouts:
        return False
    cells, base = (as_nchw(each, layouts[0]).shape[2:] for each in (found, search.found[first]))
    off = 0 if base[0] >= first[0] else 1
    return all(abs(n - m * side / own) <= off for n, m, side, own in zip(cells, base, size, first, strict=True))


def divisor_of(search: Search, first: Size, free: tuple[bool, bool]) -> int:
    """The least number of which a free side must be a multiple."""
    if not any(free):
        return 1
    for divisor in DIVISORS:
        size = _odd_multiple(divisor, first, free)
        if max(size) <= LARGEST_SIDE and _same_grid(search, size, first):
            return divisor
    why = next(reversed(search.why_not.values()), "its output does not grow with its input")
    raise ExportError(
        f"{search.network.label}: its sizes are free, but no multiple of up to {DIVISORS[-1]} pixels suits it: {why}",
        "Export it for one size.",
    )


def _odd_multiple(divisor: int, first: Size, free: tuple[bool, bool]) -> Size:
    """Sides that are multiples of a number and of none of its doubles, just below the next multiple of 64 or 128.

    A network that cuts its input down to a multiple of 16 or 32 loses most of it there, and its output shows it.
    """
    counts = (max(1, (side + more) // divisor) for side, more in zip(first, (63, 127), strict=True))
    height, width = (divisor * (count - (count % 2 == 0)) for count in counts)
    return (height if free[0] else first[0], width if free[1] else first[1])


def sizes_to_check(
    search: Search, first: Size, free: tuple[bool, bool], divisor: int, given: Size | None
) -> list[Size]:
    """Three sizes that the network takes, each once; a fixed one only once."""
    sizes = [first, *([given] if given is not None else [])]
    if any(free):
        height, width = first
        turned = (width if free[0] else height, height if free[1] else width)
        sizes += [_odd_multiple(divisor, first, free), turned, (2 * height if free[0] else height, width)]
    fitting = [size for size in dict.fromkeys(sizes) if size == first or _same_grid(search, size, first)]
    return fitting[:3]


def _check_finite(found: Found, size: Size, label: str) -> None:
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        what = "NaN" if np.isnan(found).any() else "infinity"
        raise ExportError(
            f"{label}: gives {what} for an image of {size[1]} x {size[0]}, normalised as was declared",
            "Check --mean, --std and --range, and that the file computes what the network did.",
        )

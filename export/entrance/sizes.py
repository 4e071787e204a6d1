"""The sizes of images that a foreign network takes, found by running it.

What a file declares is where the search begins. A declared number is the only size that ONNX Runtime takes. A declared
"any" is a promise that exporters break without a word: each such side is tried at several lengths, and a batch of two
against its images one by one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.export.entrance.compare import TOLERANCE, as_nchw
from denseport.export.entrance.foreign_network import ForeignNetwork
from denseport.export.errors import ExportError
from denseport.export.graph.ends import NCHW, NHW, NHWC
from denseport.runtime.bundle.steps import LARGEST_SIDE
from denseport.runtime.errors import InputError

__all__ = ["Found", "Size", "Sizes", "output_layouts"]

Size = tuple[int, int]  # height, width
Found = NDArray[Any]
PIXELS = 2**26  # of an image; a file of a stranger may declare any number
# Where the search begins: not square, so that rows and columns differ; then sizes that networks are often tied to.
FIRST = ((256, 320), (448, 896))
USUAL = (512, 224, 256, 384, 480, 518, 520, 640, 768, 1024)
DIVISORS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 128)


class Sizes:
    """The sizes that a network takes.

    Args:
        hint: of the images that it will be given, where that is known.

    Attributes:
        first: one of them, for which the output is a grid in the input's proportions.
        free: whether height and width can have other lengths.
        divisor: the least number of which a free side must be a multiple.
        found: what an image gave, by size.
        warnings: about sides that are tied to a length, and a batch, though declared free.

    Raises:
        InputError, ExportError: it runs at no size that was tried, gives nothing for each pixel, is not finite or not
            repeatable.
    """

    def __init__(self, network: ForeignNetwork, hint: Size | None) -> None:
        self.network, self.hint, (batch, *self.sides) = network, hint, network.declared
        if batch not in (None, 1):
            what = f"{network.label}: takes batches of {batch} images only; the runtime gives it one image at a time"
            raise InputError(what, "Export it with a batch of 1, or of any size.")
        for sides in (self.sides, hint or ()):
            pixels = math.prod(n or 1 for n in sides)
            if pixels > PIXELS or any(n is not None and not 1 <= n <= LARGEST_SIDE for n in sides):
                height, width = (n or "any" for n in sides)
                what = f"{network.label}: takes images of {width} x {height} pixels (width x height)"
                raise InputError(what, f"Give at most {LARGEST_SIDE} pixels a side, and {PIXELS:,} in all.")
        self.found: dict[Size, Found] = {}
        self.warnings: list[str] = []
        self._why_not: dict[Size, str] = {}
        self.first = self._first()
        self._check_repeatable()
        self.free = self._free()
        self.divisor = self._divisor() if any(self.free) else 1

    def takes_batches(self) -> bool:
        """Whether two images together give what each of them gives alone."""
        if self.network.declared[0] is not None:
            return False
        pair = self.network.sample(2, *self.first, seed=1)
        try:
            together = self.network.run(pair)
        except ExportError:
            together = np.empty(0)
        alone = np.concatenate([self.network.run(pair[i : i + 1]) for i in (0, 1)])
        if together.shape == alone.shape and _differ(together, alone) <= TOLERANCE:
            return True
        self.warnings.append(
            "Its batch is declared free, but two images together give something else than one by one: fixed to 1."
        )
        return False

    def to_check(self) -> list[Size]:
        """Three sizes that the network takes, each once; a fixed one only once."""
        (height, width), (tall, wide) = self.first, self.free
        sizes = [self.first, *([self.hint] if self.hint is not None else [])]
        if tall or wide:
            turned = (width if tall else height, height if wide else width)
            sizes += [self._odd_multiple(self.divisor), turned, (2 * height if tall else height, width)]
        return [size for size in dict.fromkeys(sizes) if size == self.first or self._same_grid(size)][:3]

    def _run(self, size: Size) -> Found | None:
        """What the network gives for an image of ``size``; None where it cannot be run."""
        if size not in self.found and size not in self._why_not:
            try:
                found = self.network.run(self.network.sample(1, *size))
            except ExportError as err:
                self._why_not[size] = err.message
            else:
                self._check_finite(found, size)
                self.found[size] = found
        return self.found.get(size)

    def _first(self) -> Size:
        (height, width), given = self.sides, [] if self.hint is None else [self.hint]
        tried = dict.fromkeys((height or h, width or w) for h, w in (*FIRST, *given, *((n, n) for n in USUAL)))
        for size in tried:
            found = self._run(size)
            if found is None:
                continue
            self._check_not_exchanged(found, size)
            if output_layouts(found, size):
                others = {each.shape for other, each in self.found.items() if other != size}
                if size not in given and found.shape in others:
                    break  # one output for inputs of several sizes
                return size
        raise self._unfit()

    def _unfit(self) -> ExportError:
        """Why no size was found."""
        label = self.network.label
        if not self.found:
            (height, width), why = next(iter(self._why_not.items()))
            return ExportError(
                f"{label}: runs at none of {len(self._why_not)} sizes. At {width} x {height}: {why}",
                "Give the size that it was exported for: --size WIDTHxHEIGHT.",
            )
        some = list(self.found.items())[:3]
        shapes = ", ".join(f"{found.shape} for {width} x {height}" for (height, width), found in some)
        if some[0][1].ndim in (3, 4) and len({each.shape for each in self.found.values()}) == 1 < len(self.found):
            return ExportError(
                f"{label}: gives an output of the same size for every input ({shapes}): its exporter fixed it",
                "Give the size that it was exported for (--size WIDTHxHEIGHT), or export it with dynamic sizes.",
            )
        what = f"{label}: gives no class for each pixel: its output has the shape {shapes} (width x height)"
        return ExportError(what, "Give a network for segmentation: (N, classes, height, width), or a map of classes.")

    def _check_not_exchanged(self, found: Found, size: Size) -> None:
        """Refuse a network whose rows are the image's columns: at a square size it would seem to be right."""
        height, width = size
        if height != width and not output_layouts(found, size) and output_layouts(found, (width, height)):
            what = f"{self.network.label}: exchanges height and width: its output has the shape {found.shape}"
            raise ExportError(
                f"{what} for an image of {width} x {height} (width x height)",
                "Export it with an output whose rows are the image's rows.",
            )

    def _check_finite(self, found: Found, size: Size) -> None:
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            what = "NaN" if np.isnan(found).any() else "infinity"
            raise ExportError(
                f"{self.network.label}: gives {what} for an image of {size[1]} x {size[0]}, normalised as was declared",
                "Check --mean, --std and --range, and that the file computes what the network did.",
            )

    def _check_repeatable(self) -> None:
        network, found = self.network, self.found[self.first]
        if _differ(network.run(network.sample(1, *self.first)), found) > TOLERANCE:
            raise ExportError(
                f"{network.label}: gives something else for the same image when it is run again",
                "Export it in evaluation mode: dropout and other random steps must be off.",
            )
        other = network.run(network.sample(1, *self.first, seed=2))
        is_of_classes = np.array_equal(found, np.round(found)) and found.any()  # noise may be of one class everywhere
        if not is_of_classes and np.array_equal(other, found):
            what = f"{network.label}: gives the same for two different images"
            raise ExportError(what, "Check that its input is the image.")

    def _free(self) -> tuple[bool, bool]:
        """Which of height and width can be had in other lengths."""
        height, width = self.first
        free = (
            self.sides[0] is None and self._same_grid((2 * height, width)),
            self.sides[1] is None and self._same_grid((height, 2 * width)),
        )
        declared = zip(("height", "width"), self.sides, free, strict=True)
        if tied := [name for name, side, is_free in declared if side is None and not is_free]:
            words = f"Its {' and '.join(tied)} {'are' if len(tied) > 1 else 'is'} declared free, but of what was tried"
            self.warnings.append(f"{words} only {width} x {height} pixels give a right output: taken as fixed.")
        return free

    def _divisor(self) -> int:
        for divisor in DIVISORS:
            size = self._odd_multiple(divisor)
            if max(size) <= LARGEST_SIDE and self._same_grid(size):
                return divisor
        why = next(reversed(self._why_not.values()), "its output does not grow with its input")
        what = f"{self.network.label}: its sizes are free, but no multiple of up to {DIVISORS[-1]} pixels suits it"
        raise ExportError(f"{what}: {why}", "Export it for one size.")

    def _odd_multiple(self, divisor: int) -> Size:
        """Free sides that are multiples of a number and of none of its doubles, just below multiples of 64 and 128.

        A network that cuts its input down to a multiple of 16 or 32 loses most of it there, and its output shows it.
        """
        counts = (max(1, (side + more) // divisor) for side, more in zip(self.first, (63, 127), strict=True))
        height, width = (divisor * (count - (count % 2 == 0)) for count in counts)
        return (height if self.free[0] else self.first[0], width if self.free[1] else self.first[1])

    def _same_grid(self, size: Size) -> bool:
        """Whether the network takes a size too, and its output has as many cells a pixel as for the first size.

        A side may lack a cell or have one more, since networks round; not where a cell is a pixel, as in `_is_grid`.
        """
        found = self._run(size)
        layouts = [] if found is None else output_layouts(found, size)
        if found is None or not layouts:
            return False
        cells, base = (as_nchw(each, layouts[0]).shape[2:] for each in (found, self.found[self.first]))
        off = 0 if base[0] >= self.first[0] else 1
        sides = zip(cells, base, size, self.first, strict=True)
        return all(abs(n - m * side / own) <= off for n, m, side, own in sides)


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


def _differ(one: Found, other: Found) -> float:
    """Largest difference, in units of the largest value where that exceeds 1; of classes the share that differs."""
    if one.dtype.kind != "f":
        return float((one != other).mean())
    return float(np.abs(one - other).max() / max(1.0, float(np.abs(other).max())))

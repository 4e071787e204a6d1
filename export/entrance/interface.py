"""What a foreign network takes and gives, found by running it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from denseport.export.entrance.compare import as_nchw
from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign_network import ForeignNetwork
from denseport.export.entrance.sizes import Found, Size, Sizes, output_layouts
from denseport.export.errors import ExportError
from denseport.export.graph.ends import CLASSES, NCHW, NHW, NHWC, PROBABILITIES, Ends
from denseport.export.graph.model import DEPTH, LOGITS
from denseport.runtime.errors import InputError

__all__ = ["Interface", "find_interface"]


@dataclass(frozen=True)
class Interface:
    """What was found."""

    ends: Ends
    divisor: int  # of height and width: the network takes no other sizes
    shapes: tuple[tuple[int, int, int, int], ...]  # three inputs to compare on, (N, C, H, W)
    scores: bool  # False: taken for logits though they are numbers from 0 to 1
    warnings: tuple[str, ...]


def find_interface(network: ForeignNetwork, declared: Declared, given: str | None) -> Interface:
    """Run a network at several sizes, twice on the same images, and on a batch.

    Args:
        given: what is said to come out: LOGITS, PROBABILITIES or CLASSES; None: it is found.

    Raises:
        InputError, ExportError: it runs at no size that was tried, gives nothing for each pixel, is not finite or not
            repeatable, or has another number of classes than were named.
    """
    sizes = Sizes(network, declared.resize_size())
    runs = {size: sizes.found[size] for size in sizes.to_check()}
    layout, gives, channels = _output(runs, network, declared, DEPTH if declared.is_depth else given)
    classes, threshold = _classes(runs, gives, channels, declared, network.label)
    is_batched = sizes.takes_batches()
    height, width = (None if is_free else side for is_free, side in zip(sizes.free, sizes.first, strict=True))
    ends = Ends(
        shape=(None if is_batched else 1, network.channels, height, width),
        layout=network.layout,
        gives=gives,
        output_layout=layout,
        channels=channels,
        classes=classes,
        full_size=all(as_nchw(found, layout).shape[2:] == size for size, found in runs.items()),
        threshold=threshold,
    )
    shapes = tuple((1 + (i == 1 and is_batched), network.channels, *size) for i, size in enumerate(([*runs] * 3)[:3]))
    scores = given != LOGITS or not _in_unit(runs.values())
    return Interface(ends, sizes.divisor, shapes, scores, tuple(sizes.warnings))


def _output(
    runs: dict[Size, Found], network: ForeignNetwork, declared: Declared, given: str | None
) -> tuple[str, str, int]:
    """Layout, kind and channels of the output."""
    first = next(iter(runs.values()))
    possible = {
        layout: as_nchw(first, layout).shape[1]
        for layout in (NHW, network.layout, NHWC if network.layout == NCHW else NCHW)
        if all(layout in output_layouts(found, size) for size, found in runs.items())
    }
    if not possible:
        shapes = ", ".join(f"{found.shape} for {size[1]} x {size[0]}" for size, found in runs.items())
        raise ExportError(f"{network.label}: its output is a grid over its input at some sizes only: {shapes}")
    if given == DEPTH and 1 not in possible.values():
        raise ExportError(f"{network.label}: gives {first.shape}: a depth has one channel", "Leave --task depth out.")
    # Of two layouts that may be, the one that has the named classes.
    named = 1 if given == DEPTH else declared.num_classes
    layout = next((layout for layout, channels in possible.items() if channels == named), next(iter(possible)))
    values = [as_nchw(found, layout) for found in runs.values()]
    if given == PROBABILITIES and not _in_unit(values):
        raise ExportError(f"{network.label}: gives numbers beyond 0 to 1: no probabilities", "Leave --gives out.")
    return layout, given or _kind(values, possible[layout], declared.num_classes, network.label), possible[layout]


def _kind(values: Sequence[Found], channels: int, named: int | None, label: str) -> str:
    """Whether these are logits, probabilities or classes."""
    is_whole = all((each == np.round(each)).all() for each in values)
    in_unit = _in_unit(values)
    if channels == 1 and (values[0].dtype.kind in "iub" or (is_whole and (not in_unit or named != 1))):
        return CLASSES
    if values[0].dtype.kind != "f":
        what = f"{label}: gives {channels} channels of {values[0].dtype}: neither logits nor a map of classes"
        raise ExportError(what, "Export it with its logits as the output.")
    if not in_unit:
        return LOGITS
    if channels == 1 or all(np.abs(each.sum(1) - 1).max() < 1e-3 for each in values):
        return PROBABILITIES
    raise ExportError(
        f"{label}: gives {channels} numbers from 0 to 1 for a pixel, whose sum is not 1: it may be of several classes",
        "If the largest of them is to be the class, say --gives logits; the scores then mean nothing.",
    )


def _in_unit(values: Iterable[Found]) -> bool:
    """Whether all numbers are from 0 to 1."""
    return all(((each >= 0) & (each <= 1)).all() for each in values)


def _classes(
    runs: dict[Size, Found], gives: str, channels: int, declared: Declared, label: str
) -> tuple[int, float | None]:
    """The number of classes, and the threshold where a single channel tells two apart."""
    named, threshold = declared.num_classes, declared.settings.threshold
    if gives == DEPTH:
        return 1, None
    if gives == CLASSES:
        if declared.threshold is not None:
            what = f"--threshold {declared.threshold:g} applies to probabilities; {label} gives classes"
            raise InputError(what, "Leave it out.")
        if channels != 1:
            raise ExportError(f"{label}: a map of classes has one channel; this output has {channels}")
        if named is None:
            raise InputError(
                f"{label}: gives classes, and does not say how many there are",
                "Name them with --classes, or their number.",
            )
        highest = max(int(found.max()) for found in runs.values())
        lowest = min(int(found.min()) for found in runs.values())
        if highest >= named or lowest < 0:
            wrong = highest if highest >= named else lowest
            raise InputError(
                f"{label}: gives the class {wrong}, but --classes names {named}, from 0 to {named - 1}",
                "Name each class that the network tells apart.",
            )
        return named, None
    expected = {1, 2} if channels == 1 else {channels}
    if named is not None and named not in expected:
        raise InputError(
            f"--classes names {named}, but {label} tells {max(expected)} classes apart",
            "Name one for each channel of the output, in their order.",
        )
    if channels > 1 and threshold is not None:
        raise InputError(
            f"--threshold {threshold:g} applies to networks with one output channel; {label} has {channels}",
            "Leave it out.",
        )
    return (channels, None) if channels > 1 else (2, threshold or 0.5)

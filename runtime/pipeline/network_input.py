"""From an image to what the network is given: the one way, for running, calibrating, auditing and comparing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.media.images import read_image, reading
from denseport.runtime.pipeline.views import Span, View, protocol_views, show, window_input, windows
from denseport.runtime.system.arguments import whole

__all__ = ["NetworkInputs", "evenly_spaced", "network_inputs", "sample_evenly", "view_inputs"]

T = TypeVar("T")


def view_inputs(image: NDArray[np.uint8], view: View, protocol: Protocol) -> Iterator[NDArray[np.float32]]:
    """What the network is given of one view of an image: the whole, or each sliding window, row by row.

    The image is resized at once; each input is normalised when it is asked for.

    Args:
        image: (H, W, 3) uint8 BGR.

    Returns:
        Arrays (1, C, h, w) float32, normalised, in the network's channel order; C: 3, or 1 of grey images.
    """
    shown = show(image, view)
    rows, cols = windows(view.size, protocol.inference)
    return (window_input(shown, view, row, col) for row in rows for col in cols)


def network_inputs(image: NDArray[np.uint8], protocol: Protocol, patch_size: int) -> Iterator[NDArray[np.float32]]:
    """All that the network is given of an image under a protocol: every view, every window; as `view_inputs`.

    Raises:
        ImageError: the image is too narrow for one patch.
    """
    for view in protocol_views((image.shape[0], image.shape[1]), protocol, patch_size):
        yield from view_inputs(image, view, protocol)


class NetworkInputs(Sequence[NDArray[np.float32]]):
    """One network input of each image, (1, C, H, W) float32, read and made when it is asked for.

    Of an image with several inputs (sliding windows) image ``i`` gives number ``i`` modulo their number, so that many
    images show all parts of an image. Of several scales the first view counts.

    Args:
        paths: image files.
        protocol: how images reach the network.
        patch_size: pixels; a network input has at least one patch.

    Raises:
        ImageError: when an item is asked for: its image cannot be read or is too narrow.
    """

    def __init__(self, paths: Sequence[Path], protocol: Protocol, patch_size: int = 1) -> None:
        self.paths, self.protocol, self.patch_size = tuple(paths), protocol, patch_size

    @classmethod
    def of_bundle(cls, paths: Sequence[Path], manifest: Manifest) -> NetworkInputs:
        """As a bundle's network sees images in its own test protocol."""
        return cls(paths, parse_protocol("reference", manifest), manifest.patch_size)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> NetworkInputs: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | NetworkInputs:
        if isinstance(index, slice):
            return type(self)(self.paths[index], self.protocol, self.patch_size)
        image = read_image(self.paths[index], loading(self.protocol.preprocess))
        view, (row, col) = self.window(index, (image.shape[0], image.shape[1]))
        return window_input(show(image, view), view, row, col)

    def window(self, index: int, size: tuple[int, int]) -> tuple[View, tuple[Span, Span]]:
        """The view of image ``index``, of ``size`` (height, width), and the rows and columns that are its input."""
        with reading(self.paths[index]):
            view = protocol_views(size, self.protocol, self.patch_size)[0]
        rows, cols = windows(view.size, self.protocol.inference)
        row, col = divmod(index % (len(rows) * len(cols)), len(cols))
        return view, (rows[row], cols[col])


def sample_evenly(patterns: Sequence[str], count: int) -> list[Path]:
    """At most ``count`` images out of files, folders and globs, spread evenly over all that are found.

    Raises:
        InputError: nothing is found, or ``count`` is below 1.
    """
    from denseport.runtime.media.inputs import find_inputs

    return evenly_spaced([item.path for item in find_inputs(patterns) if item.kind == "image"], count)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, spread evenly over all.

    Raises:
        InputError: ``count`` is below 1.
    """
    count = whole("limit", count, 1)
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]

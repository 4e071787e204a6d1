"""Images as the network sees them, for calibration and comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.media.images import read_image
from denseport.runtime.media.inputs import find_inputs
from denseport.runtime.pipeline.preprocess import normalise, resize
from denseport.runtime.pipeline.views import single_view

__all__ = ["evenly_spaced", "network_inputs", "sample_evenly"]

T = TypeVar("T")


def sample_evenly(patterns: Sequence[str], count: int) -> list[Path]:
    """At most ``count`` images out of files, folders and globs, spread evenly over all that are found.

    Raises:
        InputError: nothing is found.
    """
    return evenly_spaced([item.path for item in find_inputs(patterns) if item.kind == "image"], count)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, spread evenly over all."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def network_inputs(images: Sequence[Path], manifest: Manifest) -> Iterator[NDArray[np.float32]]:
    """Each image resized and normalised as the bundle says, (1, 3, H, W) float32, one at a time.

    Raises:
        ImageError: an image cannot be read or is too narrow for one patch.
    """
    for path in images:
        image = read_image(path)
        view = single_view((image.shape[0], image.shape[1]), manifest.preprocess, manifest.patch_size)
        yield normalise(resize(image, view.size), manifest.preprocess)

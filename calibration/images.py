"""Calibration images: pictures as the network sees them, and whether they are fit to calibrate with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError
from denseport.runtime.images import read_image
from denseport.runtime.inference import window_starts
from denseport.runtime.inputs import find_inputs
from denseport.runtime.preprocess import normalise, resize, resized_size
from denseport.runtime.protocol import Protocol

__all__ = ["FEWEST", "CalibrationImages", "ImageStatistics"]

FEWEST = 32  # images below which the 99.99 percentile of a tensor rests on single images
CONSTANT = 0.05  # standard deviation below which an image shows nothing, in units of the training images'
MEAN_LIMIT, STD_LIMITS = 1.0, (0.4, 2.0)  # of all images together, in the same units; ADE20K's own: 0.1, 1.1


class CalibrationImages(Sequence[NDArray[np.float32]]):
    """Normalised images (1, 3, H, W), decoded when they are asked for.

    Args:
        paths: picture files.
        protocol: how pictures reach the network; of a sliding window each picture gives one, another from picture to
            picture.

    Raises:
        CalibrationError: there are no pictures.
    """

    def __init__(self, paths: Sequence[Path], protocol: Protocol) -> None:
        if not paths:
            raise CalibrationError("there are no images to calibrate with", "Name a folder of pictures with --images.")
        self.paths = tuple(paths)
        self.protocol = protocol

    @classmethod
    def of_folder(cls, folder: Path, protocol: Protocol, limit: int | None = None) -> CalibrationImages:
        """The pictures below a folder, evenly thinned to ``limit``.

        Raises:
            InputError: no such folder, or no pictures in it.
        """
        paths = [found.path for found in find_inputs([str(folder)]) if found.kind == "image"]
        if limit is not None and limit < len(paths):
            paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]
        return cls(paths, protocol)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> CalibrationImages: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | CalibrationImages:
        if isinstance(index, slice):
            return CalibrationImages(self.paths[index], self.protocol)
        image = read_image(self.paths[index])
        preprocess, inference = self.protocol.preprocess, self.protocol.inference
        image = resize(image, resized_size((image.shape[0], image.shape[1]), preprocess))
        if inference.crop is not None and inference.stride is not None:
            rows = window_starts(image.shape[0], inference.crop[0], inference.stride[0])
            columns = window_starts(image.shape[1], inference.crop[1], inference.stride[1])
            windows = [(r, c) for r in rows for c in columns]
            (top, bottom), (left, right) = windows[index % len(windows)]
            image = np.ascontiguousarray(image[top:bottom, left:right])
        return normalise(image, preprocess)


class ImageStatistics:
    """An observer of the network's input: how far the images are from those the network was trained on.

    Normalised with the training set's mean and deviation, images like its own have mean 0 and deviation 1.
    """

    def __init__(self) -> None:
        self.images = 0
        self.constant = 0
        self.pixels = 0
        self.sums: NDArray[np.float64] = np.zeros((2, 3))  # of values and of squares, by channel

    def update(self, values: NDArray[np.float32]) -> None:
        channels = values.transpose(1, 0, 2, 3).reshape(3, -1)
        self.images += len(values)
        self.constant += int((values.std(axis=(2, 3)).max(axis=1) < CONSTANT).sum())
        self.pixels += channels.shape[1]
        self.sums += channels.sum(axis=1, dtype=np.float64), np.einsum("cn,cn->c", channels, channels, dtype=np.float64)

    def merge(self, other: ImageStatistics) -> None:
        self.images += other.images
        self.constant += other.constant
        self.pixels += other.pixels
        self.sums += other.sums

    def state(self) -> dict[str, NDArray[Any]]:
        return {"counts": np.array([self.images, self.constant, self.pixels]), "sums": self.sums}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.images, self.constant, self.pixels = (int(n) for n in state["counts"])
        self.sums = np.array(state["sums"])

    def warnings(self) -> list[str]:
        """What speaks against these images, with figures."""
        found = []
        if self.images < FEWEST:
            found.append(
                f"only {self.images} images: ranges rest on few pictures; give {FEWEST} or more, best 100 to 500"
            )
        if self.constant:
            found.append(f"{self.constant} of {self.images} images are of one colour: their ranges mean nothing")
        if not self.pixels:
            return found
        mean = self.sums[0] / self.pixels
        deviation = np.sqrt(np.maximum(self.sums[1] / self.pixels - mean**2, 0))
        low, high = STD_LIMITS
        if np.abs(mean).max() > MEAN_LIMIT or deviation.min() < low or deviation.max() > high:
            shown = ", ".join(f"{m:+.2f} ± {d:.2f}" for m, d in zip(mean, deviation, strict=True))
            found.append(
                f"images unlike the training images: normalised channels are {shown}, where 0 ± 1 was expected; "
                "check that they are pictures of the deployment, in its exposure and channel order"
            )
        return found

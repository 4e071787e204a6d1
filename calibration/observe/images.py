"""Calibration images: images as the network sees them, and whether they are fit to calibrate with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import ImageError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.metrics import LabelMap
from denseport.runtime.media.images import read_image
from denseport.runtime.media.inputs import find_inputs
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.text import count

__all__ = ["FEWEST", "CalibrationImages", "ImageStatistics", "labels_of"]

FEWEST = 32  # images below which the 99.99 percentile of a tensor rests on single images
CONSTANT = 0.05  # standard deviation below which an image shows nothing, in units of the training images'
_NAMED = 5  # images that a message spells out
MEAN_LIMIT, STD_LIMITS = 1.0, (0.4, 2.0)  # of all images together, in the same units; ADE20K's own: 0.1, 1.1


class CalibrationImages(NetworkInputs):
    """What the network is given of each image, whole or one of its windows (1, 3, H, W), made when it is asked for.

    Args:
        paths: image files.
        protocol: how images reach the network.

    Raises:
        CalibrationError: there are no images.
    """

    def __init__(self, paths: Sequence[Path], protocol: Protocol, patch_size: int = 1) -> None:
        if not paths:
            raise CalibrationError("there are no images to calibrate with", "Name a folder of images with --images.")
        super().__init__(paths, protocol, patch_size)

    @classmethod
    def of_folder(cls, folder: Path, protocol: Protocol, limit: int | None = None) -> CalibrationImages:
        """The images below a folder, evenly thinned to ``limit``.

        Raises:
            InputError: no such folder, or no images in it.
        """
        paths = [found.path for found in find_inputs([str(folder)]) if found.kind == "image"]
        return cls(paths if limit is None else evenly_spaced(paths, limit), protocol)

    def check(self, patch_size: int) -> list[tuple[int, int]]:
        """Read every image, before long work relies on them.

        Args:
            patch_size: pixels; a network input has at least one patch.

        Returns:
            (height, width) of each image.

        Raises:
            CalibrationError: images that cannot be read or are too narrow; it names them.
        """
        shown, sizes, bad = NetworkInputs(self.paths, self.protocol, patch_size), [], []
        for index, path in enumerate(self.paths):
            try:
                image = read_image(path)
                _, (rows, columns) = shown.window(index, (image.shape[0], image.shape[1]))
            except ImageError as err:
                bad.append(err.message if str(path) in err.message else f"{path}: {err.message}")
                continue
            sizes.append((rows.stop - rows.start, columns.stop - columns.start))
        if bad:
            more = f"\n  and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise CalibrationError(
                f"{len(bad)} of {count(len(self.paths), 'image')} cannot be used:\n  "
                + "\n  ".join(bad[:_NAMED])
                + more,
                "Remove or replace them: what they would have shown is missing from the statistics.",
            )
        return sizes

    def identity(self) -> list[str]:
        """What tells these images from others: how images reach the network, and each one's SHA-256, in order."""
        return [repr(self.protocol), *(sha256_of(path) for path in self.paths)]

    def sha256(self) -> str:
        """A hash of the list: of each image's content, in order."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(sha256_of(path).encode())
        return digest.hexdigest()


def labels_of(images: CalibrationImages, dataset: Dataset, n_classes: int) -> list[LabelMap]:
    """The truth of each image, at the image's size; image ``i`` is of the data set's sample ``i``.

    Raises:
        DatasetError: labels outside of the classes.
    """
    found = []
    for index, sample in enumerate(dataset.samples):
        truth = dataset.read_mask(sample, n_classes)
        view, window = images.window(index, (truth.shape[0], truth.shape[1]))
        resized: Any = cv2.resize(truth, view.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        found.append(np.ascontiguousarray(resized[window]))
    return found


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
            found.append(f"only {count(self.images, 'image')}: ranges rest on few images; give {FEWEST} or more")
        if self.constant:
            found.append(f"{self.constant} of {count(self.images, 'image')} of one colour, whose ranges mean nothing")
        if not self.pixels:
            return found
        mean = self.sums[0] / self.pixels
        deviation = np.sqrt(np.maximum(self.sums[1] / self.pixels - mean**2, 0))
        low, high = STD_LIMITS
        if np.abs(mean).max() > MEAN_LIMIT or deviation.min() < low or deviation.max() > high:
            shown = ", ".join(f"{m:+.2f} ± {d:.2f}" for m, d in zip(mean, deviation, strict=True))
            found.append(
                f"images unlike the training images: normalised channels are {shown}, where 0 ± 1 was expected; "
                "check that they are images of the deployment, in its exposure and channel order"
            )
        return found

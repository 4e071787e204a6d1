"""Calibration images: whether they are fit to calibrate with, what tells them from others, and their labels."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.observers import Observer
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.errors import ImageError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.metrics import LabelMap
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.network_input import NetworkInputs
from denseport.runtime.pipeline.preprocess import fit_labels
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.text import count

__all__ = ["FEWEST", "ImageStatistics", "check_images", "contents_sha256", "identity_of", "labels_of"]

FEWEST = 32  # with fewer images the 99.99 percentile of a tensor rests on single images
CONSTANT = 0.05  # an image with a smaller standard deviation shows nothing; unit: deviation of the training images
_NAMED = 5  # images that a message lists
MEAN_LIMIT, STD_LIMITS = 1.0, (0.4, 2.0)  # of all images together, in the same unit; ADE20K's own: 0.1, 1.1


def check_images(images: NetworkInputs) -> list[tuple[int, int]]:
    """Read every image, before long work relies on them.

    Returns:
        (height, width) of each network input.

    Raises:
        CalibrationError: there are no images, or some cannot be read or are too narrow. The message names them.
    """
    if not images.paths:
        raise CalibrationError("there are no images to calibrate with", "Name a folder of images with --images.")
    sizes, bad = [], []
    for index, path in enumerate(images.paths):
        try:
            image = read_image(path, loading(images.protocol.preprocess))
            _, (rows, columns) = images.window(index, (image.shape[0], image.shape[1]))
        except ImageError as err:
            bad.append(err.message)
            continue
        sizes.append((rows[1] - rows[0], columns[1] - columns[0]))
    if bad:
        more = [f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
        raise CalibrationError(
            "\n  ".join([f"{len(bad)} of {count(len(images), 'image')} cannot be used:", *bad[:_NAMED], *more]),
            "Remove or replace them. The statistics would miss what they show.",
        )
    return sizes


def contents_sha256(images: NetworkInputs) -> str:
    """A hash of the SHA-256 of each image file, in order."""
    return hashlib.sha256("".join(map(sha256_of, images.paths)).encode()).hexdigest()


def identity_of(images: NetworkInputs) -> str:
    """What tells these network inputs from others: how images reach the network, and the images' contents."""
    return f"{images.protocol!r} {contents_sha256(images)}"


def labels_of(images: NetworkInputs, dataset: Dataset, n_classes: int) -> list[LabelMap]:
    """The truth of each network input, at its size; image ``i`` is of the data set's sample ``i``.

    Raises:
        DatasetError: labels outside of the classes.
    """
    found = []
    for index, sample in enumerate(dataset.samples):
        truth = dataset.read_mask(sample, n_classes)
        view, (row, col) = images.window(index, (truth.shape[0], truth.shape[1]))
        fitted = fit_labels(truth, view.steps)
        found.append(np.ascontiguousarray(fitted[slice(*row), slice(*col)]))
    return found


class ImageStatistics(Observer):
    """How far the network's inputs are from those that it was trained on.

    Images like the training set's have mean 0 and deviation 1, since they are normalised with its mean and deviation.
    """

    def __init__(self) -> None:
        self.images = 0
        self.constant = 0
        self.pixels = 0
        self.sums: NDArray[np.float64] = np.zeros((2, 1))  # of values and of squares, by channel

    def update(self, values: NDArray[np.float32]) -> None:
        channels = values.transpose(1, 0, 2, 3).reshape(values.shape[1], -1)
        self.images += len(values)
        self.constant += int((values.std(axis=(2, 3)).max(axis=1) < CONSTANT).sum())
        self.pixels += channels.shape[1]
        sums = channels.sum(axis=1, dtype=np.float64), np.einsum("cn,cn->c", channels, channels, dtype=np.float64)
        self.sums = self.sums + sums

    def warnings(self) -> list[str]:
        """What speaks against these images, with figures."""
        found = []
        if self.images < FEWEST:
            found.append(f"only {count(self.images, 'image')}: each range rests on few images; give {FEWEST} or more")
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

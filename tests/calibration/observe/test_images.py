"""Calibration images and their labels: the same part of the same image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from bundles import steps

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.images import check_images, contents_sha256, identity_of, labels_of
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Pad
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.pipeline.network_input import NetworkInputs

WHOLE = Inference()
SLIDE = Inference("slide", (32, 32), (24, 24))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of 40 x 60 whose grey level is the label times ten."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(4):
        truth = np.add.outer(np.arange(40) // 10, np.arange(60) // 15).astype(np.uint8) + i
        cv2.imwrite(str(tmp_path / f"masks/{i}.png"), truth)
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.repeat(truth[:, :, None] * 10, 3, axis=2))
    return tmp_path


@pytest.mark.parametrize("inference", [WHOLE, SLIDE])
def test_labels_lie_where_the_image_lies(folder: Path, inference: Inference) -> None:
    dataset = open_dataset(folder / "images", masks=folder / "masks")
    preprocess = steps(size=(60, 40), mean=(0, 0, 0), std=(10, 10, 10))
    images = NetworkInputs([s.image for s in dataset.samples], Protocol("reference", preprocess, inference), 16)
    sizes = check_images(images)
    labels = labels_of(images, dataset, 20)
    for i, label in enumerate(labels):
        assert images[i].shape == (1, 3, *sizes[i]) and label.shape == sizes[i]
        np.testing.assert_array_equal(np.rint(images[i][0, 0]), label)
    starts = {(rows[0], columns[0]) for _, (rows, columns) in (images.window(i, (40, 60)) for i in range(4))}
    assert len(starts) == (1 if inference is WHOLE else 4), "each image gives another window"


def test_what_is_padded_has_no_label(folder: Path) -> None:
    """Whether pixels are added before or after the image is normalised."""
    dataset, plain = open_dataset(folder / "images", masks=folder / "masks"), steps(size=(60, 40))
    for preprocess in ((plain[0], Pad(divisor=32), plain[1]), (*plain, Pad(divisor=32, crop=True))):
        images = NetworkInputs([s.image for s in dataset.samples], Protocol("reference", preprocess, WHOLE), 16)
        for size, label in zip(check_images(images), labels_of(images, dataset, 20), strict=True):
            assert size == label.shape == (64, 64)
            assert (label[40:] == 255).all() and (label[:, 60:] == 255).all() and (label[:40, :60] < 20).all()


def test_images_that_cannot_be_used_are_named_all_at_once(folder: Path) -> None:
    (folder / "images/1.png").write_bytes(b"no image")
    (folder / "images/3.png").unlink()
    paths = [folder / f"images/{i}.png" for i in range(4)]
    with pytest.raises(CalibrationError) as caught:
        check_images(NetworkInputs(paths, Protocol("reference", steps(size=(60, 40)), WHOLE), 16))
    assert "2 of 4 images" in caught.value.message
    assert "1.png" in caught.value.message and "3.png" in caught.value.message


def test_the_hash_is_of_contents_and_order(folder: Path) -> None:
    protocol = Protocol("reference", steps(), WHOLE)
    paths = sorted((folder / "images").iterdir())
    first = contents_sha256(NetworkInputs(paths, protocol))
    assert contents_sha256(NetworkInputs(paths[::-1], protocol)) != first
    renamed = paths[0].rename(paths[0].with_name("renamed.png"))
    assert contents_sha256(NetworkInputs([renamed, *paths[1:]], protocol)) == first


def test_images_are_others_when_their_contents_or_their_way_to_the_network_change(folder: Path) -> None:
    paths = sorted((folder / "images").iterdir())

    def identity(protocol: Protocol) -> str:
        return identity_of(NetworkInputs(paths, protocol))

    first = identity(Protocol("reference", steps(), WHOLE))
    assert identity(Protocol("reference", steps(), WHOLE)) == first
    assert identity(Protocol("reference", steps(mean=(0, 0, 0)), WHOLE)) != first
    assert identity(Protocol("reference", steps(), SLIDE)) != first
    paths[0], paths[1] = paths[1], paths[0]
    assert identity(Protocol("reference", steps(), WHOLE)) != first

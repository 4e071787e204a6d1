"""Names and comparisons that several test modules share."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.metrics import ConfusionMatrix
from denseport.runtime.evaluation.state import Measurement
from denseport.runtime.media.images import read_image

REPO = Path(__file__).resolve().parents[2]
ASSETS = REPO / "tests" / "assets"
SHARED = Path(os.environ.get("DENSEPORT_SHARED", REPO.parent / "shared"))

ROOTS = ("export", "runtime", "calibration")  # the folders of the package
# Importing it registers operators with NVIDIA's enterprise TensorRT, which no registry here has.
NEEDS_TENSORRT = "denseport.export.plugin.tensorrt_plugin"

ORACLE_MODELS = (
    "tiny_dpt_project",
    "tiny_dpt_add",
    "tiny_dpt_ignore",
    "tiny_dpt_l_project",
    "tiny_upernet_noneck",
    "tiny_upernet_mln",
    "tiny_upernet_ln_mln",
    "runner_real_dpt",
)

LOGITS_TOLERANCE = 1e-4  # the oracle's float32 noise is 2.5e-5
MARGIN = 1e-3  # below it two classes are a tie that rounding may decide either way


def measurement_of(images: list[ConfusionMatrix], fp32: list[ConfusionMatrix]) -> Measurement:
    """What was measured of an artifact and of FP32, from a confusion matrix of each image."""
    found = Measurement("", len(images), images[0].n_classes, with_fp32=True)
    assert found.fp32_confusion is not None
    for prefix, total, each in (("", found.confusion, images), ("fp32_", found.fp32_confusion, fp32)):
        for i, matrix in enumerate(each):
            total.merge(matrix)
            found.counts[f"{prefix}intersect"][i] = matrix.intersect
            found.counts[f"{prefix}union"][i] = matrix.union
    return found


def assert_same_classes(mask: NDArray[np.integer], expected: NDArray[np.integer], scores: NDArray[np.floating]) -> None:
    """Masks (…, H, W) are equal but where the two best scores (…, C, H, W) are closer than `MARGIN`."""
    first_two = np.partition(scores, -2, axis=-3)[..., -2:, :, :]
    clear = first_two[..., 1, :, :] - first_two[..., 0, :, :] >= MARGIN
    assert clear.mean() > 0.9, "nearly every pixel is a tie: the comparison would show nothing"
    np.testing.assert_array_equal(mask[clear], expected[clear])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def small_images(folder: Path) -> list[Path]:
    """Two photographs, scaled down, in ``folder``."""
    folder.mkdir()
    paths = []
    for path in sorted((ASSETS / "street/images").rglob("*.jpg"))[:2]:
        paths.append(folder / f"{path.stem}.png")
        assert cv2.imwrite(str(paths[-1]), cv2.resize(read_image(path), (120, 90), interpolation=cv2.INTER_AREA))
    return paths


def modules(*roots: str) -> list[str]:
    """Every module below the given folders of the package (default: all), under its installed name."""
    names = []
    for root in roots or ROOTS:
        for path in sorted((REPO / root).rglob("*.py")):
            parts = path.relative_to(REPO).with_suffix("").parts
            names.append(".".join(("denseport", *parts)).removesuffix(".__init__"))
    return names


def stored_indices(png: bytes) -> NDArray[np.uint8]:
    """(H, W) of an indexed PNG of 8 bits, whose rows are stored as they are or as what they add to the row above."""
    width, height, *kind = struct.unpack_from(">IIBB", png, 16)
    assert kind == [8, 3]
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        data += png[at + 8 : at + 8 + length] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width)
    found = np.zeros((1 + height, width), np.uint8)
    for index, (filtered, *row) in enumerate(rows):
        assert filtered in (0, 2)
        found[index + 1] = np.array(row, np.uint8) + (found[index] if filtered else np.uint8(0))
    return found[1:]

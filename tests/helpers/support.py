"""Names and comparisons that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.evaluation.gate import ImageAreas
from denseport.runtime.evaluation.metrics import ConfusionMatrix
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


def areas_of(images: list[ConfusionMatrix]) -> ImageAreas:
    """The areas of images, from a confusion matrix of each."""
    return ImageAreas(np.stack([each.intersect for each in images]), np.stack([each.union for each in images]))


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

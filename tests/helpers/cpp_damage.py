"""Damaged manifests, images and models for the fuzz targets of the C++ runtime (runtime/cpp/fuzz)."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from bundles import depth_manifest
from fuzz_targets import EDITS, mutate, mutate_json
from hostile import tiny_manifest, tiny_model
from support import ASSETS

from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE
from denseport.runtime.bundle.steps import Load, Pad, Resize

__all__ = ["TARGETS", "seeds", "write_damaged"]

TARGETS = ("manifest", "image", "model")


@cache
def seeds(target: str) -> tuple[bytes, ...]:
    """Whole files. The first byte of an image's tells the target how it is loaded."""
    if target == "manifest":
        pillow = (Load(library="pillow"), Resize((40, 30), True, "bicubic", "pillow"), Pad(divisor=8, crop=True))
        manifests = (tiny_manifest(), depth_manifest(preprocess=(*pillow, USUAL_NORMALISE)))
        return tuple(each.to_json().encode() for each in manifests)
    if target == "model":
        return (tiny_model().SerializeToString(),)
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    made = [cv2.imencode(ending, image)[1].tobytes() for ending in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".ppm")]
    with np.load(ASSETS / "upstream_test_paths.npz") as stored:
        real = [stored[name].tobytes() for name in sorted(stored.files) if name.endswith("_file")][::12]
    return tuple(bytes([i % 8]) + data for i, data in enumerate(made + real))


def write_damaged(target: str, seed: int, count: int, folder: Path) -> list[Path]:
    """``count`` files in ``folder``, each after up to four edits."""
    rng, whole = random.Random(seed), seeds(target)
    files = [folder / f"{target}-{seed}-{i}" for i in range(count)]
    for i, file in enumerate(files):
        data = whole[i % len(whole)]
        edits = [(rng.choice(EDITS), rng.randrange(10**6), rng.randrange(10**6)) for _ in range(rng.randint(0, 4))]
        if target == "manifest" and i // len(whole) % 2:
            file.write_text(mutate_json(data.decode(), edits))
        else:
            file.write_bytes(mutate(data, edits))
    return files

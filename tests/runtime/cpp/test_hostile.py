"""Damaged manifests, images and models under AddressSanitizer and UBSan: an error, never more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from cpp import built, run
from fuzz_targets import EDITS, mutate, mutate_json
from hostile import tiny_manifest, tiny_model
from support import ASSETS

from denseport.runtime.media.images import decode_image

EACH = 400  # files


def images() -> Iterator[bytes]:
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    for ending in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".ppm"):
        done, data = cv2.imencode(ending, image)
        assert done and decode_image(data.tobytes(), ending) is not None
        yield b"\x01" + data.tobytes()
    for index in range(2):
        with np.load(ASSETS / "upstream_test_paths.npz") as stored:
            files = sorted(name for name in stored.files if name.endswith("_file"))
            yield b"\x01" + stored[files[17 * index]].tobytes()


def seeds(target: str) -> list[bytes]:
    if target == "manifest":
        return [tiny_manifest().to_json().encode()]
    return list(images()) if target == "image" else [tiny_model().SerializeToString()]


@pytest.mark.parametrize("target", ["manifest", "image", "model"])
def test_damaged_files_are_refused_and_nothing_else_happens(target: str, tmp_path: Path) -> None:
    program = built(f"sanitized/fuzz/fuzz_{target}")
    rng, kept = random.Random(0), seeds(target)
    files = [tmp_path / f"{i}" for i in range(EACH)]
    for i, file in enumerate(files):
        data = kept[i % len(kept)]
        edits = [(rng.choice(EDITS), rng.randrange(10**6), rng.randrange(10**6)) for _ in range(rng.randint(0, 4))]
        if target == "manifest" and i % 2:
            file.write_text(mutate_json(data.decode(), edits))
        else:
            file.write_bytes(mutate(data, edits))
    assert run(program, *files).returncode == 0

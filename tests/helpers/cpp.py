"""The C++ runtime: its programs, its C functions, and how masks are compared with Python's."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from denseport.runtime.bundle.artifact import FOR_OPENVINO
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.pipeline.results import Segmentation

__all__ = [
    "OPENVINO",
    "Library",
    "assert_same_mask",
    "built",
    "for_openvino",
    "read_mask",
    "run",
    "segment",
]

OPENVINO = "fp32.openvino"
TIE = 1e-3  # between the probabilities of the two likeliest classes: rounding may decide either way
PATIENCE = 600.0  # seconds
# What OpenVINO and TBB keep to the end is no leak of ours.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def built(name: str) -> Path:
    """A file of the builds, such as "release/denseport-cpp"; without it the test is skipped."""
    folder = os.environ.get("DENSEPORT_CPP")
    if folder is None:
        pytest.skip("DENSEPORT_CPP names no builds of the C++ runtime: scripts/test --cpp makes them")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} was not built: scripts/cpp --sanitize builds it")
    return path


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What the program did; a crash, or what a sanitizer found, fails the test."""
    command = [program, *map(str, arguments)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    assert done.returncode in (0, 2, 3), f"exit code {done.returncode}: {done.stderr[-4000:]}"
    return done


def segment(
    program: Path, bundle: Path, images: Sequence[Path], folder: Path, *options: str
) -> list[NDArray[np.unsignedinteger[Any]]]:
    """The masks of images, whose names differ."""
    done = run(program, "run", bundle, *images, "-o", folder, "--threads", "1", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return [read_mask(folder / f"{image.stem}.png") for image in images]


def read_mask(file: Path) -> NDArray[np.unsignedinteger[Any]]:
    """The values of a mask, read by Pillow: OpenCV 5 gives the colours of an indexed PNG."""
    with Image.open(file) as image:
        return np.asarray(image)


def assert_same_mask(found: NDArray[np.unsignedinteger[Any]], expected: Segmentation) -> None:
    """The classes of a result that was asked for its two likeliest, but where these are as likely."""
    assert found.shape == expected.mask.shape
    assert expected.top_scores is not None
    sure = expected.top_scores[0] - expected.top_scores[-1] > TIE
    np.testing.assert_array_equal(found[sure], expected.mask[sure])
    assert np.count_nonzero(found != expected.mask) <= 1 + 1e-3 * found.size


def for_openvino(bundle: Bundle) -> Bundle:
    """The bundle with its source as an artifact for OpenVINO too."""
    source = bundle.artifact(bundle.manifest.source)
    changed = replace(source, target=FOR_OPENVINO, made_of=bundle.manifest.source, proof=(), record={})
    bundle.add(OPENVINO, changed)
    return bundle


class _Mask(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("bytes", ctypes.c_int),
        ("pixels", ctypes.c_void_p),
    )


class Library:
    """The functions of denseport.h, called from Python."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(built("release/libdenseport.so")))
        self._library.denseport_error.restype = ctypes.c_char_p
        self._library.denseport_class_name.restype = ctypes.c_char_p
        self._library.denseport_class_name.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self._library.denseport_class_colour.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self._library.denseport_class_colour.restype = ctypes.c_uint32
        self._library.denseport_classes.argtypes = (ctypes.c_void_p,)
        self._library.denseport_close.argtypes = (ctypes.c_void_p,)
        self._library.denseport_segment.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_size_t),
            ctypes.POINTER(_Mask),
        )

    def close(self, segmenter: Any) -> None:
        self._library.denseport_close(segmenter)

    def error(self) -> str:
        return str(self._library.denseport_error().decode())

    def try_open(self, bundle: Path, artifact: str | None = None, protocol: str | None = None) -> tuple[int, Any]:
        """The code, and the segmenter where it is 0."""
        names = [None if text is None else text.encode() for text in (artifact, protocol)]
        segmenter = ctypes.c_void_p()
        code = self._library.denseport_open(str(bundle).encode(), *names, 1, ctypes.byref(segmenter))
        return code, segmenter

    @contextmanager
    def opened(self, bundle: Path, artifact: str | None = None, protocol: str | None = None) -> Iterator[Any]:
        code, segmenter = self.try_open(bundle, artifact, protocol)
        assert code == 0, self.error()
        try:
            yield segmenter
        finally:
            self.close(segmenter)

    def classes(self, segmenter: Any) -> list[tuple[str, int]]:
        count = self._library.denseport_classes(segmenter)
        names = [self._library.denseport_class_name(segmenter, i).decode() for i in range(count)]
        assert self._library.denseport_class_name(segmenter, count) is None
        return [(name, self._library.denseport_class_colour(segmenter, i)) for i, name in enumerate(names)]

    def segment(self, segmenter: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mask of an image whose rows may have gaps between them."""
        mask, (height, width) = _Mask(), image.shape[:2]
        code = self._library.denseport_segment(
            segmenter, image.ctypes.data, width, height, image.strides[0], ctypes.byref(mask)
        )
        assert code == 0, self.error()
        assert (mask.height, mask.width, mask.bytes) == (height, width, 1)
        found = np.frombuffer(ctypes.string_at(mask.pixels, height * width), np.uint8).reshape(height, width)
        self._library.denseport_free_mask(ctypes.byref(mask))
        assert mask.pixels is None
        return found

"""The C++ runtime: its programs, its C functions, and how masks are compared with Python's."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import depth_manifest, onnx_artifact
from hostile import graph
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from denseport.runtime.bundle.artifact import FOR_OPENVINO
from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.bundle.steps import Normalise
from denseport.runtime.pipeline.results import Segmentation

__all__ = [
    "OPENVINO",
    "Library",
    "assert_same_mask",
    "built",
    "colour_depth",
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


def colour_depth(folder: Path, steps: Preprocessing, weights: Sequence[float] = (1.0, 0.01, 0.0001)) -> Bundle:
    """A bundle whose depth of a pixel is a sum of the red, green and blue that the network sees there, metres."""
    folder.mkdir()
    mixing = helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1], weights)
    model = graph(helper.make_node("Conv", ["image", "w"], ["depth"], kernel_shape=[1, 1]), initializers=(mixing,))
    model.graph.output[0].name = "depth"
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    source = onnx_artifact({"model.onnx": hashlib.sha256(data).hexdigest()}, output="depth")
    artifacts, normalise = {"model.onnx": source}, Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr_to_rgb=True)
    output = DepthOutput("metres", "farther", None, "bilinear")
    manifest = depth_manifest(preprocess=(*steps, normalise), artifacts=artifacts, depth=output, patch_size=1)
    (folder / MANIFEST).write_text(manifest.to_json())
    return Bundle(folder)


class _Options(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("artifact", "protocol", "trust", "cache")),
        ("threads", ctypes.c_int),
    )


class _Mask(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("bytes", ctypes.c_int),
        ("pixels", ctypes.c_void_p),
    )


class _Depth(ctypes.Structure):
    _fields_ = (("width", ctypes.c_int), ("height", ctypes.c_int), ("values", ctypes.c_void_p))


# Arguments of the functions that take an image, but for the result.
_IMAGE = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
_TEXTS = ("error", "class_name", "unit", "larger_is")  # functions that return one


class Library:
    """The functions of denseport.h, called from Python."""

    def __init__(self) -> None:
        self._library = found = ctypes.CDLL(str(built("release/libdenseport.so")))
        for name in _TEXTS:
            self._function(name).restype = ctypes.c_char_p
        found.denseport_class_name.argtypes = (ctypes.c_void_p, ctypes.c_int)
        found.denseport_class_colour.argtypes = (ctypes.c_void_p, ctypes.c_int)
        found.denseport_class_colour.restype = ctypes.c_uint32
        for name in ("classes", "close", "close_depth", "unit", "larger_is"):
            self._function(name).argtypes = (ctypes.c_void_p,)
        found.denseport_segment.argtypes = (*_IMAGE, ctypes.POINTER(_Mask))
        found.denseport_estimate.argtypes = (*_IMAGE, ctypes.POINTER(_Depth))

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"denseport_{name}")

    def close(self, segmenter: Any, *, depth: bool = False) -> None:
        self._function("close_depth" if depth else "close")(segmenter)

    def error(self) -> str:
        return str(self._library.denseport_error().decode())

    def try_open(
        self,
        bundle: Path,
        artifact: str | None = None,
        protocol: str | None = None,
        *,
        depth: bool = False,
        **more: Path,
    ) -> tuple[int, Any]:
        """The code, and the segmenter, or depth estimator, where it is 0; ``more``: trust and cache."""
        given = {"artifact": artifact, "protocol": protocol, **more}
        texts = {name: str(value).encode() for name, value in given.items() if value is not None}
        options, segmenter = _Options(**texts, threads=1), ctypes.c_void_p()
        open_ = self._function("open_depth" if depth else "open")
        return open_(str(bundle).encode(), ctypes.byref(options), ctypes.byref(segmenter)), segmenter

    @contextmanager
    def opened(
        self,
        bundle: Path,
        artifact: str | None = None,
        protocol: str | None = None,
        *,
        depth: bool = False,
        **more: Path,
    ) -> Iterator[Any]:
        code, segmenter = self.try_open(bundle, artifact, protocol, depth=depth, **more)
        assert code == 0, self.error()
        try:
            yield segmenter
        finally:
            self.close(segmenter, depth=depth)

    def classes(self, segmenter: Any) -> list[tuple[str, int]]:
        count = self._library.denseport_classes(segmenter)
        names = [self._library.denseport_class_name(segmenter, i).decode() for i in range(count)]
        assert self._library.denseport_class_name(segmenter, count) is None
        return [(name, self._library.denseport_class_colour(segmenter, i)) for i, name in enumerate(names)]

    def meaning(self, estimator: Any) -> tuple[str, str]:
        """The unit, and what is larger."""
        return self._library.denseport_unit(estimator).decode(), self._library.denseport_larger_is(estimator).decode()

    def segment(self, segmenter: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mask of an image whose rows may have gaps between them."""
        mask = _Mask()
        self._run("segment", segmenter, image, mask)
        assert mask.bytes == 1
        found = np.frombuffer(ctypes.string_at(mask.pixels, mask.height * mask.width), np.uint8)
        shape = (mask.height, mask.width)
        self._library.denseport_free_mask(ctypes.byref(mask))
        assert mask.pixels is None
        return found.reshape(shape)

    def estimate(self, estimator: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The depths of an image, likewise."""
        depth = _Depth()
        self._run("estimate", estimator, image, depth)
        found = np.frombuffer(ctypes.string_at(depth.values, 4 * depth.height * depth.width), np.float32)
        shape = (depth.height, depth.width)
        self._library.denseport_free_depth(ctypes.byref(depth))
        assert depth.values is None
        return found.reshape(shape)

    def _run(self, name: str, model: Any, image: NDArray[np.uint8], result: Any) -> None:
        height, width = image.shape[:2]
        code = self._function(name)(model, image.ctypes.data, width, height, image.strides[0], ctypes.byref(result))
        assert code == 0, self.error()
        assert (result.height, result.width) == (height, width)

"""The C++ example runs on fakes of TensorRT and CUDA, and compiles against TensorRT's headers where they are given.

No wheel holds TensorRT's; CUDA's come with the extra ``test``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import REPO

HEADERS = "DENSEPORT_TENSORRT_INCLUDE"
SOURCE = REPO / "examples/cpp/segment.cpp"
FAKES = REPO / "tests/helpers/fake_nvinfer"
# TensorRT 11 marks parts of its own headers as deprecated.
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.mark.skipif(HEADERS not in os.environ, reason=f"{HEADERS} does not name TensorRT's and CUDA's headers")
def test_it_compiles_without_a_warning() -> None:
    folders = [f"-I{folder}" for folder in os.environ[HEADERS].split(os.pathsep)]
    command = ["g++", *FLAGS, "-fsyntax-only", *folders, SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    folders = [Path(folder) / "include" for folder in (package.submodule_search_locations or []) if package]
    if not any((folder / "cuda_runtime_api.h").exists() for folder in folders):
        pytest.skip("CUDA's headers are not installed (nvidia-cuda-runtime)")
    built = tmp_path_factory.mktemp("cpp") / "segment"
    include = [f"-isystem{folder}" for folder in folders]
    command = ["g++", *FLAGS, f"-I{FAKES}", *include, SOURCE, FAKES / "cudart.cpp", "-o", built]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


def run(program: Path, folder: Path, width: int, height: int) -> tuple[subprocess.CompletedProcess[str], np.ndarray]:
    """What it does with noise, and the image."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (folder / "engine").write_bytes(b"engine")
    (folder / "in.ppm").write_bytes(b"P6\n%d %d\n255\n" % (width, height) + image.tobytes())
    command = [program, *(folder / name for name in ("engine", "in.ppm", "out.pgm"))]
    return subprocess.run(command, capture_output=True, text=True, check=False), image


@pytest.mark.parametrize("size", [(12, 8), (32, 8), (8, 32), (8, 20), (8, 8)])
def test_landscapes_and_portraits_are_segmented(program: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """An engine of two profiles: the one that takes the image is selected."""
    width, height = size
    done, image = run(program, tmp_path, width, height)
    assert done.returncode == 0, done.stderr
    header, mask = (tmp_path / "out.pgm").read_bytes().split(b"\n255\n")
    assert header == b"P5\n%d %d" % (width // 2, height // 2)
    np.testing.assert_array_equal(
        np.frombuffer(mask, np.uint8).reshape(height // 2, width // 2), image[::2, ::2, 0] > 127
    )


def test_a_size_that_no_profile_takes_is_refused(program: Path, tmp_path: Path) -> None:
    done, _ = run(program, tmp_path, 20, 20)
    assert done.returncode == 1 and "a size outside of the engine's profiles" in done.stderr

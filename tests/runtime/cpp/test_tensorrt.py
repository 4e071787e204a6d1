"""The back end for TensorRT on fakes of TensorRT and CUDA, and its engines' records against Python's reading of them.

It compiles against TensorRT's own headers where ``DENSEPORT_TENSORRT_INCLUDE`` names them; CUDA's come with the extra
``test``.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_records import build_record
from cpp import built
from support import REPO

from denseport.runtime.bundle.engine_record import mismatch

HEADERS = "DENSEPORT_TENSORRT_INCLUDE"
SOURCES = REPO / "runtime/cpp/src"
FAKES = REPO / "tests/helpers/fake_nvinfer"
# What the back end needs of the runtime.
PARTS = (
    *("backends/tensorrt", "backends/session", "backends/engine_record", "bundle/artifact", "bundle/decode"),
    *("errors", "system/files", "system/text"),
)
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", '-DDENSEPORT_TENSORRT="tensorrt"']


def compiled(*words: object) -> None:
    found = subprocess.run(["pkg-config", "--cflags-only-I", "opencv4"], capture_output=True, text=True, check=True)
    folders = [f"-I{SOURCES}", f"-I{REPO / 'runtime/cpp/include'}", *found.stdout.split()]
    command = ["g++", *FLAGS, *folders, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cuda() -> list[str]:
    package = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    folders = [Path(folder) / "include" for folder in (package.submodule_search_locations or []) if package]
    if not any((folder / "cuda_runtime_api.h").exists() for folder in folders):
        pytest.skip("CUDA's headers are not installed (nvidia-cuda-runtime)")
    return [f"-isystem{folder}" for folder in folders]


@pytest.mark.skipif(HEADERS not in os.environ, reason=f"{HEADERS} does not name TensorRT's and CUDA's headers")
def test_it_compiles_without_a_warning() -> None:
    built("release/denseport-cpp")
    folders = [f"-isystem{folder}" for folder in os.environ[HEADERS].split(os.pathsep)]
    compiled("-fsyntax-only", *folders, SOURCES / "backends/tensorrt.cpp")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built("release/denseport-cpp")  # only where the C++ runtime is tested
    path = tmp_path_factory.mktemp("tensorrt") / "session"
    parts = [SOURCES / f"{part}.cpp" for part in PARTS]
    sources = (*parts, FAKES / "session.cpp", FAKES / "cudart.cpp")
    compiled("-O0", f"-I{FAKES}", *cuda(), *sources, "-lopencv_core", "-pthread", "-o", path)
    return path


def ran(program: Path, engine: Path, width: int, height: int) -> tuple[subprocess.CompletedProcess[bytes], np.ndarray]:
    image = np.random.default_rng(0).normal(size=(3, height, width)).astype(np.float32)
    command = [program, engine, str(width), str(height)]
    return subprocess.run(command, input=image.tobytes(), capture_output=True, check=False), image


@pytest.mark.parametrize("size", [(12, 8), (32, 8), (8, 32), (8, 8)])
def test_engines_run_under_the_profile_that_takes_the_image(
    program: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "engine").write_bytes(b"engine")
    width, height = size
    done, image = ran(program, tmp_path / "engine", width, height)
    assert done.returncode == 0 and b"TensorRT 11.1.0.106, GPU" in done.stderr, done.stderr
    twice = np.frombuffer(done.stdout, np.float32).reshape(2, 2, height // 2, width // 2)
    for logits in twice:
        assert not logits[0].any()
        np.testing.assert_array_equal(logits[1], image[0, ::2, ::2])


def test_what_does_not_run_is_refused(program: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"engine")
    done, _ = ran(program, tmp_path / "engine", 20, 20)
    assert done.returncode == 2
    assert b"built for: (N, C, H, W) in (1, 3, 8, 8..32) or (1, 3, 8..32, 8)" in done.stderr
    (tmp_path / "engine").write_bytes(b"")
    done, _ = ran(program, tmp_path / "engine", 8, 8)
    assert done.returncode == 2 and b"TensorRT cannot open it" in done.stderr
    done, _ = ran(program, tmp_path / "none", 8, 8)
    assert done.returncode == 2 and b"cannot be read: No such file" in done.stderr


def test_engines_are_compared_with_the_machine_as_in_python(program: Path, tmp_path: Path) -> None:
    versions, gpus = ("10.3.0.26", "11.1.0.106", "11.4", "12.0.1"), ((7, 5), (8, 6), (9, 0), (12, 0))
    built_for: tuple[dict[str, Any], ...] = (
        {},
        {"hardware_compatibility": "ampere_plus"},
        {"hardware_compatibility": "same_compute_capability", "targets": ("sm_120",)},
        {"targets": ("sm_86", "sm_90")},
    )
    records = [
        build_record(version=version, version_compatible=compatible, **fields)
        for version, compatible, fields in itertools.product(versions, (False, True), built_for)
    ]
    cases = list(itertools.product(records, versions, gpus))
    (tmp_path / "cases").write_text(json.dumps([(record.to_dict(), *here) for record, *here in cases]))
    done = subprocess.run([program, tmp_path / "cases"], capture_output=True, text=True, check=True)
    expected = [mismatch(*case) or "" for case in cases]
    assert done.stdout.splitlines() == expected
    assert 0 < expected.count("") < len(expected)

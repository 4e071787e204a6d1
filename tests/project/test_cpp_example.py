"""The C++ example compiles against TensorRT's and CUDA's headers, where they are given; no wheel holds them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from support import REPO

HEADERS = "DENSEPORT_TENSORRT_INCLUDE"


@pytest.mark.skipif(HEADERS not in os.environ, reason=f"{HEADERS} does not name TensorRT's and CUDA's headers")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_it_compiles_without_a_warning() -> None:
    folders = [f"-I{folder}" for folder in os.environ[HEADERS].split(os.pathsep)]
    # TensorRT 11 marks parts of its own headers as deprecated.
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-fsyntax-only"]
    source = REPO / "examples/cpp/segment.cpp"
    done = subprocess.run(["g++", *flags, *folders, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

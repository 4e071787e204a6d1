"""The Triton server of the tests, where there is one, and bundles with engines that nobody built."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from denseport.runtime.build_record import BuildRecord, Profile
from denseport.runtime.bundle import Bundle
from denseport.runtime.files import sha256_of
from denseport.runtime.manifest import Artifact


@pytest.fixture(scope="session")
def triton() -> Path:
    """The folder that scripts/triton-server made; without it the test is skipped."""
    folder = os.environ.get("DENSEPORT_TRITON")
    if not folder:
        pytest.skip("DENSEPORT_TRITON names no folder: scripts/triton-server FOLDER makes one")
    return Path(folder).resolve()


RECORD = BuildRecord(
    flavour="tensorrt",
    version="11.4.0",
    cuda="13",
    driver="13.0",
    gpu="NVIDIA A10",
    compute_capability="sm_86",
    targets=(),
    version_compatible=False,
    hardware_compatibility="none",
    profiles=(Profile((1, 3, 64, 64), (1, 3, 160, 224), (4, 3, 512, 2048)),),
    folded=False,
    optimization_level=3,
    workspace=None,
    timing_cache="none",
    types_asked={},
    types_built=None,
    types_built_note="no engine at all",
    onnx_sha256="",
    engine_sha256="",
    seconds=0.0,
    peak_host_bytes=None,
    log=(),
)


@pytest.fixture
def with_engines(sample: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """A copy of the sample with files in the place of engines: a name and the fields of its build record each."""

    def make(**engines: dict[str, object]) -> Bundle:
        folder = tmp_path / "with_engines"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sample.path, folder)
        bundle = Bundle(folder)
        for name, fields in engines.items():
            (folder / name).write_bytes(name.encode())
            record = dataclasses.replace(RECORD, **fields)  # type: ignore[arg-type]
            bundle.add(name, Artifact("engine", "fp16", {name: sha256_of(folder / name)}, record.to_dict()))
        return Bundle(folder)  # as JSON has it, without tuples

    return make

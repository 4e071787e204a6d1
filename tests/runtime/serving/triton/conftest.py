"""The Triton server of the tests, where there is one, and bundles with engines that nobody built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from build_records import build_record
from bundles import engine_artifact

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import Profile
from denseport.runtime.system.files import sha256_of


@pytest.fixture(scope="session")
def triton() -> Path:
    """The folder that scripts/triton-server made; without it the test is skipped."""
    folder = os.environ.get("DENSEPORT_TRITON")
    if not folder:
        pytest.skip("DENSEPORT_TRITON names no folder: scripts/triton-server FOLDER makes one")
    return Path(folder).resolve()


PROFILE = Profile((1, 3, 64, 64), (1, 3, 160, 224), (4, 3, 512, 2048))


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
            record = build_record(**{"profiles": (PROFILE,), **fields})
            bundle.add(name, engine_artifact(name, record, sha256_of(folder / name)))
        return Bundle(folder)  # as JSON has it, without tuples

    return make

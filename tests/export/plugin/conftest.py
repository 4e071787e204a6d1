"""The plugin's kernels, compiled by g++ once a run."""

from __future__ import annotations

import pytest
from cpu_kernels import Kernels, compile_kernels

from denseport.export.plugin import launch
from denseport.export.plugin.compile import SOURCES


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return compile_kernels(SOURCES, launch.KERNELS, tmp_path_factory.mktemp("kernels"))

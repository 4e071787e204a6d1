"""scripts/gpu-check without a GPU: it refuses, shows its plan, and its checks tell right from wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from denseport.export.plugin import launch
from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.errors import MachineError

torch = pytest.importorskip("torch")
SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPTS / "gpu-check"), *arguments],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_exits_3() -> None:
    result = run()
    assert result.returncode == 3
    assert "needs an NVIDIA GPU" in result.stderr
    assert "--dry-run" in result.stderr


def test_the_dry_run_covers_every_kernel() -> None:
    try:
        compile_ptx()
    except MachineError as error:
        pytest.skip(str(error))
    result = run("--dry-run")
    assert result.returncode == 0, result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()} == set(launch.KERNELS)


class CpuDriver:
    """Launches the CPU build of the kernels on torch's CPU tensors; ``spoil`` makes one element wrong."""

    def __init__(self, kernels: Any, spoil: bool) -> None:
        self.kernels, self.spoil = kernels, spoil

    def launch(self, plan: launch.Launch, inputs: Sequence[Any], output: Any) -> None:
        memory = [None if tensor is None else self._memory(tensor).numpy() for tensor in inputs]
        target = self._memory(output).numpy()
        target[...] = self.kernels.run(plan, memory, target.shape, target.dtype.type)
        if self.spoil:
            target.flat[target.size // 2] += 1

    @staticmethod
    def _memory(tensor: Any) -> Any:
        return tensor if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)


@pytest.mark.parametrize("spoil", [False, True])
def test_its_checks_tell_right_from_wrong(
    gpu_check: ModuleType, kernels: Any, monkeypatch: pytest.MonkeyPatch, spoil: bool
) -> None:
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check, "time_call", lambda call, sets: 0.1)
    torch.manual_seed(0)
    seen = {}
    for case in gpu_check.cases():
        small = replace(case, shape=(2, 8, 6, 8 if case.shape[3] % 8 == 0 else 7))
        if case.operator == "ResizeArgmax":
            small = replace(small, network=(12, 17), picture=(15, 22))
        seen[case.plan().kernel] = gpu_check.measure(small, CpuDriver(kernels, spoil), copy=4000.0)
    assert set(seen) == set(launch.KERNELS)
    assert {row.correct for row in seen.values()} == {not spoil}
    gpu_check.print_table(list(seen.values()))
    json.dumps([gpu_check.asdict(row) for row in seen.values()])


def test_a_nan_is_never_right(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    case = gpu_check.Case("UpsampleAdd", (1, 8, 2, 2), "f16", "linear")
    inputs = gpu_check.make_inputs(case)
    output = gpu_check.make_output(case, inputs)
    assert np.isnan(output.numpy()).all()
    assert not gpu_check.check(case, inputs, output)[1]

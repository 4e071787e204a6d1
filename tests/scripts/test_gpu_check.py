"""scripts/gpu/check without a GPU: it refuses, shows its plan, and its checks tell right from wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support import REPO

from denseport.export.plugin import launch
from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.errors import MachineError

torch = pytest.importorskip("torch")
SCRIPTS = REPO / "scripts" / "gpu"


@pytest.fixture(scope="module")
def gpu_kernels() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("gpu_kernels")


@pytest.fixture(scope="module")
def gpu_tests() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("gpu_tests")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPTS / "check"), *arguments],
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


def test_the_dry_run_covers_every_kernel(gpu_tests: ModuleType) -> None:
    try:
        compile_ptx()
    except MachineError as error:
        pytest.skip(str(error))
    result = run("--dry-run")
    assert result.returncode == 0, result.stderr
    words = [line.split() for line in result.stdout.splitlines()]
    assert {first for first, *rest in words if "grid" in rest} == set(launch.KERNELS)
    assert [second for first, second, *_ in words if first == "part"] == ["tests:", "kernels:", "images:", "models:"]
    assert [second for first, second, *_ in words if first == "test"] == list(gpu_tests.FILES)
    assert all((REPO / file).is_file() for file in gpu_tests.FILES)


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
    gpu_kernels: ModuleType, kernels: Any, monkeypatch: pytest.MonkeyPatch, spoil: bool
) -> None:
    monkeypatch.setattr(gpu_kernels, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_kernels, "time_call", lambda call, sets: 0.1)
    torch.manual_seed(0)
    seen = {}
    for case in gpu_kernels.cases():
        small = replace(case, shape=(2, 8, 6, 8 if case.shape[3] % 8 == 0 else 7))
        if case.operator == "ResizeArgmax":
            small = replace(small, network=(12, 17), image=(15, 22))
        seen[case.plan().kernel] = gpu_kernels.measure(small, CpuDriver(kernels, spoil), copy=4000.0)
    assert set(seen) == set(launch.KERNELS)
    assert {row.correct for row in seen.values()} == {not spoil}
    gpu_kernels.print_table(list(seen.values()), header=True)
    json.dumps([asdict(row) for row in seen.values()])


@pytest.mark.parametrize(("rate", "verdict"), [(0.79, "FAIL"), (0.81, "PASS")])
def test_goals_are_told(
    gpu_kernels: ModuleType, kernels: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rate: float, verdict: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(gpu_kernels, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_kernels, "time_call", lambda call, sets: 0.1)
    case = gpu_kernels.Case("UpsampleAdd", (1, 8, 6, 8), "f16", "linear", align_corners=True, goal=True)
    moved = 8 * 2 * (6 * 8 + 2 * 12 * 16)  # channels, bytes, the input's and twice the output's pixels
    row = gpu_kernels.measure(case, CpuDriver(kernels, spoil=False), copy=moved / 0.1 / 1e6 / rate)
    gpu_kernels.print_goals([row, replace(row, goal=None)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"goal {verdict}  {row.kernel}")
    assert f"{rate:.0%} of copy bandwidth (goal 80%)" in line


def test_a_nan_is_never_right(gpu_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "DEVICE", "cpu")
    case = gpu_kernels.Case("UpsampleAdd", (1, 8, 2, 2), "f16", "linear")
    inputs = gpu_kernels.make_inputs(case)
    output = gpu_kernels.make_output(case, inputs)
    assert np.isnan(output.numpy()).all()
    assert not gpu_kernels.check(case, inputs, output)[1]

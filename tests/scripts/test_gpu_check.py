"""scripts/gpu/check without a GPU: it refuses, shows its plan, and its checks tell right from wrong."""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bundles import steps
from cpu_kernels import Kernels
from fake_cuda import FakeCuda
from support import REPO

from denseport.export.models.head_spec import DPTHeadSpec
from denseport.export.models.spec import ModelSpec, ViTSpec
from denseport.export.plugin import launch
from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import MachineError
from denseport.runtime.pipeline import device_path

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


TINY = ModelSpec(
    ViTSpec(16, 4, 2, 32, out_indices=(0, 1, 2, 3), pos_grid=(2, 2), norm_eps=1e-5),
    None,
    DPTHeadSpec(8, (4, 4, 8, 8)),
    num_classes=7,
)


@pytest.fixture
def on_fakes(
    kernels: Kernels, image_kernels: Kernels, gpu_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModuleType, FakeCuda]:
    """gpu_check with a tiny network, small images, the CPU's kernels and a fake of CUDA."""
    monkeypatch.syspath_prepend(SCRIPTS)
    cuda = FakeCuda(monkeypatch, image_kernels)
    names = ("gpu_check", "gpu_images", "gpu_models", "gpu_backends", "gpu_torch", "gpu_tests")
    gpu_check, images, models, back_ends, gpu_torch, tests = (importlib.import_module(name) for name in names)
    case = gpu_kernels.Case("UpsampleAdd", (1, 8, 6, 8), "f16", "linear", align_corners=True, goal=True)

    def pytorch(subject: Any, *, graphs: bool) -> Any:
        module = copy.deepcopy(subject.module).half()
        return gpu_torch.TorchDeviceSession(
            module, graphs=graphs, cuda=cuda, queue=lambda stream, work: cuda.enqueue(stream.handle, work)
        )

    ways = [
        replace(way, require=lambda: None, open=partial(pytorch, graphs=graphs))
        for way, graphs in zip(images.WAYS[:2], (False, True), strict=True)
    ]
    fixed = Protocol("fixed", steps(size=(48, 32), keep_ratio=False), images.protocol().inference)
    published = importlib.import_module("denseport.export.models.presets").PRESETS
    for module, name, value in (
        (gpu_check, "DEVICE", "cpu"),
        (gpu_check, "open_cuda", lambda: cuda),
        (gpu_kernels, "DEVICE", "cpu"),
        (gpu_kernels, "time_call", lambda call, sets: 0.1),
        (gpu_kernels, "copy_rate", lambda: 4000.0),
        (gpu_kernels, "cases", lambda: [case, case]),
        (gpu_kernels, "Driver", lambda ptx: CpuDriver(kernels, spoil=False)),
        (images, "WAYS", (*ways, *images.WAYS[2:])),
        (images, "IMAGES", ((20, 30),)),
        (images, "NETWORK", (32, 48)),
        (images, "ROUNDS", 2),
        (images, "CLASSES", 5),
        (images, "LOGITS", (16, 24)),
        (images, "AGREEMENT", 0.9),  # FP16 on the CPU, of random weights
        (images, "protocol", lambda: fixed),
        (models, "measure_models", partial(models.measure_models, size=32, batches=(1,), back_ends=MODEL_ROWS)),
        (models, "PRESETS", (images.PRESET,)),
        (models, "ROUNDS", 2),
        (models, "ROUND_SECONDS", 0.0),
        (tests, "FILES", ("tests/runtime/backends/test_tensorrt_gpu.py",)),
        (device_path, "image_ptx", lambda: b"PTX"),
    ):
        monkeypatch.setattr(module, name, value)
    eager = replace(back_ends.BACK_ENDS[0], seconds=0.0)
    absent = [each for each in back_ends.BACK_ENDS if each.name.startswith("TensorRT,")]
    MODEL_ROWS[:] = [eager, *absent]
    tiny = replace(published[images.PRESET], spec=TINY)
    monkeypatch.setitem(published, images.PRESET, tiny)
    return gpu_check, cuda


MODEL_ROWS: list[Any] = []


def test_the_whole_sequence(
    on_fakes: tuple[ModuleType, FakeCuda], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_check, cuda = on_fakes
    assert gpu_check.check(gpu_check.PARTS, 600.0, tmp_path / "gpu.json") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["seconds"]) == ["tests", "kernels", "images", "models"]
    assert "skipped" in found["tests"][0]["output"][-1]
    assert [row["correct"] for row in found["kernels"]] == [True, True]
    notes = {row["what"]: row["note"] for row in found["images"]}
    assert notes["PyTorch FP16"] == notes["PyTorch FP16, CUDA graphs"] == ""
    assert all(note.startswith("absent: ") for what, note in notes.items() if "Runtime" in what or "TensorRT" in what)
    assert [row["note"][:7] for row in found["models"]] == ["", "absent:"]
    assert cuda.captures == 1 and cuda.alive == 0
    with capsys.disabled():
        print("\n" + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found["seconds"].items()))


def test_without_time_every_part_says_so(
    on_fakes: tuple[ModuleType, FakeCuda], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_check, _ = on_fakes
    assert gpu_check.check(["kernels", "images", "models"], 0.0, tmp_path / "gpu.json") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["kernels"] == [] and "not run: time; 2 of 2 kernels" in capsys.readouterr().out
    assert {row["note"][:13] for row in found["images"] if row["what"].startswith("PyTorch")} == {"not run: time"}


def test_a_part_that_breaks_leaves_the_others_their_time(
    on_fakes: tuple[ModuleType, FakeCuda], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_check, _ = on_fakes

    def broken(*_: Any) -> bool:
        raise MachineError("cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setitem(gpu_check.CHECKS, "kernels", broken)
    monkeypatch.setitem(gpu_check.CHECKS, "images", lambda budget, report: True)
    assert gpu_check.check(["kernels", "images"], 60.0, tmp_path / "gpu.json") == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["broken"] == {"kernels": "MachineError: cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS"}
    assert list(found["seconds"]) == ["kernels", "images"]


def test_tests_that_take_too_long_are_stopped(gpu_tests: ModuleType, tmp_path: Path) -> None:
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\n\n\ndef test_it():\n    time.sleep(60)\n")
    row = gpu_tests.run_tests(3.0, (str(slow),))
    assert not row.passed and row.note == "stopped: they took longer than 3 s" and row.seconds < 20

"""The networks' rows of scripts/gpu/check, on the CPU with a tiny network."""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_cuda import FakeCuda
from support import REPO

from denseport.export.models.head_spec import DPTHeadSpec
from denseport.export.models.spec import ModelSpec, ViTSpec
from denseport.runtime.errors import InputError, MachineError

torch = pytest.importorskip("torch")
CPU = torch.device("cpu")
TINY = ModelSpec(
    ViTSpec(16, 4, 2, 32, out_indices=(0, 1, 2, 3), pos_grid=(2, 2), norm_eps=1e-5),
    None,
    DPTHeadSpec(8, (4, 4, 8, 8)),
    num_classes=7,
)


@pytest.fixture(autouse=True, scope="module")
def _scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "scripts" / "gpu")
        yield


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("gpu_models")
    monkeypatch.setattr(module, "ROUNDS", 2)  # FP16 is slow on a CPU
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.0)
    return module


@pytest.fixture(scope="module")
def subject(_scripts: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of batch 1; to export its graph is what takes long here."""
    models = importlib.import_module("gpu_models")
    module, image = models.random_network(TINY, CPU), models._image(1, 32, CPU)
    return models.Subject("tiny", module, image, tmp_path_factory.mktemp("subject"))


@pytest.fixture
def back_ends() -> ModuleType:
    return importlib.import_module("gpu_backends")


def rows_of(models: ModuleType, *back_ends: Any, seconds: float = 1e6, batches: tuple[int, ...] = (1,)) -> list[Any]:
    groups = models.measure_models(
        {"tiny": TINY}, CPU, models.Budget(seconds), size=32, batches=batches, back_ends=back_ends
    )
    return [row for group in groups for row in group]


def a_back_end(
    module: ModuleType, open_: Callable[..., Any], *, name: str = "planted", seconds: float = 0.0, first: bool = False
) -> Any:
    return module.BackEnd(name, "fp16", seconds, lambda: None, open_, first)


def test_onnx_runtime_agrees_with_fp32(models: ModuleType, back_ends: ModuleType, subject: Any) -> None:
    graph = a_back_end(
        back_ends,
        lambda *arguments: back_ends._onnxruntime(*arguments, providers=back_ends.CPU_TOO),
    )
    fixed = a_back_end(
        back_ends,
        lambda *arguments: back_ends._onnxruntime(*arguments, providers=back_ends.CPU_TOO, fixed=True),
    )
    for row in models._measure(subject, [graph, fixed], models.Budget(1e6), reserve=0.0):
        assert not row.note and not row.wrong and row.milliseconds > 0, row
        assert row.agreement > 0.97 and 0 < row.error < 0.1


def test_a_network_is_recorded_once_and_repeated(
    models: ModuleType, back_ends: ModuleType, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_torch import TorchDeviceSession

    cuda = FakeCuda(monkeypatch)

    def open_(subject: Any, stack: ExitStack, left: Callable[[], float]) -> Any:
        session = TorchDeviceSession(
            copy.deepcopy(subject.module), cuda=cuda, queue=lambda stream, work: cuda.enqueue(stream.handle, work)
        )
        run = back_ends.replayed(session.device_network(), subject.image, stack)

        def waited() -> Any:
            logits = run()
            cuda.finish()
            return logits

        return waited

    (row,) = models._measure(subject, [a_back_end(back_ends, open_)], models.Budget(1e6), reserve=0.0)
    assert not row.note and row.agreement == 1 and row.error == 0, row
    assert cuda.captures == 1 and cuda.launches > 5 and cuda.alive == 0


def test_pytorch_agrees_with_fp32(
    models: ModuleType, back_ends: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(back_ends, "COMPILE", {"backend": "eager", "dynamic": False})
    eager32, eager16, _, compiled = back_ends.BACK_ENDS[:4]  # the third is a CUDA graph
    rows = rows_of(models, eager32, eager16, compiled, batches=(1, 2))
    assert [(row.batch, row.back_end) for row in rows] == [
        (batch, back_end.name) for batch in (1, 2) for back_end in (eager32, eager16, compiled)
    ]
    for row in rows:
        assert not row.note and not row.wrong, row
        assert row.agreement > 0.97 and (row.error == 0) == (row.precision == "fp32"), row
        assert row.milliseconds > 0 and row.prepare_seconds > 0 and row.gpu_gib is None
        assert math.isclose(row.images_per_second, row.batch * 1000 / row.milliseconds)
    models.print_models(rows, header=True)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [["tiny", "1"]] * 3 + [
        ["tiny", "2"]
    ] * 3
    json.dumps([vars(row) for row in rows], allow_nan=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_back_ends_are_named(
    models: ModuleType, back_ends: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(models, *back_ends.BACK_ENDS[4:])
    assert [row.back_end for row in rows] == [
        "ONNX Runtime CUDA",
        "ONNX Runtime CUDA, CUDA graph",
        "ONNX Runtime TensorRT, CUDA graph",
        "TensorRT, CUDA graph",
        "TensorRT + plugin, CUDA graph",
        "TensorRT-RTX, CUDA graph",
    ]
    assert all(row.note.startswith("absent: ") and row.milliseconds is None and not row.wrong for row in rows)
    assert "CUDAExecutionProvider" in rows[0].note and "TensorrtExecutionProvider" in rows[2].note
    models.print_models(rows, header=False)
    printed = capsys.readouterr().out
    assert all(row.note in printed for row in rows)


def test_what_does_not_fit_into_the_time_is_named(models: ModuleType, back_ends: ModuleType) -> None:
    """An engine of the first batch may not take the time that PyTorch needs for the second."""
    opened = []

    def open_(subject: Any, stack: ExitStack, left: Callable[[], float]) -> Any:
        opened.append((subject.shape[0], left()))
        return back_ends._eager(subject, stack, left, half=False)

    pytorch = a_back_end(back_ends, open_, name="PyTorch", seconds=60, first=True)
    engine = a_back_end(back_ends, open_, name="engine", seconds=50)
    rows = rows_of(models, pytorch, engine, seconds=100, batches=(1, 2))
    assert [row.note.partition(";")[0] for row in rows] == ["", "not run: time", "", ""]
    assert [batch for batch, _ in opened] == [1, 2, 2]
    rows = rows_of(models, pytorch, seconds=50)
    assert rows[0].note.startswith("not run: time; ") and "may take 60 s" in rows[0].note


def test_refusals_and_failures_are_rows(models: ModuleType, back_ends: ModuleType) -> None:
    def raising(error: Exception) -> Any:
        def open_(*_: Any) -> Any:
            raise error

        return a_back_end(back_ends, open_)

    refused, broken, failed, late = rows_of(
        models,
        raising(InputError("no target sm_90")),
        raising(MachineError("TensorRT could not run the engine")),
        raising(ValueError("first\nsecond")),
        raising(back_ends.TimeUp()),
    )
    assert (refused.note, refused.wrong) == ("refused: no target sm_90", False)
    assert (broken.note, broken.wrong) == ("failed: TensorRT could not run the engine", True)
    assert (failed.note, failed.wrong) == ("failed: ValueError: first", True)
    assert (late.note, late.wrong) == ("not run: time; it ran out in the middle", False)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_collapse_is_wrong(models: ModuleType, back_ends: ModuleType, value: float) -> None:
    def open_(subject: Any, *_: Any) -> Any:
        logits = torch.full_like(subject.new_output(), value)
        logits[:, 6] += 1  # one class everywhere
        return lambda: logits

    (row,) = rows_of(models, a_back_end(back_ends, open_))
    assert row.wrong and row.agreement < 0.95 and not row.error < 0.5
    assert not row.note and row.milliseconds is not None


def test_rounds_are_interleaved(models: ModuleType) -> None:
    calls: list[str] = []
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]
    times = models.interleaved_times(runs, CPU, rounds=3, seconds=0.0)
    assert "".join(calls) == "aaabbb" + "ab" * 3  # three calls to see how long one takes, then a call a round
    assert len(times) == 2 and all(time > 0 for time in times)


def test_rtx_is_asked_for_the_gpu_here_before_a_graph_is_made(
    models: ModuleType, back_ends: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    capability = (9, 0)
    monkeypatch.setattr(back_ends, "open_cuda", lambda: SimpleNamespace(device=SimpleNamespace(capability=capability)))
    rtx = back_ends.BACK_ENDS[-1]
    monkeypatch.setattr(back_ends.Subject, "graph", lambda subject: pytest.fail("a graph was made"))
    (row,) = rows_of(models, rtx)
    assert row.note.startswith("refused: TensorRT-RTX") and "no target 'sm_90'" in row.note


def test_a_build_stops_when_the_time_is_up(
    back_ends: ModuleType, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    monkeypatch.setattr(back_ends, "open_cuda", lambda: SimpleNamespace(device=SimpleNamespace(capability=(8, 6))))
    with ExitStack() as stack:
        with pytest.raises(back_ends.TimeUp):
            back_ends._engine(subject, stack, lambda: -1.0, flavour="tensorrt_rtx")
        with pytest.raises(MachineError):  # it was built; to run it takes a GPU
            back_ends._engine(subject, stack, lambda: 1e6, flavour="tensorrt_rtx")
    assert [path.name for path in subject.folder.glob("*.engine")] == ["tensorrt_rtx.native.1.engine"]


def test_the_report_is_written_at_once(tmp_path: Path) -> None:
    gpu_check = importlib.import_module("gpu_check")
    report = gpu_check.Report(tmp_path / "gpu.json")
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written == report.content
    assert written["machine"]["packages"]["torch"] == torch.__version__
    assert all(written[part] == [] for part in gpu_check.PARTS)

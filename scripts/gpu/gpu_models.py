"""Time whole networks on a GPU: DPT in FP16 at 512 x 512, on PyTorch and on every back end that is installed.

Weights are random: they change neither the work nor the time. What is right is measured all the same, as the share of
pixels whose class is that of PyTorch in FP32, and as the largest difference of a logit, so that a collapse shows.

All back ends of one network and batch are open together and timed in turns, so that a GPU that slows down with its
temperature slows all of them. A back end that is not there, refuses or does not fit into the time is named with the
reason; its row has no figures. Used by gpu_check.py.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_backends import BACK_ENDS, BackEnd, Subject, note_of

from denseport.export.models.spec import ModelSpec
from denseport.runtime.errors import MachineError

if TYPE_CHECKING:
    import torch

PRESETS = ("dpt_vit-b16_160k", "dpt_vit-l16_160k")
SIZE = 512
BATCHES = (1, 8)
ROUNDS = 10
ROUND_SECONDS = 0.1  # of one back end in one round
AGREEMENT = 0.95  # plain FP16 of ViT-B with random weights has 0.9988; a collapsed network next to nothing


@dataclass(frozen=True)
class ModelRow:
    """One network, batch and back end. Figures are None where ``note`` says why there are none."""

    model: str
    batch: int
    back_end: str
    precision: str
    milliseconds: float | None = None  # a batch: the median over rounds
    images_per_second: float | None = None
    agreement: float | None = None  # share of pixels with the class of PyTorch in FP32
    error: float | None = None  # largest difference of a logit, in standard deviations of PyTorch's logits in FP32
    gpu_gib: float | None = None  # that opening and warming up took: weights, activations and scratch memory
    prepare_seconds: float | None = None  # to compile, build or load
    note: str = ""  # "absent: …", "refused: …", "failed: …" or "not run: …"

    @property
    def wrong(self) -> bool:
        """Whether a back end that is there fails or computes something else; an absent one or a refusal is not."""
        return self.note.startswith("failed") or (self.agreement is not None and not self.agreement >= AGREEMENT)


class Budget:
    """Seconds that are left, of so many from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def measure_models(
    specs: dict[str, ModelSpec],
    device: torch.device,
    budget: Budget,
    *,
    size: int = SIZE,
    batches: Sequence[int] = BATCHES,
    back_ends: Sequence[BackEnd] = BACK_ENDS,
) -> Iterator[list[ModelRow]]:
    """The rows of each network and batch as they are done, one for each back end.

    Engines are built only in time that PyTorch's rows of later networks and batches do not need.
    """
    later = len(specs) * len(batches)
    always = sum(back_end.seconds for back_end in back_ends if back_end.first)
    for name, spec in specs.items():
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            module = random_network(spec, device)
            for batch in batches:
                later -= 1
                subject = Subject(name, module, _image(batch, size, device), Path(folder))
                yield _measure(subject, back_ends, budget, reserve=later * always)
            del module, subject


def random_network(spec: ModelSpec, device: torch.device) -> torch.nn.Module:
    import torch

    from denseport.export.models.segmentor import build

    torch.manual_seed(0)
    with torch.device(device):
        return build(spec).requires_grad_(False)


def _image(batch: int, size: int, device: torch.device) -> torch.Tensor:
    import torch

    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(batch, 3, size, size, device=device, generator=generator)


def _measure(subject: Subject, back_ends: Sequence[BackEnd], budget: Budget, reserve: float) -> list[ModelRow]:
    import torch

    rows, runs = [], {}
    with ExitStack() as stack:
        with torch.inference_mode():
            expected = subject.module(subject.image)
        for index, back_end in enumerate(back_ends):
            row, run = _open(back_end, subject, expected, stack, budget, 0.0 if back_end.first else reserve)
            rows.append(row)
            if run is not None:
                runs[index] = run
        times = interleaved_times(list(runs.values()), subject.image.device, ROUNDS, ROUND_SECONDS)
    for index, milliseconds in zip(runs, times, strict=True):
        figures = {"milliseconds": milliseconds, "images_per_second": len(subject.image) * 1e3 / milliseconds}
        rows[index] = ModelRow(**vars(rows[index]) | figures)
    _empty_cache(subject.image.device)
    return rows


def _open(
    back_end: BackEnd, subject: Subject, expected: torch.Tensor, stack: ExitStack, budget: Budget, reserve: float
) -> tuple[ModelRow, Callable[[], torch.Tensor] | None]:
    """A row without times, and what to time; None where the row's note says why not."""
    names: dict[str, Any] = {
        "model": subject.name,
        "batch": len(subject.image),
        "back_end": back_end.name,
        "precision": back_end.precision,
    }
    try:
        back_end.require()
    except MachineError as err:
        return ModelRow(**names, note=f"absent: {err.message}"), None
    spare = budget.left - reserve
    if spare < back_end.seconds:
        note = f"not run: time; {max(spare, 0):.0f} s are left for it, it may take {back_end.seconds:.0f} s"
        return ModelRow(**names, note=note), None
    device = subject.image.device
    _empty_cache(device)
    before, started = _used(device), time.monotonic()
    try:
        run = back_end.open(subject, stack, lambda: budget.left - reserve)
        for _ in range(3):  # the second call records CUDA graphs, where there are any
            logits = run()
        _synchronize(device)
        taken = None if before is None else ((_used(device) or 0) - before) / 2**30
        agreement, error = compare(logits, expected)
    except Exception as err:  # of PyTorch, Triton, ONNX Runtime or TensorRT: the other back ends' rows are still wanted
        return ModelRow(**names, note=note_of(err)), None
    figures = {"agreement": agreement, "error": error, "gpu_gib": taken}
    return ModelRow(**names, **figures, prepare_seconds=time.monotonic() - started), run


def compare(logits: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Share of pixels with the same class, and the largest difference in ``expected``'s standard deviations."""
    agreement = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
    error = ((logits.float() - expected).abs().max() / expected.std()).item()
    return agreement, error


def interleaved_times(
    runs: Sequence[Callable[[], object]],
    device: torch.device,
    rounds: int,
    seconds: float,
) -> list[float]:
    """Milliseconds of one call of each: the median over rounds, in each of which every one runs for ``seconds``."""
    calls = [max(1, min(200, round(seconds * 1e3 / max(elapsed(run, 3, device), 1e-3)))) for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, count, found in zip(runs, calls, times, strict=True):
            found.append(elapsed(run, count, device))
    return [statistics.median(found) for found in times]


def elapsed(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Milliseconds of one of ``calls`` calls, by the clock.

    Events would need one stream for all: back ends have streams of their own, which wait for no other.
    """
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    _synchronize(device)
    return (time.perf_counter() - started) * 1e3 / calls


def _used(device: torch.device) -> int | None:
    """Bytes in use on the GPU, by whomever; None on the CPU."""
    import torch

    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)


def _empty_cache(device: torch.device) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def print_models(rows: Sequence[ModelRow], *, header: bool) -> None:
    if header:
        print(
            f"\n{'network':<18} {'batch':>5}  {'back end':<33} {'type':<5} {'ms':>8} {'images/s':>9} "
            f"{'agree':>7} {'error':>7} {'GiB':>6} {'ready s':>8}"
        )
    for row in rows:
        start = f"{row.model:<18} {row.batch:>5}  {row.back_end:<33} {row.precision:<5}"
        if row.milliseconds is None:
            print(f"{start} {row.note}", flush=True)
            continue
        memory = "" if row.gpu_gib is None else f"{row.gpu_gib:.2f}"
        print(
            f"{start} {row.milliseconds:>8.3f} {row.images_per_second:>9.1f} {row.agreement:>7.2%} {row.error:>7.1e} "
            f"{memory:>6} {row.prepare_seconds:>8.1f}{'  WRONG' if row.wrong else ''}",
            flush=True,
        )

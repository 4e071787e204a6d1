"""Check and time the fused kernels on a GPU, against torch and against the GPU's own copy bandwidth.

Every kernel is launched from the PTX that goes into engines, with the numbers of the launch plan, through the
CUDA driver. Used by gpu_check.py.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from denseport.export.plugin import launch
from denseport.export.plugin.compile import single_kernel
from denseport.runtime.backends.cuda.module import Module

if TYPE_CHECKING:
    import torch

DEVICE = "cuda"
ELEMENT_BYTES = {"f32": 4, "f16": 2}
COPY_GOAL = 0.8  # UpsampleAdd: of the copy bandwidth
SPEEDUP_GOAL = 10.0  # UpsampleArgmax: over torch's pair
READ_GOAL = 3.0  # UpsampleArgmax: times the time to read the input once


@dataclass(frozen=True)
class Case:
    """One kernel at one size."""

    operator: Literal["UpsampleAdd", "UpsampleArgmax", "ResizeArgmax"]
    shape: tuple[int, int, int, int]  # of the first input
    precision: launch.Precision = "f16"
    variant: str = ""  # UpsampleAdd: the layout; UpsampleArgmax: the strip
    scale: int = 2
    align_corners: bool = False  # UpsampleAdd
    network: tuple[int, int] = (0, 0)  # ResizeArgmax
    image: tuple[int, int] = (0, 0)  # ResizeArgmax
    goal: bool = False  # whether a speed goal is set for this size

    @property
    def output_size(self) -> tuple[int, int]:
        if self.operator == "ResizeArgmax":
            return self.image
        return self.scale * self.shape[2], self.scale * self.shape[3]

    def plan(self) -> launch.Launch:
        batch, channels, height, width = self.shape
        if self.operator == "UpsampleAdd":
            layout: launch.Layout = "hwc8" if self.variant == "hwc8" else "linear"
            return launch.upsample_add(
                *self.shape, precision=self.precision, layout=layout, align_corners=self.align_corners
            )
        if self.operator == "UpsampleArgmax":
            strip: launch.Strip = "slim" if self.variant == "slim" else "wide"
            return launch.upsample_argmax(*self.shape, precision=self.precision, scale=self.scale, strip=strip)
        return launch.resize_argmax(
            batch, channels, (height, width), self.network, self.image, precision=self.precision
        )

    def input_bytes(self) -> int:
        """Bytes of the first input, each read once."""
        batch, channels, height, width = self.shape
        return batch * channels * height * width * ELEMENT_BYTES[self.precision]

    def least_bytes(self) -> int:
        """Bytes that must move: each input read once, the output written once."""
        outputs = self.shape[0] * self.output_size[0] * self.output_size[1]
        if self.operator == "UpsampleAdd":
            return self.input_bytes() + 2 * outputs * self.shape[1] * ELEMENT_BYTES[self.precision]
        return self.input_bytes() + 4 * outputs


def cases() -> list[Case]:
    """The goals' sizes first, then each other kernel, odd sizes and batch 1."""
    fusion, logits = (8, 256, 128, 128), (8, 150, 256, 256)
    add: list[Case] = [
        Case("UpsampleAdd", fusion, "f16", "linear", align_corners=True, goal=True),
        Case("UpsampleAdd", fusion, "f16", "hwc8", align_corners=True, goal=True),
        Case("UpsampleAdd", fusion, "f32", "linear", align_corners=True),
        Case("UpsampleAdd", fusion, "f16", "linear"),
        Case("UpsampleAdd", fusion, "f16", "hwc8"),
        Case("UpsampleAdd", fusion, "f32", "linear"),
        *(Case("UpsampleAdd", (8, 256, 128, width), "f16", "linear", align_corners=True) for width in (43, 86, 172)),
        Case("UpsampleAdd", (1, 256, 128, 128), "f16", "linear", align_corners=True),
    ]
    argmax = [
        Case(
            "UpsampleArgmax",
            (8, 150, 512 // scale, 512 // scale),
            precision,
            strip,
            scale,
            goal=(precision, scale) == ("f16", 2),
        )
        for precision in ("f16", "f32")
        for scale in launch.SCALES
        for strip in launch.STRIPS
    ]
    argmax += [Case("UpsampleArgmax", (1, *logits[1:]), "f16", strip) for strip in launch.STRIPS]
    argmax.append(Case("UpsampleArgmax", (8, 150, 256, 171), "f16", "wide"))
    resize = [
        Case("ResizeArgmax", logits, "f16", network=(512, 512), image=(640, 853)),
        Case("ResizeArgmax", logits, "f32", network=(512, 512), image=(640, 853)),
        Case("ResizeArgmax", (1, 150, 256, 342), "f16", network=(512, 683), image=(1536, 2049)),
    ]
    return add + argmax + resize


@dataclass(frozen=True)
class Row:
    """One measured case; times in milliseconds, rates in GB/s, copies counting bytes read and written."""

    operator: str
    kernel: str
    shape: str
    milliseconds: float
    rate: float
    copy_fraction: float
    reads: float  # time, in times that reading the first input once would take at the copy rate
    torch_milliseconds: float
    speedup: float
    error: str  # what was compared, and how far apart
    correct: bool
    goal: bool | None  # None: no goal for this size


class Driver:
    """Kernels from PTX, launched on torch's current stream."""

    def __init__(self, ptx: bytes) -> None:
        self._ptx = ptx
        self._modules: dict[str, Module] = {}

    def launch(self, plan: launch.Launch, inputs: Sequence[torch.Tensor | None], output: torch.Tensor) -> None:
        import torch

        if plan.kernel not in self._modules:
            self._modules[plan.kernel] = Module(single_kernel(self._ptx, plan.kernel))
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in inputs]
        stream = torch.cuda.current_stream().cuda_stream
        self._modules[plan.kernel].launch(plan, addresses, output.data_ptr(), stream)


def make_inputs(case: Case) -> list[torch.Tensor]:
    """Fresh random inputs; hwc8 as torch's channels_last, which is the same where eight divides C."""
    import torch

    dtype = torch.float16 if case.precision == "f16" else torch.float32
    shapes = [case.shape]
    if case.operator == "UpsampleAdd":
        shapes.append((*case.shape[:2], *case.output_size))
    memory_format = torch.channels_last if case.variant == "hwc8" else torch.contiguous_format
    return [torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=memory_format) for shape in shapes]


def make_output(case: Case, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Poisoned, so that an element that is not written shows."""
    import torch

    if case.operator == "UpsampleAdd":
        return torch.full_like(inputs[1], torch.nan)
    return torch.full((case.shape[0], *case.output_size), -1, device=DEVICE, dtype=torch.int32)


def torch_pair(case: Case, inputs: list[torch.Tensor]) -> torch.Tensor:
    """What the kernel replaces, in torch's own operations and the inputs' type."""
    from torch.nn.functional import interpolate

    if case.operator == "UpsampleAdd":
        return interpolate(inputs[0], case.output_size, mode="bilinear", align_corners=case.align_corners) + inputs[1]
    return _resized_logits(case, inputs[0]).argmax(1)


def _resized_logits(case: Case, logits: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import interpolate

    sizes = [case.network, case.image] if case.operator == "ResizeArgmax" else [case.output_size]
    for size in sizes:
        logits = interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits


def check(case: Case, inputs: list[torch.Tensor], output: torch.Tensor) -> tuple[str, bool]:
    """Compare with torch in float64, image by image; the error in words, and whether it is right."""
    if case.operator == "UpsampleAdd":
        worst = 0.0
        for image in range(case.shape[0]):
            exact = torch_pair(case, [tensor[image : image + 1].double() for tensor in inputs])
            # Half an ulp of the result, and FP32's rounding of what is added up, which is of order one.
            unit = 2.0**-11 if case.precision == "f16" else 2.0**-24
            allowed = unit * exact.abs() + 2.0**-18
            ratio = ((output[image : image + 1].double() - exact).abs() / allowed).max().item()
            worst = ratio if not ratio <= worst else worst  # a NaN stays
        return f"{worst:.2f} of allowed", worst <= 1.0
    differing, wrong = 0, 0
    for image in range(case.shape[0]):
        values = _resized_logits(case, inputs[0][image : image + 1].double())
        best, expected = values.max(1)
        chosen = output[image : image + 1].long()
        in_range = (chosen >= 0) & (chosen < case.shape[1])
        value = values.gather(1, chosen.clamp(0, case.shape[1] - 1)[:, None])[:, 0]
        differing += int((chosen != expected).sum())
        wrong += int((~in_range | (best - value > 1e-5)).sum())  # nearer than that, FP32 may choose either
    return f"{differing} differ, {wrong} wrong", wrong == 0


def time_call(call: Callable[[int], object], sets: int, seconds: float = 0.3) -> float:
    """Milliseconds of ``call(i)``, i over ``sets`` inputs: the median over replays of a CUDA graph."""
    import torch

    for index in range(sets):
        call(index)
    torch.cuda.synchronize()
    calls = 4 * sets
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(calls):
            call(index % sets)
    times: list[float] = []
    while len(times) < 5 or (sum(times) < seconds * 1000 and len(times) < 200):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times[2:]) / calls


def copy_rate() -> float:
    """GB/s of a large device-to-device copy, counting bytes read and written."""
    import torch

    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / time_call(lambda _: target.copy_(source), sets=1) / 1e6


def measure(case: Case, driver: Driver, copy: float) -> Row:
    """Check the case, then time it on inputs that together exceed the GPU's L2 cache."""
    plan = case.plan()
    sets = max(2, min(32, 2**28 // case.input_bytes()))
    inputs = [make_inputs(case) for _ in range(sets)]
    outputs = [make_output(case, tensors) for tensors in inputs]
    unused = [None] * 3 if case.operator == "ResizeArgmax" else []
    driver.launch(plan, [*inputs[0], *unused], outputs[0])
    error, correct = check(case, inputs[0], outputs[0])
    ours = time_call(lambda i: driver.launch(plan, [*inputs[i], *unused], outputs[i]), sets)
    theirs = time_call(lambda i: torch_pair(case, inputs[i]), sets)
    rate, reads = case.least_bytes() / ours / 1e6, ours * copy * 1e6 / case.input_bytes()
    goal = None
    if case.goal and case.operator == "UpsampleAdd":
        goal = rate >= COPY_GOAL * copy
    elif case.goal:
        goal = theirs >= SPEEDUP_GOAL * ours and reads <= READ_GOAL
    return Row(
        operator=case.operator,
        kernel=plan.kernel,
        shape=describe(case),
        milliseconds=ours,
        rate=rate,
        copy_fraction=rate / copy,
        reads=reads,
        torch_milliseconds=theirs,
        speedup=theirs / ours,
        error=error,
        correct=correct,
        goal=goal,
    )


def describe(case: Case) -> str:
    via = f" -> {case.network[0]}x{case.network[1]}" if case.operator == "ResizeArgmax" else ""
    return "x".join(map(str, case.shape)) + via + f" -> {case.output_size[0]}x{case.output_size[1]}"


def print_table(rows: list[Row], *, header: bool) -> None:
    if header:
        first = f"{'kernel':<30} {'shape':<44} {'ms':>8} {'GB/s':>6} {'copy':>5}"
        print(first, f"{'reads':>6} {'torch ms':>9} {'x':>6}  result")
    for row in rows:
        goal = {None: "", True: ", goal met", False: ", goal missed"}[row.goal]
        print(
            f"{row.kernel:<30} {row.shape:<44} {row.milliseconds:>8.4f} {row.rate:>6.0f} "
            f"{row.copy_fraction:>5.0%} {row.reads:>6.2f} {row.torch_milliseconds:>9.4f} "
            f"{row.speedup:>6.1f}  {'ok' if row.correct else 'WRONG'} ({row.error}){goal}"
        )


def print_goals(rows: list[Row]) -> None:
    """One line for each row that a goal is set for."""
    for row in rows:
        if row.goal is None:
            continue
        if row.operator == "UpsampleAdd":
            found = f"{row.copy_fraction:.0%} of copy bandwidth (goal {COPY_GOAL:.0%})"
        else:
            found = (
                f"{row.speedup:.1f} times torch's pair (goal {SPEEDUP_GOAL:.0f}), {row.reads:.2f} times reading "
                f"the input once (goal at most {READ_GOAL:.0f})"
            )
        print(f"goal {'PASS' if row.goal else 'FAIL'}  {row.kernel}  {row.shape}: {found}")


def dry_run(ptx: bytes) -> None:
    for case in cases():
        plan = case.plan()
        single_kernel(ptx, plan.kernel)
        print(
            f"{plan.kernel:<30} {describe(case):<44} grid {plan.grid} block {plan.block} "
            f"scalars {plan.scalars} moves {case.least_bytes() / 1e6:.1f} MB"
        )

"""Check and time images on a GPU: the kernels around the network, and the whole way from an image to its mask.

The way on the device (`denseport.runtime.pipeline.device_path`) is compared with the host's, over every back end that
is installed, torch first: one network, the same session, times by the clock. Weights are random: of a mask only its
agreement with the host's counts. Used by gpu_check.py.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_backends import Subject, engine_options, note_of, require_engine, require_provider
from gpu_tests import NO_GRAPH
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.buffers import Buffers
from denseport.runtime.backends.cuda.driver import Cuda, open_cuda
from denseport.runtime.backends.cuda.kernels.launch import Launch, image_mask, resize_normalise
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE, USUAL_RESIZE
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Normalise, Resize
from denseport.runtime.errors import MachineError
from denseport.runtime.pipeline import preprocess
from denseport.runtime.pipeline.device_path import DevicePath, open_device_path
from denseport.runtime.pipeline.reduce import decide
from denseport.runtime.pipeline.resample import LogitMap, Placement, ResampleMatrix, whole_map
from denseport.runtime.pipeline.views import view_of

Size = tuple[int, int]  # height, width

PRESET = "dpt_vit-b16_160k"
NETWORK: Size = (512, 683)  # what the protocol of the published models makes of the images below
IMAGES: tuple[Size, ...] = ((480, 640), (1536, 2048))
CLASSES, LOGITS = 150, (256, 342)  # of the mask's kernel
ROUNDS = 20
AGREEMENT = 0.999  # of the masks: ties may go either way
MARGIN = 1e-4  # of logits of about 1: nearer than that, the roundings of two coordinates may choose either class
# Grey levels as they are, in the network's order.
LEVELS = (Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr_to_rgb=True),)


@dataclass(frozen=True)
class ImageRow:
    """One kernel, or one back end's way from image to mask. Figures are None where ``note`` says why."""

    what: str
    image: str
    device_ms: float | None = None
    host_ms: float | None = None
    result: str = ""  # what was compared, and how far apart
    correct: bool = True
    note: str = ""  # "absent: …", "refused: …", "failed: …" or "not run: …"


@dataclass(frozen=True)
class Way:
    """A back end whose tensors can stay on the GPU."""

    name: str
    seconds: float  # that it may take, building an engine included; a guess, on the long side
    require: Callable[[], object]  # raises MachineError where the back end is not there
    open: Callable[[Subject], Session]


def image_of(size: Size) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def measure_kernels(cuda: Cuda, ptx: bytes, images: Sequence[Size]) -> Iterator[ImageRow]:
    """The kernels alone, against the runtime's arithmetic on the CPU."""
    logits = np.random.default_rng(1).standard_normal((CLASSES, *LOGITS), np.float32)
    with cuda.current(), ExitStack() as stack:
        launcher = _Launcher(cuda, ptx, stack)
        for size in images:
            image = image_of(size)
            plan = resize_normalise(size, NETWORK, bgr_to_rgb=True)
            found, milliseconds = launcher.run(plan, [image, preprocess.levels(LEVELS)], (1, 3, *NETWORK), np.float32)
            host, expected = _timed(partial(_host_input, image))
            apart = np.abs(found - expected)
            result = f"{(apart > 0).mean():.3%} differ, by {apart.max():.0f} grey levels at most"
            yield ImageRow(plan.kernel, _name(size), milliseconds, host, result, bool(apart.max() <= 1))

            plan = image_mask(logits.shape, NETWORK, size, np.float32, np.uint8)
            mask, milliseconds = launcher.run(plan, [logits], size, np.uint8)
            logit_map = whole_map(logits, Placement(NETWORK, size))
            host, expected = _timed(partial(_mask, logit_map))
            wrong = _wrong(mask, expected, logits, size)
            result = f"{(mask != expected).mean():.3%} differ, {wrong} wrong"
            yield ImageRow(plan.kernel, _name(size), milliseconds, host, result, wrong == 0)


def _host_input(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    shown = preprocess.fit_image(image, (Resize(NETWORK[::-1], keep_ratio=False), *LEVELS))
    return preprocess.normalise(shown, LEVELS)


def _wrong(mask: NDArray[Any], expected: NDArray[Any], logits: NDArray[np.float32], size: Size) -> int:
    """Pixels whose class is further than `MARGIN` from the best; only those that differ are looked at."""
    rows, columns = (
        ResampleMatrix.linear(middle, last).after(ResampleMatrix.linear(first, middle))
        for first, middle, last in zip(LOGITS, NETWORK, size, strict=True)
    )

    def value(classes: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        total = np.zeros(len(y))
        for i in range(rows.weights.shape[1]):
            for j in range(columns.weights.shape[1]):
                taps = logits[classes, rows.start[y] + i, columns.start[x] + j]
                total += rows.weights[y, i] * columns.weights[x, j] * taps
        return total

    y, x = np.nonzero(mask != expected)
    inside = mask[y, x] < CLASSES
    y, x = y[inside], x[inside]
    return int((~inside).sum() + (value(expected[y, x], y, x) - value(mask[y, x], y, x) > MARGIN).sum())


class _Launcher:
    def __init__(self, cuda: Cuda, ptx: bytes, stack: ExitStack) -> None:
        self._cuda, self._module = cuda, cuda.load(ptx)
        stack.callback(self._module.close)
        self._stream = stack.enter_context(cuda.stream())
        self._buffers = Buffers(cuda)
        stack.callback(self._buffers.close)

    def run(
        self, plan: Launch, inputs: Sequence[NDArray[Any]], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> tuple[NDArray[Any], float]:
        """The output, and the milliseconds of one launch."""
        addresses = [self._buffers.device(f"{plan.kernel} {i}", array.nbytes) for i, array in enumerate(inputs)]
        for address, array in zip(addresses, inputs, strict=True):
            self._cuda.copy_to_device(address, array, self._stream)
        output = np.empty(shape, dtype)
        target = self._buffers.device("output", output.nbytes)

        def launches() -> None:
            for _ in range(ROUNDS):
                self._module.launch(plan, addresses, target, self._stream.handle)

        launches()
        self._cuda.synchronize(self._stream)
        started = time.perf_counter()
        launches()  # queued at once: the clock sees one wait for all of them
        self._cuda.synchronize(self._stream)
        milliseconds = 1000 * (time.perf_counter() - started) / ROUNDS
        self._cuda.copy_to_host(output, target, self._stream)
        self._cuda.synchronize(self._stream)
        return output, milliseconds


def measure_path(
    way: Way, subject: Subject, protocol: Protocol, left: float, images: Sequence[Size]
) -> Iterator[ImageRow]:
    """From image to mask over one session, on the device and on the host in turns.

    Args:
        left: seconds that there are for it.
    """
    try:
        way.require()
    except MachineError as err:
        yield ImageRow(way.name, "", note=f"absent: {err.message}")
        return
    if left < way.seconds:
        yield ImageRow(
            way.name, "", note=f"not run: time; {max(left, 0):.0f} s are left, it may take {way.seconds:.0f} s"
        )
        return
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("error", NO_GRAPH, RuntimeWarning)  # the row would be of something else
            session = way.open(subject)
            stack.callback(session.close)
            path = open_device_path(session, protocol)
            stack.callback(path.close)
            for size in images:
                yield _path_row(way.name, session, path, protocol, size)
    except Exception as err:  # of ONNX Runtime or TensorRT: the other back ends' rows are still wanted
        note = note_of(err)
        yield ImageRow(way.name, "", correct=not note.startswith("failed"), note=note)


def _path_row(name: str, session: Session, path: DevicePath, protocol: Protocol, size: Size) -> ImageRow:
    image, mask = image_of(size), np.empty(size, np.uint8)
    resized = view_of(size, protocol.preprocess).size

    def on_host() -> NDArray[Any]:
        fitted = preprocess.fit_image(image, protocol.preprocess)
        logits = session.run(preprocess.normalise(fitted, protocol.preprocess))[0]
        return decide([[whole_map(logits, Placement(resized, size))]]).mask

    def on_device() -> NDArray[Any]:
        path.paint(image, resized, mask)
        return mask

    for way in (on_host, on_device, on_device):  # the second run of a size records its graph, where there are any
        way()
    times: dict[str, list[float]] = {"host": [], "device": []}
    for _ in range(ROUNDS):
        milliseconds, expected = _timed(on_host)
        times["host"].append(milliseconds)
        milliseconds, found = _timed(on_device)
        times["device"].append(milliseconds)
    agreement = float((found == expected).mean())
    device, host = (statistics.median(times[key]) for key in ("device", "host"))
    return ImageRow(name, _name(size), device, host, f"{agreement:.3%} agree", agreement >= AGREEMENT)


def _mask(logit_map: LogitMap) -> NDArray[np.unsignedinteger[Any]]:
    return decide([[logit_map]]).mask


def _timed(work: Callable[[], NDArray[Any]]) -> tuple[float, NDArray[Any]]:
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _pytorch(subject: Subject, *, graphs: bool) -> Session:
    from gpu_torch import TorchDeviceSession

    return TorchDeviceSession(copy.deepcopy(subject.module).half(), graphs=graphs)


def _onnxruntime(subject: Subject) -> Session:
    return OnnxRuntimeSession(subject.graph(), providers=("CUDAExecutionProvider", "CPUExecutionProvider"))


def _engine(subject: Subject, *, flavour: str, graphs: bool) -> Session:
    from denseport.runtime.backends.tensorrt import TensorRTSession

    return TensorRTSession(*_built(subject, flavour), contexts=1, cuda_graphs=graphs)


@cache
def _built(subject: Subject, flavour: str) -> tuple[Path, BuildRecord]:
    from denseport.export.engine.build import build_engine

    options = engine_options(subject, flavour)  # before a graph is exported for it
    path = subject.folder / f"images.{flavour}.engine"
    return path, build_engine(subject.graph(), path, options)


_has_tensorrt, _has_rtx = (partial(require_engine, flavour) for flavour in ("tensorrt", "tensorrt_rtx"))
# Torch's needs nothing that gpu-check does not need anyway.
WAYS = (
    Way("PyTorch FP16", 15, open_cuda, partial(_pytorch, graphs=False)),
    Way("PyTorch FP16, CUDA graphs", 15, open_cuda, partial(_pytorch, graphs=True)),
    Way("ONNX Runtime CUDA", 60, partial(require_provider, "CUDAExecutionProvider"), _onnxruntime),
    Way("TensorRT", 100, _has_tensorrt, partial(_engine, flavour="tensorrt", graphs=False)),
    Way("TensorRT, CUDA graphs", 20, _has_tensorrt, partial(_engine, flavour="tensorrt", graphs=True)),
    Way("TensorRT-RTX", 100, _has_rtx, partial(_engine, flavour="tensorrt_rtx", graphs=False)),
    Way("TensorRT-RTX, CUDA graphs", 20, _has_rtx, partial(_engine, flavour="tensorrt_rtx", graphs=True)),
)


def protocol() -> Protocol:
    """Whole images, as the published models were tested."""
    return Protocol("reference", (USUAL_RESIZE, USUAL_NORMALISE), Inference())


def print_images(rows: Sequence[ImageRow], *, header: bool) -> None:
    if header:
        print(f"\n{'images':<28} {'size':<12} {'device ms':>10} {'host ms':>9}  result")
    for row in rows:
        start = f"{row.what:<28} {row.image:<12}"
        if row.device_ms is None:
            print(f"{start} {row.note}", flush=True)
            continue
        print(
            f"{start} {row.device_ms:>10.3f} {row.host_ms:>9.3f}  {'ok' if row.correct else 'WRONG'} ({row.result})",
            flush=True,
        )

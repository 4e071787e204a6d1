"""The back ends that gpu_models.py times: what each needs, and how a network is opened on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.backends.cuda.driver import open_cuda
from denseport.runtime.backends.cuda.zero_copy import View
from denseport.runtime.backends.tensorrt_library import load_library
from denseport.runtime.errors import DenseportError, InputError, MachineError

if TYPE_CHECKING:
    import torch

    from denseport.export.engine.build import EngineOptions
    from denseport.runtime.backends.cuda.device import DeviceNetwork

Run = Callable[[], "torch.Tensor"]  # the logits (N, C, h, w) of the subject's image; the next call may overwrite them
Left = Callable[[], float]  # seconds that are left
# CUDA graphs, which batch 1 needs most. Sizes are fixed, as in the engines.
COMPILE: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}


class TimeUp(Exception):
    """The time ran out while an engine was built."""


def note_of(error: Exception) -> str:
    """Why a row has no figures. A GPU that a library does not know is refused; a back end that is there, fails."""
    if isinstance(error, TimeUp):
        return "not run: time; it ran out in the middle"
    if type(error) is InputError:  # TensorRT-RTX has no Hopper; its kinds are of files
        return f"refused: {error.message}"
    if isinstance(error, DenseportError):
        return f"failed: {error.message}"
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class Subject:
    """A network in FP32 with its input, and its graphs, which are made when a back end first asks for them.

    Args:
        image: (N, 3, H, W) float32, on the module's device.
        folder: where graphs and engines go; graphs are shared by all batches of a network.
    """

    def __init__(self, name: str, module: torch.nn.Module, image: torch.Tensor, folder: Path) -> None:
        self.name, self.module, self.image, self.folder = name, module, image, folder

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, channels, height, width = self.image.shape
        return batch, channels, height, width

    def new_output(self) -> torch.Tensor:
        import torch

        batch, _, height, width = self.shape
        spec: Any = self.module.spec
        return torch.empty(
            (batch, spec.num_classes, height // spec.stride, width // spec.stride), device=self.image.device
        )

    def graph(self) -> Path:
        """FP16 with FP32 islands, as ``denseport build --precision fp16`` types it; input and output float32."""
        from denseport.export.entrance.torch_to_onnx import export_onnx
        from denseport.export.graph.model import read_model, save_model
        from denseport.export.graph.precision import set_types

        typed = self.folder / "fp16.onnx"
        if not typed.exists():
            export_onnx(copy.deepcopy(self.module).cpu(), self.folder / "model.onnx")
            model = read_model(self.folder / "model.onnx")
            set_types(model, "fp16")
            save_model(model, typed)
        return typed

    def fixed_graph(self) -> Path:
        """The same for this one size: nothing in it computes shapes, which CUDA graphs cannot hold."""
        import onnx_ir as ir

        from denseport.export.graph.fold import fold

        fixed = self.folder / f"fp16.fixed.{self.shape[0]}.onnx"
        if not fixed.exists():
            model = ir.load(self.graph())
            fold(model, self.shape)
            ir.save(model, fixed)
        return fixed

    def fused_graph(self) -> Path:
        """The same with the plugin's operators in it."""
        import onnx_ir as ir

        from denseport.export.graph.fusion import fuse

        fused = self.folder / "fp16.fused.onnx"
        if not fused.exists():
            model = ir.load(self.graph())
            fuse(model)
            ir.save(model, fused)
        return fused


@dataclass(frozen=True)
class BackEnd:
    """One way to run a network."""

    name: str
    precision: str  # "fp32" or "fp16"
    seconds: float  # that opening, warming up and timing ViT-L may take; a guess, on the long side
    require: Callable[[], None]  # raises MachineError where the back end is not there
    open: Callable[[Subject, ExitStack, Left], Run]  # the stack closes it
    first: bool = False  # whether time is kept for it: PyTorch, which all others are compared with


def _nothing() -> None:
    """PyTorch is there: gpu-check does not start without it."""


def _eager(subject: Subject, stack: ExitStack, left: Left, *, half: bool) -> Run:
    import torch

    module = copy.deepcopy(subject.module)  # its memory is in the row
    if half:
        module.half()

    def run() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(subject.image.half() if half else subject.image)
        return logits

    return run


def _recorded(subject: Subject, stack: ExitStack, left: Left) -> Run:
    """Eager, as one CUDA graph: what the compiler's graphs are to be compared with."""
    import torch

    run = _eager(subject, stack, left, half=True)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # the first run chooses kernels, which may not happen while it is recorded
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return logits

    return replay


def _compiled(subject: Subject, stack: ExitStack, left: Left) -> Run:
    import torch

    module = copy.deepcopy(subject.module).half()
    torch._dynamo.reset()  # a new size is a new network here, no reason to compile for all sizes
    compiled = torch.compile(module, **COMPILE)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = compiled(subject.image.half())
        return logits

    return run


def require_provider(provider: str) -> None:
    try:
        import onnxruntime
    except ImportError as err:
        raise MachineError("ONNX Runtime is not installed") from err
    providers = onnxruntime.get_available_providers()
    if provider not in providers:
        raise MachineError(f"this ONNX Runtime has no {provider}; it has {', '.join(providers)}")


def _onnxruntime(
    subject: Subject,
    stack: ExitStack,
    left: Left,
    *,
    providers: list[tuple[str, dict[str, str]]],
    fixed: bool = False,
) -> Run:
    """Input and output stay on the device, as PyTorch's do.

    Args:
        fixed: take the graph of one size.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = subject.fixed_graph() if fixed else subject.graph()
    # The fallback would go on with another provider, and print so.
    session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    wanted, got = providers[0][0], session.get_providers()[0]
    if got != wanted:
        raise MachineError(f"ONNX Runtime could not start {wanted} and took {got}")
    output = subject.new_output()
    binding = session.io_binding()
    place = (subject.image.device.type, subject.image.device.index or 0, np.float32)
    binding.bind_input("image", *place, subject.shape, subject.image.data_ptr())
    binding.bind_output("logits", *place, tuple(output.shape), output.data_ptr())

    def run() -> torch.Tensor:
        session.run_with_iobinding(binding)
        return output

    return run


def require_engine(flavour: str) -> None:
    load_library(flavour)
    open_cuda()


def _engine(subject: Subject, stack: ExitStack, left: Left, *, flavour: str, plugin: bool = False) -> Run:
    from denseport.export.engine.build import build_engine
    from denseport.runtime.backends.tensorrt import TensorRTSession

    options = engine_options(subject, flavour)  # before a graph is exported for it
    graph = subject.fused_graph() if plugin else subject.graph()

    def stop_in_time(done: int, total: int, note: str = "") -> None:
        if left() <= 0:
            raise TimeUp

    path = subject.folder / f"{flavour}.{'plugin' if plugin else 'native'}.{subject.shape[0]}.engine"
    record = build_engine(graph, path, options, progress=stop_in_time)
    session = stack.enter_context(TensorRTSession(path, record, contexts=1))
    return replayed(session.device_network(), subject.image, stack)


def replayed(network: DeviceNetwork, image: torch.Tensor, stack: ExitStack) -> Run:
    """A back end's network as one CUDA graph on memory that stays, as the compiled PyTorch beside it.

    Raises:
        MachineError: it cannot be recorded.
    """
    import numpy as np
    from gpu_torch import finished, tensor_of

    finished(image)
    cuda, results = network.cuda, list[View]()
    source = View(image.data_ptr(), tuple(image.shape), np.dtype(np.float32), None, image)
    stack.enter_context(cuda.current())
    slot = network.new_slot()
    stack.callback(slot.close)
    slot.infer(source)  # takes the memory, which may not happen while work is recorded
    cuda.synchronize(slot.stream)
    if not slot.capturable():
        raise MachineError("its work cannot be recorded as a CUDA graph after the first run")
    graph = stack.enter_context(cuda.capture(slot.stream, lambda: results.append(slot.infer(source))))
    logits = tensor_of(results[0], on_gpu=image.is_cuda)

    def run() -> torch.Tensor:
        graph.launch()
        return logits

    return run


def engine_options(subject: Subject, flavour: str) -> EngineOptions:
    """An engine of the subject's one size, for the GPU here.

    Raises:
        InputError: this TensorRT-RTX cannot build for that GPU.
    """
    from denseport.export.engine.build import EngineOptions, check_builder
    from denseport.export.engine.profile import profile_of
    from denseport.runtime.bundle.engine_record import sm_name

    targets = (sm_name(open_cuda().device.capability),) if flavour == "tensorrt_rtx" else ()
    options = EngineOptions(flavour, (profile_of(*[subject.shape] * 3),), targets=targets)
    check_builder(options)
    return options


CPU_TOO: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
# As the product opens it: a search for the best convolution would run at every size, and TF32 is no FP32.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
CUDA: list[tuple[str, dict[str, str]]] = [("CUDAExecutionProvider", CUDA_OPTIONS), *CPU_TOO]
CUDA_GRAPH = [("CUDAExecutionProvider", CUDA_OPTIONS | {"enable_cuda_graph": "1"}), *CPU_TOO]
TENSORRT_GRAPH = [("TensorrtExecutionProvider", {"trt_fp16_enable": "1", "trt_cuda_graph_enable": "1"}), *CUDA]

_has_cuda = partial(require_provider, "CUDAExecutionProvider")
_has_tensorrt, _has_rtx = (partial(require_engine, flavour) for flavour in ("tensorrt", "tensorrt_rtx"))
# FP16 ones repeat a CUDA graph, as the compiled PyTorch does, but for two that show what it brings.
BACK_ENDS = (
    BackEnd("PyTorch eager", "fp32", 4, _nothing, partial(_eager, half=False), first=True),
    BackEnd("PyTorch eager", "fp16", 4, _nothing, partial(_eager, half=True), first=True),
    BackEnd("PyTorch eager, CUDA graph", "fp16", 4, _nothing, _recorded, first=True),
    BackEnd("PyTorch compiled, reduce-overhead", "fp16", 45, _nothing, _compiled, first=True),
    BackEnd("ONNX Runtime CUDA", "fp16", 40, _has_cuda, partial(_onnxruntime, providers=CUDA)),
    BackEnd(
        "ONNX Runtime CUDA, CUDA graph", "fp16", 40, _has_cuda, partial(_onnxruntime, providers=CUDA_GRAPH, fixed=True)
    ),
    BackEnd(
        "ONNX Runtime TensorRT, CUDA graph",
        "fp16",
        150,
        partial(require_provider, "TensorrtExecutionProvider"),
        partial(_onnxruntime, providers=TENSORRT_GRAPH, fixed=True),
    ),
    BackEnd("TensorRT, CUDA graph", "fp16", 120, _has_tensorrt, partial(_engine, flavour="tensorrt")),
    BackEnd(
        "TensorRT + plugin, CUDA graph", "fp16", 120, _has_tensorrt, partial(_engine, flavour="tensorrt", plugin=True)
    ),
    BackEnd("TensorRT-RTX, CUDA graph", "fp16", 120, _has_rtx, partial(_engine, flavour="tensorrt_rtx")),
)

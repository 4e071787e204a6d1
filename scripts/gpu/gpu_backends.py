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
from denseport.runtime.backends.tensorrt_library import load_library
from denseport.runtime.errors import MachineError

if TYPE_CHECKING:
    import torch

    from denseport.export.engine.build import EngineOptions

Run = Callable[[], "torch.Tensor"]  # the logits (N, C, h, w) of the subject's image; the next call may overwrite them
Left = Callable[[], float]  # seconds that are left
# CUDA graphs, which batch 1 needs most. Sizes are fixed, as in the engines.
COMPILE: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}


class TimeUp(Exception):
    """The time ran out while an engine was built."""


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


def _onnxruntime(subject: Subject, stack: ExitStack, left: Left, *, providers: list[tuple[str, dict[str, str]]]) -> Run:
    """Input and output stay on the device, as PyTorch's do."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(subject.graph(), options, providers=providers)
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
    output = subject.new_output()

    def run() -> torch.Tensor:
        session.run_device(subject.image, output)
        return output

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


CUDA: list[tuple[str, dict[str, str]]] = [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
BACK_ENDS = (
    BackEnd("PyTorch eager", "fp32", 4, _nothing, partial(_eager, half=False), first=True),
    BackEnd("PyTorch eager", "fp16", 4, _nothing, partial(_eager, half=True), first=True),
    BackEnd("PyTorch compiled, reduce-overhead", "fp16", 75, _nothing, _compiled, first=True),
    BackEnd(
        "ONNX Runtime CUDA",
        "fp16",
        60,
        partial(require_provider, "CUDAExecutionProvider"),
        partial(_onnxruntime, providers=CUDA),
    ),
    BackEnd(
        "ONNX Runtime TensorRT",
        "fp16",
        150,
        partial(require_provider, "TensorrtExecutionProvider"),
        partial(_onnxruntime, providers=[("TensorrtExecutionProvider", {"trt_fp16_enable": "1"}), *CUDA]),
    ),
    BackEnd("TensorRT", "fp16", 120, partial(require_engine, "tensorrt"), partial(_engine, flavour="tensorrt")),
    BackEnd(
        "TensorRT with the plugin",
        "fp16",
        120,
        partial(require_engine, "tensorrt"),
        partial(_engine, flavour="tensorrt", plugin=True),
    ),
    BackEnd(
        "TensorRT-RTX",
        "fp16",
        120,
        partial(require_engine, "tensorrt_rtx"),
        partial(_engine, flavour="tensorrt_rtx"),
    ),
)

"""Run an ONNX artifact with ONNX Runtime."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.artifact import ANY, FOR_CPU, FOR_TENSORRT
from denseport.runtime.errors import BundleError, DenseportError, InputError, MachineError, is_out_of_memory
from denseport.runtime.system.cpus import check_threads, usable_cpus
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.backends.cuda.device import DeviceNetwork

__all__ = ["INPUT", "OnnxRuntimeSession"]

INPUT = "image"
RTX = "NvTensorRTRTXExecutionProvider"  # which `rtx_provider` has, loaded only for it
SLOTS = 2  # images at a time on the GPU: one in the network, one before or behind it
OUTPUT_TYPES = ("tensor(float)", "tensor(int64)", "tensor(int32)", "tensor(uint8)", "tensor(uint16)")
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Products of FP32 that are FP32, not TF32's 10 bits; convolutions chosen by rule, not tried out for each new size.
SETTINGS = {CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}
CUDA_LIBRARIES = (
    "{} brings CUDA's libraries and cuDNN; NVIDIA's driver must be as new. For the CPU: --provider CPUExecutionProvider"
)
FREE_MEMORY = "Give smaller images or batches, or free some memory."


class OnnxRuntimeSession(Session):
    """An ONNX file on ONNX Runtime.

    Args:
        path: the model; external data lies beside it.
        target: what the graph is made for (`denseport.runtime.bundle.artifact`).
        threads: for one inference; default: the CPUs this process may use.
        providers: execution providers, best first; default: the CPU. The first one must start: ONNX Runtime would go
            on without it, and say so on standard error alone. NvTensorRTRTXExecutionProvider is a plugin
            (`denseport.runtime.backends.rtx_provider`): what it cannot run goes to the CPU, whatever else is named.
        provider_options: of the first provider, as ONNX Runtime names them, beside `SETTINGS`.

    Raises:
        InputError: there is no provider of that name.
        MachineError: ONNX Runtime, a provider, or a library that it needs, is missing.
        BundleError: ONNX Runtime cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        target: str = ANY,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as err:
            raise MachineError(
                "ONNX Runtime is not installed", f"{install_command('onnxruntime')} (or onnxruntime-gpu)"
            ) from err
        _refuse_other_providers(onnxruntime, providers)
        try:
            str(path).encode()
        except UnicodeEncodeError as err:
            raise BundleError(
                f"{path}: ONNX Runtime opens no path that is not UTF-8", "Rename the folder, or move the bundle."
            ) from err
        threads = check_threads(threads) or usable_cpus()
        options = _options(onnxruntime, target, threads)
        said = _load_cuda(onnxruntime, providers)
        chosen = _chosen(options, providers, provider_options or {})
        try:
            # The fallback would go on with another provider, and print so.
            self._session: Any = onnxruntime.InferenceSession(path, options, **chosen, enable_fallback=0)
        except Exception as err:  # ONNX Runtime raises a class of its own for every status code
            raise _opening_error(path, providers[0], err) from err
        first = self._session.get_providers()[0]
        if first != providers[0]:
            cuda = CUDA_LIBRARIES.format(install_command("onnxruntime-gpu"))
            remedy = cuda if {CUDA, TENSORRT} & set(providers) else "Choose another provider."
            raise MachineError(f"ONNX Runtime cannot start {providers[0]}, and would take {first}{said}", remedy)
        self.on_gpu, self._on_cuda = first != CPU, first == CUDA
        self._path = path
        self._refuse_other_interfaces()
        self._description = f"ONNX Runtime {onnxruntime.__version__}, {providers[0]}, {count(threads, 'thread')}"

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32; or masks (N, H, W) of integers.

        Raises:
            BundleError: the model cannot be run on this batch, or gives something else.
            MachineError: memory ran out.
        """
        try:
            result: NDArray[np.float32] = self._session.run(None, {INPUT: image})[0]
        except Exception as err:  # as above
            if is_out_of_memory(err):
                raise MachineError(f"{self._path}: memory ran out on an input of {image.shape}", FREE_MEMORY) from err
            raise BundleError(
                f"{self._path}: ONNX Runtime cannot run it on an input of {image.shape}: {err}",
                "Give an image of another size, or export or import it again.",
            ) from err
        rank = 4 if result.dtype.kind == "f" else 3
        if result.ndim != rank or len(result) != len(image) or not result.size:
            raise BundleError(
                f"{self._path}: gave an array of {result.shape} {result.dtype} for an input of {image.shape}",
                "Export or import it again.",
            )
        return result

    def _refuse_other_interfaces(self) -> None:
        """One image batch in, numbers out: what every graph of a bundle is."""
        inputs = [(value.name, value.type, len(value.shape)) for value in self._session.get_inputs()]
        outputs = [value.type for value in self._session.get_outputs()]
        if inputs != [(INPUT, "tensor(float)", 4)] or not outputs or outputs[0] not in OUTPUT_TYPES:
            raise BundleError(
                f"{self._path}: takes {inputs} and gives {outputs}, which is not a segmentation network",
                "Export it again.",
            )

    def device_network(self) -> DeviceNetwork:
        if not self._on_cuda:
            return super().device_network()
        from denseport.runtime.backends.cuda.device import DeviceNetwork
        from denseport.runtime.backends.cuda.driver import open_cuda
        from denseport.runtime.backends.cuda.onnxruntime import CudaExecutionSlot

        cuda = open_cuda()
        return DeviceNetwork(cuda, SLOTS, False, lambda: CudaExecutionSlot(self._session, cuda))

    def close(self) -> None:
        """Free the model; the session cannot be used again."""
        self._session = None

    @property
    def description(self) -> str:
        return self._description


def _refuse_other_providers(onnxruntime: Any, providers: Sequence[str]) -> None:
    """Raises InputError for a name that no provider has, MachineError for a provider that this wheel lacks."""
    here = onnxruntime.get_available_providers()
    known = {RTX, *onnxruntime.get_all_providers()}
    if unknown := [name for name in providers if name not in known]:
        raise InputError(f"ONNX Runtime has no provider {unknown[0]!r}", f"It has {', '.join(sorted(known))}.")
    if missing := [name for name in providers if name not in {*here, RTX}]:
        raise MachineError(
            f"this ONNX Runtime has no {', '.join(missing)}; it has {', '.join(here)}",
            f"{install_command('onnxruntime-gpu')} on a machine with an NVIDIA GPU, or choose another provider.",
        )


def _options(onnxruntime: Any, target: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are about fusions
    if target != FOR_CPU:
        # x86 without VNNI adds INT8 products in 16 bits; this keeps them from saturating, and costs speed. The
        # weights of graphs for that back end cannot.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if target == FOR_TENSORRT:
        # Its fusions would make integer operators of FP8, and mistake FP16 behind DequantizeLinear.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _chosen(options: Any, providers: Sequence[str], settings: Mapping[str, str]) -> dict[str, Any]:
    """What a session is given beside its options: names, or nothing where the options hold devices."""
    if RTX in providers:
        from denseport.runtime.backends.rtx_provider import add_rtx_provider

        add_rtx_provider(options, providers, settings)
        return {}
    each = [dict(SETTINGS.get(name, {})) for name in providers]
    each[0] |= settings
    return {"providers": list(providers), "provider_options": each}


def _load_cuda(onnxruntime: Any, providers: Sequence[str]) -> str:
    """Load CUDA's libraries from their wheels, where a provider needs them; returns which are missing, in words."""
    if not {CUDA, TENSORRT} & set(providers):
        return ""
    said = io.StringIO()
    with redirect_stdout(said):  # it prints what it does not find
        onnxruntime.preload_dlls()
    missing = re.findall(r"Failed to load (\S+):", said.getvalue())
    return f"; not found: {', '.join(missing)}" if missing else ""


def _opening_error(path: Path, provider: str, err: Exception) -> DenseportError:
    if is_out_of_memory(err):
        return MachineError(f"{path}: memory ran out when it was opened", FREE_MEMORY)
    if "NOT_IMPLEMENTED" in str(err):
        return MachineError(
            f"{path}: ONNX Runtime's {provider} lacks an operator of it: {err}",
            "Run another artifact, such as model.onnx, or this one where a GPU is.",
        )
    if "install TensorRT libraries" in str(err):  # its only words for that
        remedy = "Install TensorRT beside it (pip install tensorrt), or choose --provider CUDAExecutionProvider."
        return MachineError(f"ONNX Runtime cannot start {provider}: TensorRT's libraries are missing", remedy)
    return BundleError(f"{path}: ONNX Runtime cannot load it: {err}", "Export or import it again.")

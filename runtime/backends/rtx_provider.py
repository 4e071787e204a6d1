"""TensorRT-RTX as an execution provider of ONNX Runtime, for consumer GPUs: runs model.onnx itself, no engine is built.

The package ``onnxruntime-ep-nv-tensorrt-rtx-cu13`` (NVIDIA's, alpha) is a plugin: ONNX Runtime lists it only once it is
registered, and gives it devices instead of a name. It knows GPUs of compute capability 8.6, 8.9, and 12.0 and newer.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from denseport.runtime.bundle.engine_record import Profile
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.system.files import cache_folder
from denseport.runtime.system.machine import install_command

__all__ = ["RTX_PROVIDER", "add_rtx_provider", "profile_options"]

CPU, RTX_PROVIDER = "CPUExecutionProvider", "NvTensorRTRTXExecutionProvider"
PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
OTHERWISE = "Choose another provider, or leave it out."


def add_rtx_provider(options: Any, providers: Sequence[str], settings: Mapping[str, str]) -> None:
    """Let a session run on the first GPU that the provider knows; what it cannot run, the CPU does.

    Args:
        options: ONNX Runtime's ``SessionOptions``; give the session no providers beside them.
        providers: that were asked for: this one, and the CPU.
        settings: the provider's options, such as `profile_options`. What it compiles is kept in Denseport's cache
            (``nv_runtime_cache_path``), unless they say otherwise.

    Raises:
        InputError: another provider was asked for, which ONNX Runtime would leave out.
        MachineError: the package is missing or cannot be loaded, or it finds no GPU that it knows.
        OutputError: there is no place for the cache.
    """
    import onnxruntime

    if providers[0] != RTX_PROVIDER or not {*providers} <= {RTX_PROVIDER, CPU}:
        what = f"{RTX_PROVIDER} goes first and with no other but {CPU}, not {', '.join(providers)}"
        raise InputError(what, "Leave the others out.")
    _register()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX_PROVIDER]
    if not devices:
        raise MachineError(
            f"{RTX_PROVIDER} finds no GPU that it knows: compute capability 8.6, 8.9, or 12.0 and newer", OTHERWISE
        )
    cache = {"nv_runtime_cache_path": str(cache_folder("onnxruntime-rtx", "Name a folder in nv_runtime_cache_path."))}
    options.add_provider_for_devices(devices[:1], cache | dict(settings))


def profile_options(profile: Profile, name: str = "image") -> dict[str, str]:
    """The provider's options for a range of input shapes; without, it takes any and is tuned for none.

    Args:
        name: of the input.
    """
    shapes = {"min": profile.minimum, "opt": profile.optimum, "max": profile.maximum}
    return {f"nv_profile_{which}_shapes": f"{name}:{'x'.join(map(str, shape))}" for which, shape in shapes.items()}


@functools.cache  # a process may register it once
def _register() -> None:
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise MachineError(f"ONNX Runtime {onnxruntime.__version__} takes no plugins", "Install 1.24 or newer.")
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError as err:
        what = f"this ONNX Runtime has no {RTX_PROVIDER}: {err}"
        raise MachineError(what, install_command("onnxruntime-rtx")) from err
    try:
        onnxruntime.register_execution_provider_library(RTX_PROVIDER, package.get_library_path())
    except Exception as err:  # ONNX Runtime raises a class of its own for every status code
        raise MachineError(f"{RTX_PROVIDER} cannot be loaded: {err}", f"Install NVIDIA's driver. {OTHERWISE}") from err

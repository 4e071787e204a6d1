"""TensorRT-RTX's provider of ONNX Runtime: what it is given, and what is said where it cannot run.

Its wheel is not needed: ONNX Runtime's own calls are kept, the provider and its device are planted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from hostile import tiny_bundle

from denseport.runtime.backends import rtx_provider
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.rtx_provider import RTX_PROVIDER, add_rtx_provider, profile_options
from denseport.runtime.bundle.engine_record import Profile
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.system.machine import install_command

pytestmark = pytest.mark.skipif(not hasattr(onnxruntime, "get_ep_devices"), reason="this ONNX Runtime takes no plugins")
PROVIDERS = (RTX_PROVIDER, "CPUExecutionProvider")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "bundle").path / "model.onnx"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, str]]]:
    """The package installed, its library loadable; the list gets what is registered."""
    registered: list[tuple[str, str]] = []
    module = ModuleType(rtx_provider.PACKAGE)
    module.get_library_path = lambda: "/lib/rtx.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, rtx_provider.PACKAGE, module)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *what: registered.append(what))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rtx_provider._register.cache_clear()
    yield registered
    rtx_provider._register.cache_clear()


def device(name: str = RTX_PROVIDER) -> Any:
    return SimpleNamespace(ep_name=name)


def test_without_the_package_the_extra_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx_provider._register.cache_clear()
    monkeypatch.setitem(sys.modules, rtx_provider.PACKAGE, None)
    with pytest.raises(MachineError, match="this ONNX Runtime has no NvTensorRTRTXExecutionProvider") as caught:
        OnnxRuntimeSession(model, providers=PROVIDERS)
    assert install_command("onnxruntime-rtx") in str(caught.value.remedy)


def test_a_library_that_does_not_load_is_named(
    model: Path, package: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(MachineError, match=r"cannot be loaded: libcuda\.so\.1") as caught:
        OnnxRuntimeSession(model, providers=PROVIDERS)
    assert "driver" in str(caught.value.remedy)


def test_without_a_gpu_that_it_knows_it_says_which(model: Path, package: list[tuple[str, str]]) -> None:
    """ONNX Runtime would go on with the CPU alone."""
    for _ in range(2):
        with pytest.raises(MachineError, match=r"finds no GPU that it knows: compute capability 8\.6"):
            OnnxRuntimeSession(model, providers=PROVIDERS)
    assert package == [(RTX_PROVIDER, "/lib/rtx.so")]  # once


def test_it_gets_the_first_device_a_cache_and_the_shapes(
    package: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = device(), device()
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [device("CPUExecutionProvider"), first, second])
    given: list[Any] = []
    options = SimpleNamespace(add_provider_for_devices=lambda *what: given.append(what))
    add_rtx_provider(
        options, PROVIDERS, profile_options(Profile((1, 3, 512, 512), (1, 3, 512, 683), (2, 3, 512, 2048)))
    )
    ((devices, settings),) = given
    assert devices == [first]
    assert settings == {
        "nv_runtime_cache_path": str(tmp_path / "cache" / "denseport" / "onnxruntime-rtx"),
        "nv_profile_min_shapes": "image:1x3x512x512",
        "nv_profile_opt_shapes": "image:1x3x512x683",
        "nv_profile_max_shapes": "image:2x3x512x2048",
    }
    add_rtx_provider(options, PROVIDERS, {"nv_runtime_cache_path": "/here"})
    assert given[1][1] == {"nv_runtime_cache_path": "/here"}


def test_a_session_runs_on_the_devices_alone(
    model: Path, package: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's own device takes the part of the GPU: the way through ONNX Runtime is real, and is looked at after."""
    (cpu,) = (each for each in onnxruntime.get_ep_devices() if each.ep_name == "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [SimpleNamespace(ep_name=RTX_PROVIDER)])
    add = onnxruntime.SessionOptions.add_provider_for_devices
    # It is given the CPU's device, whose provider takes no settings.
    monkeypatch.setattr(
        onnxruntime.SessionOptions, "add_provider_for_devices", lambda options, *_: add(options, [cpu], {})
    )
    with pytest.raises(MachineError, match="cannot start NvTensorRTRTXExecutionProvider, and would take CPU"):
        OnnxRuntimeSession(model, providers=PROVIDERS)


@pytest.mark.parametrize(
    "providers", [("CPUExecutionProvider", RTX_PROVIDER), (RTX_PROVIDER, "AzureExecutionProvider")]
)
def test_a_provider_that_would_be_left_out_is_refused(model: Path, providers: tuple[str, ...]) -> None:
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no second provider")
    with pytest.raises(InputError, match="goes first and with no other but CPUExecutionProvider"):
        OnnxRuntimeSession(model, providers=providers)

"""Which versions' quick plugins are taken; NVIDIA's modules are fakes (test_tensorrt_plugin.py has the real ones)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from denseport.export.engine import build as build_module
from denseport.runtime.backends.tensorrt_library import Library, LogBook
from denseport.runtime.errors import MachineError

PLUGIN = "denseport.export.plugin.tensorrt_plugin"


def library(version: str) -> Library:
    return Library("tensorrt", None, version, "13", None, LogBook())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "compile_ptx", lambda: b"PTX")


@pytest.fixture
def quick_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `tensorrt` of pip before 10.14: only its bindings have the module."""

    def takes(name: str) -> Any:
        registered.append(name)
        return lambda function: function

    registered: list[str] = []
    trtp: Any = ModuleType("tensorrt_bindings.plugin")
    trtp.register = trtp.autotune = trtp.aot_impl = takes
    for name in ("TensorDesc", "KernelLaunchParams", "SymExprs", "AutoTuneCombination"):
        setattr(trtp, name, type(name, (), {}))
    modules = {"tensorrt": ModuleType("tensorrt"), "tensorrt.plugin": None, "tensorrt_bindings.plugin": trtp}
    modules["tensorrt_bindings"] = ModuleType("tensorrt_bindings")
    modules["tensorrt_bindings"].plugin = trtp  # type: ignore[union-attr]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    yield SimpleNamespace(registered=registered)
    sys.modules.pop(PLUGIN, None)


@pytest.mark.parametrize(
    ("tensorrt", "numpy", "works"),
    [("10.16.1.11", "2.4.0", False), ("11.1.0.106", "2.10.1", False), ("11.1.0.106", "2.3.5", True),
     ("11.2.1.2", "2.4.6", True)],
)  # fmt: skip
def test_numpy_and_tensorrt_that_do_not_go_together_are_named(
    compiled: None, monkeypatch: pytest.MonkeyPatch, tensorrt: str, numpy: str, works: bool
) -> None:
    """TensorRT would drop the plugin within its builder: int() of an array of one, which NumPy 2.4 refuses."""
    monkeypatch.setattr(np, "__version__", numpy)
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    if works:
        assert build_module._register_plugin(library(tensorrt)) == "on"
        return
    with pytest.raises(MachineError, match=f"quick plugins of TensorRT {tensorrt} do not work with NumPy {numpy}"):
        build_module._register_plugin(library(tensorrt))


def test_the_bindings_module_serves_where_the_front_end_has_none(compiled: None, quick_plugins: Any) -> None:
    assert build_module._register_plugin(library("11.4.0.1")) == "on"
    assert {f"denseport::{name}" for name in ("UpsampleAdd", "UpsampleArgmax", "ResizeArgmax")} == set(
        quick_plugins.registered
    )


def test_a_tensorrt_without_quick_plugins_is_named(
    compiled: None, quick_plugins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_bindings.plugin", None)
    with pytest.raises(MachineError, match=r"TensorRT 11\.4\.0\.1 takes no quick plugins: "):
        build_module._register_plugin(library("11.4.0.1"))

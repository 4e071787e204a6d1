"""The launcher of kernels, against a library that has the driver's functions and keeps their arguments."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from fake_cuda import build_driver

from denseport.runtime.backends.cuda import library
from denseport.runtime.backends.cuda import module as cuda_module
from denseport.runtime.backends.cuda.kernels.launch import Launch
from denseport.runtime.backends.cuda.module import Module
from denseport.runtime.errors import MachineError


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """A fresh one, with a context."""
    path = build_driver(tmp_path, "fake.so")
    monkeypatch.setattr(library, "_LIBRARY", str(path))
    found = ctypes.CDLL(str(path))
    context = ctypes.c_void_p()
    assert found.cuDevicePrimaryCtxRetain(ctypes.byref(context), 7) == 0 and found.cuCtxPushCurrent(context) == 0
    return found


def numbers(driver: ctypes.CDLL, name: str, count: int, kind: type = ctypes.c_int) -> list[int | None]:
    return list((kind * count).in_dll(driver, name))


def test_a_launch_passes_inputs_then_integers_then_the_output(driver: ctypes.CDLL) -> None:
    module = Module(b"the PTX")
    high = 0x7F00_1234_5678_9ABC  # addresses have 64 bits
    module.launch(Launch("kernel", 5, 128, (-7, 2**31 - 1)), [high, None], high + 64, stream=high + 128)
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(driver, "ptx"))) == b"the PTX"
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(driver, "found"))) == b"kernel"
    assert numbers(driver, "launched", 7, ctypes.c_uint) == [5, 1, 1, 128, 1, 1, 0]
    assert numbers(driver, "pointers", 3, ctypes.c_void_p) == [high, None, high + 64]
    assert numbers(driver, "scalars", 2) == [-7, 2**31 - 1]
    assert numbers(driver, "stream", 1, ctypes.c_void_p) == [high + 128]


def test_it_is_unloaded_once(driver: ctypes.CDLL) -> None:
    module = Module(b"")
    module.close()
    module.close()
    assert numbers(driver, "unloaded", 1) == [1]


def test_the_drivers_errors_are_named(driver: ctypes.CDLL) -> None:
    with pytest.raises(MachineError, match="cuModuleGetFunction: CUDA_ERROR_NOT_FOUND"):
        Module(b"").launch(Launch("missing", 1, 1, ()), [], 0, 0)
    ctypes.c_int.in_dll(driver, "load_status").value = 999
    with pytest.raises(MachineError, match="cuModuleLoadData: status 999"):
        Module(b"")


def test_a_driver_that_is_too_old_for_the_kernels_is_told_so(driver: ctypes.CDLL) -> None:
    ctypes.c_int.in_dll(driver, "load_status").value = 222
    with pytest.raises(MachineError, match="too old for the kernels") as caught:
        Module(b"")
    assert "CUDA 11.4" in str(caught.value)


def test_a_machine_without_driver_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(MachineError, match="no NVIDIA driver"):
        Module(b"")


def test_the_real_driver_has_its_functions() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="pip install cuda-bindings")
    text = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (cuda_module, library))
    called = set(re.findall(r'["\.](cu[A-Z]\w+)', text))
    assert len(called) == 9
    assert not [name for name in called if not hasattr(driver, name.removesuffix("_v2"))]
    assert driver.CU_STREAM_LEGACY == library.LEGACY
    assert driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value == library._DISABLE_TIMING
    assert driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION.value == library._UNSUPPORTED_PTX

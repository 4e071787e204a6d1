"""The PTX of the kernels around the network: complete, without spills, and compiled once."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from fake_cuda import PARAMETERS
from ptxas import ARCHITECTURES, assemble

from denseport.runtime.backends.cuda.kernels import compile as nvrtc
from denseport.runtime.backends.cuda.kernels.compile import COMMON, IMAGE_SOURCES
from denseport.runtime.backends.cuda.kernels.launch import KERNELS
from denseport.runtime.errors import MachineError


@pytest.fixture(scope="module")
def ptx() -> bytes:
    try:
        return nvrtc.compile_ptx(IMAGE_SOURCES)
    except MachineError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "denseport/kernels"


def test_the_entry_points_are_those_that_are_launched(ptx: bytes) -> None:
    text = ptx.decode("ascii")
    assert set(re.findall(r"\.entry (\w+)", text)) == set(KERNELS)
    for kernel in KERNELS:
        parameters = re.search(rf"\.entry {kernel}\((.*?)\)", text, re.DOTALL)
        assert parameters is not None
        inputs, scalars = next(found for name, found in PARAMETERS.items() if kernel.startswith(name))
        assert re.findall(r"\.param \.(\w+)", parameters[1]) == ["u64"] * inputs + ["u32"] * scalars + ["u64"]


@pytest.mark.parametrize("architecture", [ARCHITECTURES[0], ARCHITECTURES[-1]])
def test_no_kernel_spills(ptx: bytes, architecture: str) -> None:
    for resources in assemble(ptx, architecture):
        assert (resources.spill_bytes, resources.stack_bytes) == (0, 0), resources


def test_drivers_since_cuda_11_4_take_it(ptx: bytes) -> None:
    """NVRTC 13.0 marks it as PTX 9.0, which drivers before R580 refuse. What CUDA 12.4's assembler makes of it:
    docs/gpu.md."""
    assert re.findall(rb"(?m)^\.version .*$", ptx) == [b".version 7.4"]
    assert re.findall(rb"(?m)^\.target .*$", ptx) == [b".target sm_75"]


def test_it_is_compiled_once_a_user(ptx: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvrtc.image_ptx() == ptx
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == ptx
    monkeypatch.setattr(nvrtc, "compile_ptx", lambda sources: pytest.fail("compiled again"))
    assert nvrtc.image_ptx() == ptx


def test_a_changed_source_or_compiler_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [nvrtc.fingerprint(IMAGE_SOURCES), nvrtc.fingerprint((COMMON,))]
    monkeypatch.setattr(nvrtc, "NVRTC_VERSION", (13, 1))
    names.append(nvrtc.fingerprint(IMAGE_SOURCES))
    monkeypatch.setattr(nvrtc, "PTX_VERSION", b"8.0")
    names.append(nvrtc.fingerprint(IMAGE_SOURCES))
    assert len(set(names)) == 4


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    ptx: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert nvrtc.image_ptx() == ptx


def test_without_nvrtc_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.setattr(nvrtc, "compile_ptx", nvrtc.compile_ptx.__wrapped__)
    with pytest.raises(MachineError, match="NVRTC, NVIDIA's run-time compiler, is not installed") as caught:
        nvrtc.image_ptx()
    assert "nvidia-cuda-nvrtc" in str(caught.value)

"""The PTX that goes into engines: complete, for every architecture, without spills."""

from __future__ import annotations

import re
import subprocess

import pytest
from ptxas import ARCHITECTURES, assemble

from denseport.export.plugin import launch
from denseport.export.plugin.compile import compile_ptx, single_kernel
from denseport.runtime.errors import MachineError


@pytest.fixture(scope="module")
def ptx() -> bytes:
    try:
        return compile_ptx()
    except MachineError as error:
        pytest.skip(str(error))


def test_ptx_is_for_turing_and_up_and_readable_since_cuda_11_4(ptx: bytes) -> None:
    text = ptx.decode("ascii")
    assert "\0" not in text
    assert re.search(r"^\.version 7\.4$", text, re.MULTILINE)
    assert re.search(r"^\.target sm_75$", text, re.MULTILINE)
    assert set(re.findall(r"\.entry (\w+)", text)) == set(launch.KERNELS)


def test_parameters_are_inputs_then_integers_then_the_output(ptx: bytes) -> None:
    text = ptx.decode("ascii")
    inputs = {"upsample_add": 2, "upsample_argmax": 1, "resize_argmax": 4}
    scalars = {"upsample_add": 3, "upsample_add_f16_hwc8": 4, "upsample_argmax": 4, "resize_argmax": 8}
    for kernel in launch.KERNELS:
        parameters = re.search(rf"\.entry {kernel}\((.*?)\)", text, re.DOTALL)
        assert parameters is not None
        types = re.findall(r"\.param \.(\w+)", parameters[1])
        family = max((name for name in inputs if kernel.startswith(name)), key=len)
        counts = max((name for name in scalars if kernel.startswith(name)), key=len)
        assert types == ["u64"] * inputs[family] + ["u32"] * scalars[counts] + ["u64"], kernel


def test_a_single_kernel_is_a_whole_module(ptx: bytes) -> None:
    for kernel in launch.KERNELS:
        alone = single_kernel(ptx, kernel)
        assert len(alone) < len(ptx) / 5
        assert [resources.kernel for resources in assemble(alone, "sm_90")] == [kernel]


def test_a_kernel_that_is_not_there_is_named(ptx: bytes) -> None:
    with pytest.raises(ValueError, match="no self-contained kernel upsample_add_f64"):
        single_kernel(ptx, "upsample_add_f64")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(ptx: bytes, architecture: str) -> None:
    record = assemble(ptx, architecture)
    assert {resources.kernel for resources in record} == set(launch.KERNELS)
    for resources in record:
        assert (resources.spill_bytes, resources.stack_bytes) == (0, 0), resources
        assert 16 <= resources.registers <= 128, resources


def test_ptxas_rejects_what_is_not_ptx() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        assemble(b"no kernel", "sm_90")

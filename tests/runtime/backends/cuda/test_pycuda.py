"""The CUDA layer over pycuda, which cannot be installed without the CUDA toolkit: what is asked of it, by a mock."""

from __future__ import annotations

import sys
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest

from denseport.runtime.backends.cuda.driver import Device, open_cuda


def test_streams_are_ordered_with_no_other_and_waited_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = MagicMock()
    driver.Error, driver.MemoryError = type("Error", (Exception,), {}), type("MemoryError", (Exception,), {})
    driver.get_driver_version.return_value = 12020
    driver.Device.count.return_value = 2
    driver.Device.return_value.name.return_value = "NVIDIA A10"
    driver.Device.return_value.compute_capability.return_value = (8, 6)
    driver.mem_alloc.return_value.__int__ = lambda _: 4096
    module = ModuleType("pycuda")
    module.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", module)
    cuda = open_cuda(1, "pycuda")
    assert cuda.device == Device("NVIDIA A10", (8, 6), "12.2", 1)
    with cuda.current(), cuda.allocate(16) as memory:
        stream = cuda.stream()
        driver.Stream.assert_called_once_with(1)  # CU_STREAM_NON_BLOCKING
        cuda.copy_to_device(memory.address, np.zeros(4, np.float32), stream)
        cuda.copy(memory.address, 8192, 16, stream)
        driver.memcpy_dtod_async.assert_called_once_with(4096, 8192, 16, stream.owner)
        cuda.synchronize(stream)
    driver.Stream.return_value.synchronize.assert_called_once_with()
    driver.Context.synchronize.assert_not_called()  # of the whole GPU, which would break recordings
    driver.Device.return_value.retain_primary_context.assert_called_once_with()

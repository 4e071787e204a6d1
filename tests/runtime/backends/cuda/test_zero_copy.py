"""DLPack and the CUDA array interface. DLPack is tested on host memory, with numpy and torch as the other side."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from denseport.runtime.backends.cuda import zero_copy
from denseport.runtime.backends.cuda.zero_copy import CPU, DeviceArray, view_of
from denseport.runtime.errors import InputError

HOST = (CPU, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int64, np.uint8])
def test_memory_of_others_is_seen_not_copied(dtype: type[np.generic]) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for other in (array, torch.from_numpy(array)):
        view = view_of(other, device=HOST)
        assert (view.address, view.shape, view.dtype) == (array.ctypes.data, (2, 3, 4), np.dtype(dtype))


def test_an_offset_into_a_tensor_is_followed() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)[1]
    assert view_of(tensor, device=HOST).address == tensor.data_ptr()


def test_strided_memory_is_refused() -> None:
    with pytest.raises(InputError, match="not contiguous"):
        view_of(torch.zeros(4, 6).T, device=HOST)
    view_of(torch.zeros(1, 6).T, device=HOST)  # strides of an axis of length 1 do not matter


def test_arrays_of_the_host_and_other_objects_are_refused_as_gpu_input() -> None:
    with pytest.raises(InputError, match="not on an NVIDIA GPU"):
        view_of(np.zeros(3, np.float32))
    with pytest.raises(InputError, match="a list is not an array on the GPU"):
        view_of([1.0])


def test_what_torch_does_not_lend_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"cannot be lent: .*gradient(.|\n)*tensor\.detach"):
        view_of(torch.zeros(3, requires_grad=True), device=HOST)


def test_bfloat16_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="code 4, 16 bits"):
        view_of(torch.zeros(3, dtype=torch.bfloat16), device=HOST)


class Interface:
    """An object with a ``__cuda_array_interface__`` (version 3); the address is made up."""

    def __init__(self, **changes: object) -> None:
        self.__cuda_array_interface__ = {
            "shape": (1, 3, 4),
            "typestr": "<f4",
            "data": (0x1000, False),
            "version": 3,
            **changes,
        }


def test_the_cuda_array_interface_is_read() -> None:
    view = view_of(Interface(stream=7))
    assert (view.address, view.shape, view.dtype, view.stream) == (0x1000, (1, 3, 4), np.float32, 7)
    assert view_of(Interface(strides=(48, 16, 4))).stream is None
    # torch and others of version 2 name no stream: the default one is waited for.
    assert view_of(Interface(version=2)).stream == 1 and view_of(Interface(version=2, stream=7)).stream == 1
    with pytest.raises(InputError, match="not contiguous"):
        view_of(Interface(strides=(12, 4, 12)))


def test_results_are_read_by_torch_and_numpy_and_freed_with_the_last_of_them() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    freed: list[bool] = []
    result = DeviceArray(data.ctypes.data, (2, 3), np.float32, lambda: freed.append(True), device=HOST)
    tensor, array = torch.from_dlpack(result), np.from_dlpack(result)
    assert tensor.data_ptr() == data.ctypes.data and torch.equal(tensor, torch.from_numpy(data))
    np.testing.assert_array_equal(array, data)
    del result, array
    gc.collect()
    assert not freed
    del tensor
    gc.collect()
    assert freed == [True] and not zero_copy._exported


def test_a_capsule_that_nobody_takes_frees_its_share() -> None:
    freed: list[bool] = []
    result = DeviceArray(0, (1,), np.int32, lambda: freed.append(True), device=HOST)
    capsule = result.__dlpack__()
    del result
    gc.collect()
    assert not freed
    del capsule
    gc.collect()
    assert freed == [True]


def test_a_result_on_the_gpu_offers_both_protocols() -> None:
    result = DeviceArray(0x2000, (2, 3), np.float32, lambda: None)
    assert result.__dlpack_device__() == (2, 0) and result.nbytes == 24
    view = view_of(result)
    assert (view.address, view.shape, view.dtype, view.stream) == (0x2000, (2, 3), np.float32, None)

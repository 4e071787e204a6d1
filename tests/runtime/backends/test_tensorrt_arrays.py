"""Engines on arrays that are on the GPU already, in their own memory, behind the work of others; on fakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, at, read
from fake_tensorrt import Machine, expected, image_of

from denseport.runtime.backends.cuda.library import order
from denseport.runtime.errors import InputError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "fp16.engine")


class Interface:
    """A GPU array that has the CUDA array interface alone, as numba's and pycuda's have."""

    def __init__(self, array: Any, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}
        self.__cuda_array_interface__ = {k: v for k, v in self.__cuda_array_interface__.items() if v != "absent"}


def test_arrays_on_the_gpu_are_used_in_place(machine: Machine) -> None:
    image = image_of(1, 3, 8, 12)
    source, out = machine.cuda.array(image), machine.cuda.array(np.zeros((1, 1, 4, 6), np.float32))
    with machine.session() as session:
        result = session.run_device(source)
        assert result.shape == (1, 1, 4, 6) and len(machine.cuda.allocated) == 2  # activations and the result
        np.testing.assert_array_equal(read(result), expected(image))
        assert machine.engine.contexts[0].addresses["image"] == source.address
        assert session.run_device(Interface(source), out) is out
        np.testing.assert_array_equal(read(out), expected(image))
        assert len(machine.cuda.allocated) == 2
        del result
    del source, out
    assert machine.cuda.alive == 0


@pytest.mark.parametrize(("number", "named"), [(3, "its own"), (3, 1), (2, "absent")])
def test_work_that_is_queued_on_an_array_is_waited_for(machine: Machine, number: int, named: int | str) -> None:
    """Of its producer's stream, where it is named, else of the default stream; both are idle until somebody waits."""
    image, cuda = image_of(1, 3, 8, 12), machine.cuda
    source = cuda.array(np.zeros_like(image))
    with machine.session() as session, cuda.current(), cuda.stream() as other:
        stream = other.handle if named == "its own" else 1
        assert cuda.enqueue(stream, lambda: fill(source, image)) == 0
        stated = stream if named == "its own" else named
        array = Interface(source, version=number, stream=stated)
        np.testing.assert_array_equal(read(session.run_device(array)), expected(image))


def fill(array: Any, data: np.ndarray[Any, Any]) -> None:
    at(array.address, array.nbytes)[:] = data.reshape(-1).view(np.uint8)


class Tensor:
    """As torch's: DLPack's producer lets the consumer's stream wait; the other protocol names no stream."""

    def __init__(self, array: Any, cuda: FakeCuda, stream: int) -> None:
        self.array, self.cuda, self.stream = array, cuda, stream
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "version": 2}
        del self.__cuda_array_interface__["stream"]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream is not None and stream > 2
        order(self.stream, stream)
        return self.array.__dlpack__()


def test_a_tensor_that_torch_still_computes_on_a_side_stream_is_waited_for(machine: Machine) -> None:
    image, cuda = image_of(1, 3, 8, 12), machine.cuda
    source, out = cuda.array(np.zeros_like(image)), cuda.array(np.zeros((1, 1, 4, 6), np.float32))
    with machine.session() as session, cuda.current(), cuda.stream() as side:
        cuda.enqueue(side.handle, lambda: fill(source, image))
        cuda.enqueue(side.handle, lambda: fill(out, np.ones((1, 1, 4, 6), np.float32)))
        session.run_device(Tensor(source, cuda, side.handle), Tensor(out, cuda, side.handle))
        np.testing.assert_array_equal(read(out), expected(image))


def test_misaligned_arrays_are_copied(machine: Machine) -> None:
    """`batch[1]` of 3 x 500 x 333 say; TensorRT refuses addresses that are no multiples of 256."""
    image = image_of(1, 3, 8, 12)
    source = machine.cuda.array(image, offset=4)
    out = machine.cuda.array(np.zeros((1, 1, 4, 6), np.float32), offset=128)
    with machine.session() as session:
        assert session.run_device(source, out) is out
        np.testing.assert_array_equal(read(out), expected(image))
        assert all(address % 256 == 0 for address in machine.engine.contexts[0].addresses.values())
    del source, out
    assert machine.cuda.alive == 0


def test_results_lie_on_the_gpu_that_computed_them(machine: Machine) -> None:
    """CUDA's second GPU, say: DLPack has to name it."""
    source = machine.cuda.array(image_of(1, 3, 8, 12))
    machine.cuda.device = dataclasses.replace(machine.cuda.device, index=1)
    with machine.session() as session:
        assert session.run_device(Interface(source)).__dlpack_device__() == (2, 1)
        with pytest.raises(InputError, match="the array lies on GPU 0, the network on GPU 1"):
            session.run_device(source)


def test_arrays_on_the_gpu_that_do_not_fit_are_refused(machine: Machine) -> None:
    image = image_of(1, 3, 8, 12)
    source, array = machine.cuda.array(image), machine.cuda.array
    with machine.session() as session:
        with pytest.raises(InputError, match=r"the image is .* float64; the engine needs .* float32"):
            session.run_device(array(image.astype(np.float64)))
        with pytest.raises(InputError, match=r"out is \(1, 1, 4, 5\)"):
            session.run_device(source, array(np.zeros((1, 1, 4, 5), np.float32)))
        with pytest.raises(InputError, match="not contiguous"):
            session.run_device(Interface(source, strides=(1152, 384, 48, 8)))
        with pytest.raises(InputError, match="neither __cuda_array_interface__"):
            session.run_device([1])

"""The images' rows of scripts/gpu/check, on the CPU: its checks tell right from wrong."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bundles import steps
from cpu_kernels import Kernels
from fake_cuda import FakeCuda
from support import REPO

from denseport.runtime.backends.cuda.device import DeviceNetwork
from denseport.runtime.backends.cuda.zero_copy import View
from denseport.runtime.errors import BundleError, InputError, MachineError
from denseport.runtime.pipeline import device_path

pytest.importorskip("torch")
SIZES = ((20, 30), (70, 51))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(REPO / "scripts" / "gpu")
    module = importlib.import_module("gpu_images")
    small = {"ROUNDS": 2, "CLASSES": 5, "LOGITS": (16, 22), "NETWORK": (32, 43), "AGREEMENT": 0.98}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(device_path, "image_ptx", lambda: b"PTX")
    yield module


class Spoiled(FakeCuda):
    """Gives the host the first kernel results with one byte changed."""

    def copy_to_host(self, target: np.ndarray[Any, Any], source: int, stream: Any) -> None:
        super().copy_to_host(target, source, stream)
        self.synchronize(stream)
        target.reshape(-1)[target.size // 2] += 3


@pytest.mark.parametrize("spoil", [False, True])
def test_kernels_that_are_wrong_show(
    images: ModuleType, image_kernels: Kernels, monkeypatch: pytest.MonkeyPatch, spoil: bool
) -> None:
    cuda = (Spoiled if spoil else FakeCuda)(monkeypatch, image_kernels)
    rows = list(images.measure_kernels(cuda, b"PTX", SIZES))
    assert [row.what for row in rows] == ["resize_normalise", "image_mask_f32_u8"] * 2
    assert {row.correct for row in rows} == {not spoil}
    assert cuda.alive == 0
    images.print_images(rows, header=True)
    json.dumps([asdict(row) for row in rows])


class Doubling:
    """A network whose logits are its input, twice, on the host and on the fake device."""

    description = "doubling"

    def __init__(self, cuda: FakeCuda, wrong: bool = False) -> None:
        self.cuda, self.wrong = cuda, wrong

    def run(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return 2 * image

    def device_network(self) -> DeviceNetwork:
        return DeviceNetwork(self.cuda, 1, False, lambda: Identity(self.cuda, self.wrong))

    def close(self) -> None:
        pass


class Identity:
    """Once or twice comes to the same classes; ``wrong`` takes another image."""

    def __init__(self, cuda: FakeCuda, wrong: bool) -> None:
        self.stream, self._wrong = cuda.stream(), wrong
        self._other = cuda.array(np.zeros((1, 3, 32, 43), np.float32))

    def infer(self, image: View) -> View:
        other = self._other
        return View(other.address, other.shape, other.dtype, None, None) if self._wrong else image

    def capturable(self) -> bool:
        return False

    def close(self) -> None:
        del self._other
        self.stream.close()


def queue_on(cuda: FakeCuda) -> Any:
    """Puts torch's work on the CPU into a queue of the fake's."""
    return lambda stream, work: cuda.enqueue(stream.handle, work)


def a_way(images: ModuleType, open_: Callable[[], Any], require: Callable[[], Any] = lambda: None) -> Any:
    return images.Way("planted", 5, require, lambda subject: open_())


def measured(images: ModuleType, way: Any, left: float = 10.0) -> list[Any]:
    fixed = images.Protocol("fixed", steps(size=(43, 32), keep_ratio=False), images.protocol().inference)
    return list(images.measure_path(way, None, fixed, left, SIZES))


@pytest.mark.parametrize("wrong", [False, True])
def test_masks_that_disagree_show(
    images: ModuleType, image_kernels: Kernels, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    cuda = FakeCuda(monkeypatch, image_kernels)
    rows = measured(images, a_way(images, lambda: Doubling(cuda, wrong)))
    assert {row.correct for row in rows} == {not wrong} and len(rows) == 2
    assert all(row.device_ms is not None and row.host_ms is not None for row in rows)
    assert cuda.alive == 0


@pytest.mark.parametrize("graphs", [False, True])
def test_torch_takes_whole_images(
    images: ModuleType, image_kernels: Kernels, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """Streams, buffers, graphs and both kernels, over a network in torch that is anything but the identity."""
    import torch
    from gpu_torch import TorchDeviceSession

    torch.manual_seed(0)
    cuda, network = FakeCuda(monkeypatch, image_kernels), torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    opened = partial(TorchDeviceSession, network, graphs=graphs, cuda=cuda, queue=queue_on(cuda))
    rows = measured(images, a_way(images, opened))
    assert [row.note for row in rows] == ["", ""] and all(row.correct for row in rows), rows
    assert cuda.captures == 2 * graphs and cuda.alive == 0
    assert cuda.launches > images.ROUNDS or not graphs


def test_a_graph_that_is_not_recorded_is_a_failure(
    images: ModuleType, image_kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime warns and goes on without one; a row that says so would be of something else."""
    import torch
    from gpu_torch import TorchDeviceSession

    def refuse(*_: Any) -> Any:
        raise MachineError("cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    cuda, network = FakeCuda(monkeypatch, image_kernels), torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    monkeypatch.setattr(cuda, "capture", refuse)
    opened = partial(TorchDeviceSession, network, graphs=True, cuda=cuda, queue=queue_on(cuda))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # as Python's own filters, not pytest's
        (row,) = measured(images, a_way(images, opened))
    assert row.note.startswith("failed: RuntimeWarning: no CUDA graph") and not row.correct
    assert cuda.alive == 0


def test_what_is_not_there_is_named_and_what_fails_is_wrong(images: ModuleType) -> None:
    def raising(error: Exception) -> Callable[[], Any]:
        def open_() -> Any:
            raise error

        return open_

    for way, note, correct in (
        (a_way(images, raising(BundleError("no engine"))), "failed: no engine", False),
        (a_way(images, raising(MachineError("the GPU failed"))), "failed: the GPU failed", False),
        (a_way(images, raising(ValueError("no\nreason"))), "failed: ValueError: no", False),
        (a_way(images, raising(InputError("no target 'sm_90'"))), "refused: no target 'sm_90'", True),
        (a_way(images, lambda: None, raising(MachineError("no TensorRT"))), "absent: no TensorRT", True),
    ):
        (row,) = measured(images, way)
        assert (row.note, row.correct) == (note, correct)
    images.print_images([row], header=False)
    (row,) = measured(images, a_way(images, lambda: None), left=4.0)
    assert row.note == "not run: time; 4 s are left, it may take 5 s" and row.correct


def test_the_protocol_shows_its_images_at_the_networks_size(images: ModuleType) -> None:
    from denseport.runtime.pipeline.views import view_of

    assert {view_of(size, images.protocol().preprocess).size for size in images.IMAGES} == {(512, 683)}

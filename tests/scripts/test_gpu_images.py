"""The images' rows of scripts/gpu/check, on the CPU: its checks tell right from wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict
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
from denseport.runtime.errors import BundleError, MachineError
from denseport.runtime.pipeline import device_path

pytest.importorskip("torch")
SIZES = ((20, 30), (70, 51))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "scripts" / "gpu")
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


@pytest.mark.parametrize("wrong", [False, True])
def test_masks_that_disagree_show(
    images: ModuleType, image_kernels: Kernels, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    cuda = FakeCuda(monkeypatch, image_kernels)
    protocol = images.protocol()
    fixed = images.Protocol("fixed", steps(size=(43, 32), keep_ratio=False), protocol.inference)
    rows = list(images.measure_path("fake", lambda: Doubling(cuda, wrong), fixed, SIZES))
    assert {row.correct for row in rows} == {not wrong} and len(rows) == 2
    assert all(row.device_ms is not None and row.host_ms is not None for row in rows)
    assert cuda.alive == 0


def test_what_is_not_there_is_named_and_what_fails_is_wrong(images: ModuleType) -> None:
    def absent() -> Any:
        raise MachineError("no TensorRT here", "install it")

    def broken() -> Any:
        raise BundleError("no engine")

    (row,) = images.measure_path("a", absent, images.protocol())
    assert (row.note, row.correct) == ("absent: no TensorRT here", True)
    (row,) = images.measure_path("a", broken, images.protocol())
    assert (row.note, row.correct) == ("failed: no engine", False)
    images.print_images([row], header=False)


def test_the_protocol_shows_its_images_at_the_networks_size(images: ModuleType) -> None:
    from denseport.runtime.pipeline.views import view_of

    assert {view_of(size, images.protocol().preprocess).size for size in images.IMAGES} == {(512, 683)}

"""Fakes of TensorRT's objects for machines without a GPU, beside that of CUDA (`fake_cuda`).

They know of nothing but the order and the arguments of the calls; a test of ``tests/runtime/backends/test_tensorrt.py``
compares their methods with the real classes'.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from build_records import build_record
from fake_cuda import FakeCuda, at

from denseport.runtime.backends import tensorrt as backend
from denseport.runtime.backends.tensorrt import TensorRTSession
from denseport.runtime.backends.tensorrt_library import Library, LogBook
from denseport.runtime.bundle.engine_record import BuildRecord, Profile

LANDSCAPE = Profile((1, 3, 8, 8), (1, 3, 8, 12), (2, 3, 8, 32))
PORTRAIT = Profile((1, 3, 8, 8), (1, 3, 12, 8), (1, 3, 32, 8))
RECORD = build_record(version="11.4.0.1", gpu="Fake", profiles=(LANDSCAPE, PORTRAIT))


class FakeContext:
    """Its network takes every second row and column of the first channels and doubles them: (N, classes, H/2, W/2)."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.memory = np.zeros(0, np.uint8)
        self.running = threading.Lock()
        self.asked = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        self.engine.switches.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "image" and shape in (LANDSCAPE, PORTRAIT)[self.profile]

    def update_device_memory_size_for_shapes(self) -> int:
        return 10 * int(np.prod(self.shape))

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == 10 * int(np.prod(self.shape))
        self.memory = at(address, size)  # a wrong address ends the process here

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, _, h, w = self.shape
        return (n, self.engine.classes, h // 2, w // 2)

    def is_stream_capturable(self, stream: int) -> bool:
        self.asked += 1
        return self.asked > self.engine.compiling

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert self.running.acquire(blocking=False), "two threads in one context"
        if self.engine.cuda.capturing:
            self.running.release()
            return True
        if self.engine.broken:
            self.engine.book.write("ERROR", "illegal memory access")
            self.running.release()
            return False
        assert self.memory.size == 10 * int(np.prod(self.shape)), "activations of another shape"
        self.memory[:] = 0xFF
        size = 4 * int(np.prod(self.shape))
        image = at(self.addresses["image"], size).view(np.float32).reshape(self.shape)
        result = np.ascontiguousarray(2 * image[:, : self.engine.classes, ::2, ::2])
        at(self.addresses["logits"], result.nbytes)[:] = result.reshape(-1).view(np.uint8)
        self.running.release()
        return True


class FakeEngine:
    num_io_tensors = 2
    num_optimization_profiles = 2

    def __init__(self, cuda: FakeCuda, book: LogBook) -> None:
        self.cuda, self.book = cuda, book
        self.contexts: list[FakeContext] = []
        self.switches: list[int] = []
        self.broken = False
        self.classes = 1
        self.compiling = 0  # runs until a context can be captured

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        profile = (LANDSCAPE, PORTRAIT)[index]
        return [profile.minimum, profile.optimum, profile.maximum]

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class Machine:
    """Fakes of TensorRT 11.4 on an sm_86 GPU, and sessions on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.cuda = FakeCuda()
        self.book = LogBook()
        self.engine = FakeEngine(self.cuda, self.book)
        self.deserialised: list[bytes] = []
        self.refusal: str | None = None
        trt = SimpleNamespace(
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=self._deserialise),
            TensorIOMode=SimpleNamespace(INPUT="in"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            nptype=np.dtype,
        )
        library = Library("tensorrt", trt, "11.4.0.1", "13", None, self.book)
        monkeypatch.setattr(backend, "load_library", lambda flavour: library)
        self.path = path
        path.write_bytes(b"engine")

    def _deserialise(self, data: bytes) -> FakeEngine | None:
        self.deserialised.append(data)
        if self.refusal:
            self.book.write("ERROR", self.refusal)
            return None
        return self.engine

    def session(self, record: BuildRecord = RECORD, **options: Any) -> TensorRTSession:
        return TensorRTSession(self.path, record, cuda=self.cuda, **options)

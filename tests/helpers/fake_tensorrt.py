"""Fakes of TensorRT's objects for machines without a GPU, on the fake of CUDA (`fake_cuda`).

They compute nothing but a trivial network, and refuse what TensorRT refuses: an address that is no multiple of 256
(False), a profile that it cannot switch to (RuntimeError), a recording before a first run, or one of an engine that may
allocate while it runs. Work is queued: who does not wait reads what was there before. A test of
``tests/runtime/backends/test_tensorrt.py`` compares their methods with the real classes'.
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
RTX = build_record(flavour="tensorrt_rtx", version="1.7.1.116", gpu=None, targets=("sm_86",), profiles=RECORD.profiles)


class FakeContext:
    """Its network takes every second row and column of the first channels and doubles them: (N, classes, H/2, W/2)."""

    nvtx_verbosity = "detailed"

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shape: tuple[int, ...] = ()
        self.ran: set[tuple[int, ...]] = set()
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.running = threading.Lock()

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if self.engine.no_profiles:
            self.engine.book.write("ERROR", "no memory for the profile")
            raise RuntimeError("Error in set optimization profile async.")
        self.profile = index
        self.engine.switches.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "image" and shape in (LANDSCAPE, PORTRAIT)[self.profile]

    def update_device_memory_size_for_shapes(self) -> int:
        return 10 * int(np.prod(self.shape))

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == 10 * int(np.prod(self.shape)) and address % 256 == 0
        self.memory = (address, size)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, _, h, w = self.shape
        return (n, self.engine.classes, h // 2, w // 2)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            self.engine.book.write("ERROR", f"{name}: the address is not aligned to 256 bytes")
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.running.acquire(blocking=False), "two threads in one context"
        try:
            return self._execute(stream)
        finally:
            self.running.release()

    def _execute(self, stream: int) -> bool:
        cuda = self.engine.cuda
        if self.engine.broken:
            self.engine.book.write("ERROR", "illegal memory access")
            return False
        if cuda.is_recording(stream) and (self.shape not in self.ran or self.engine.allocates):
            cuda.library.cuMemAlloc(None, 1)  # which the driver refuses, and the recording is lost
            self.engine.book.write("ERROR", "memory is allocated while the stream is captured")
            return False
        shape, (source, target), memory = self.shape, (self.addresses[n] for n in ("image", "logits")), self.memory
        size, result = 4 * int(np.prod(shape)), self.get_tensor_shape("logits")
        assert memory[1] == 10 * int(np.prod(shape)), "activations of another shape"

        def work() -> None:
            spans = ((source, size), (target, 4 * int(np.prod(result))), memory)
            assert all(cuda.is_device(*span) for span in spans), "memory that is not the GPU's, or was freed"
            at(*memory)[:] = 0xFF
            image = at(source, size).view(np.float32).reshape(shape)
            logits = np.ascontiguousarray(2 * image[:, : self.engine.classes, ::2, ::2])
            if self.engine.logit is not None:
                logits[0, -1, -1, -1] = self.engine.logit
            at(*spans[1])[:] = logits.reshape(-1).view(np.uint8)

        self.ran.add(shape)
        return cuda.enqueue(stream, work) == 0


class FakeRtxContext(FakeContext):
    """TensorRT-RTX's, which compiles kernels in a thread until it was asked often enough."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.asked = 0

    def is_stream_capturable(self, stream: int) -> bool:
        self.asked += 1
        return self.asked > self.engine.compiling


class FakeRuntimeCache:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.content, self.used = engine, b"", False

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob if blob.startswith(b"sm_86 ") else b""
        return bool(self.content)

    def serialize(self) -> bytes:
        return self.content or b"sm_86 kernels" * self.used


class FakeRuntimeConfig:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.strategy = engine, "static"
        self.cache: FakeRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self.engine)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    num_io_tensors = 2
    num_optimization_profiles = 2

    def __init__(self, cuda: FakeCuda, book: LogBook, flavour: str = "tensorrt") -> None:
        self.cuda, self.book, self.flavour = cuda, book, flavour
        self.contexts: list[FakeContext] = []
        self.configs: list[FakeRuntimeConfig] = []
        self.switches: list[int] = []
        self.broken = self.no_profiles = self.allocates = False
        self.classes = 1
        self.logit: float | None = None  # in the place of the last one
        self.compiling = 0  # questions until a context can be captured

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        profile = (LANDSCAPE, PORTRAIT)[index]
        return [profile.minimum, profile.optimum, profile.maximum]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        self.configs.append(FakeRuntimeConfig(self))
        return self.configs[-1]

    def create_execution_context(self, how: str | FakeRuntimeConfig) -> FakeContext:
        assert (how.strategy if isinstance(how, FakeRuntimeConfig) else how) == "user"
        if isinstance(how, FakeRuntimeConfig) and how.cache is not None:
            how.cache.used = True
        self.contexts.append((FakeRtxContext if self.flavour == "tensorrt_rtx" else FakeContext)(self))
        return self.contexts[-1]


class Machine:
    """Fakes of TensorRT 11.4, or of TensorRT-RTX, on an sm_86 GPU, and sessions on them."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, path: Path, *, record: BuildRecord = RECORD, cuda: FakeCuda | None = None
    ) -> None:
        self.cuda = cuda or FakeCuda(monkeypatch)
        self.book, self.record = LogBook(), record
        self.engine = FakeEngine(self.cuda, self.book, record.flavour)
        self.deserialised: list[bytes] = []
        self.refusal: str | None = None
        trt = SimpleNamespace(
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=self._deserialise),
            TensorIOMode=SimpleNamespace(INPUT="in"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            ProfilingVerbosity=SimpleNamespace(NONE="none"),
            nptype=np.dtype,
        )
        library = Library(record.flavour, trt, record.version, "13", None, self.book)
        monkeypatch.setattr(backend, "load_library", lambda flavour: library)
        self.path = path
        path.write_bytes(b"engine")

    def _deserialise(self, data: bytes) -> FakeEngine | None:
        self.deserialised.append(data)
        if self.refusal:
            self.book.write("ERROR", self.refusal)
            return None
        return self.engine

    def session(self, record: BuildRecord | None = None, **options: Any) -> TensorRTSession:
        return TensorRTSession(self.path, record or self.record, cuda=self.cuda, **options)


def image_of(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def expected(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the fake network gives."""
    return 2 * image[:, :1, ::2, ::2]

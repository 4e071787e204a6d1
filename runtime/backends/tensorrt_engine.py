"""An engine, opened, and its execution contexts; with the kernels that TensorRT-RTX compiles for this GPU kept."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from denseport.runtime.backends.tensorrt_library import Library, LogLine
from denseport.runtime.bundle.engine_record import TITLES, BuildRecord
from denseport.runtime.errors import BundleError, MachineError, OutputError
from denseport.runtime.system.files import cache_folder, write_atomic

__all__ = ["REBUILD", "Engine", "deserialise", "last_error"]

REBUILD = "Run: denseport build BUNDLE --engine {flavour}"


def deserialise(library: Library, plan: Any, *, host_code: bool) -> Any:
    """TensorRT's object of a serialized engine (anything with the buffer protocol); None if TensorRT refuses it.

    Args:
        host_code: the engine is version compatible: it brings the lean runtime of its own release, which is run.
    """
    runtime = library.trt.Runtime(library.logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime.deserialize_cuda_engine(plan)


def last_error(lines: Iterable[LogLine]) -> str:
    """What TensorRT's log says went wrong."""
    errors = [line.text for line in lines if "ERROR" in line.severity]
    return errors[-1] if errors else "it gave no reason"


class Engine:
    """A verified engine. All calls need the GPU's context.

    TensorRT-RTX compiles an engine's kernels for the GPU when it runs. They are kept in the folder ``rtx`` of the
    user's cache, a file an engine, and TensorRT-RTX refuses those of another release or GPU. A cache that cannot be
    read or written costs the compilation, and nothing else.

    Attributes:
        trt: TensorRT's object.

    Raises:
        BundleError: TensorRT cannot open it.
    """

    def __init__(self, library: Library, path: Path, record: BuildRecord) -> None:
        self._library = library
        with library.log.collect() as lines:
            self.trt: Any = deserialise(library, path.read_bytes(), host_code=record.version_compatible)
        if self.trt is None:
            raise BundleError(
                f"{path}: {TITLES[library.flavour]} {library.version} cannot open it: {last_error(lines)}",
                REBUILD.format(flavour=record.flavour),
            )
        self._config: Any = None
        if library.flavour == "tensorrt_rtx":
            self._open_cache(f"{record.engine_sha256}.cache")

    def _open_cache(self, name: str) -> None:
        self._config = self.trt.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(self._strategy)
        self._cache = self._config.create_runtime_cache()
        self._name, self._kept = name, b""
        with suppress(OSError, OutputError):
            self._kept = (cache_folder("rtx") / name).read_bytes()
        if self._kept and not self._cache.deserialize(self._kept):
            self._kept = b""  # of another release, GPU or driver: written anew
        self._config.set_runtime_cache(self._cache)

    @property
    def _strategy(self) -> Any:
        """Without memory of its own: a context would take what the largest shape of all profiles needs."""
        return self._library.trt.ExecutionContextAllocationStrategy.USER_MANAGED

    def new_context(self) -> Any:
        """A context whose memory the caller gives.

        Raises:
            MachineError: there is too little memory for it.
        """
        with self._library.log.collect() as lines:
            context = self.trt.create_execution_context(self._config or self._strategy)
        if context is None:
            raise MachineError(
                f"no execution context: {last_error(lines)}",
                "Use fewer contexts, close other programs on the GPU, or build for smaller sizes.",
            )
        # Names of layers, which only the inspector needs, would cost time in each run.
        context.nvtx_verbosity = self._library.trt.ProfilingVerbosity.NONE
        return context

    def close(self) -> None:
        """Let go of the engine, once its contexts are, and keep what was compiled."""
        if self._config is not None:
            compiled = bytes(memoryview(self._cache.serialize()))
            if compiled != self._kept:
                with suppress(OutputError):
                    write_atomic(cache_folder("rtx") / self._name, compiled)
            self._config = self._cache = None
        self.trt = None

"""Run an ONNX artifact with OpenVINO, on the CPU."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.pool import Pool
from denseport.runtime.backends.session import Session
from denseport.runtime.errors import BundleError, MachineError, OutputError, is_out_of_memory
from denseport.runtime.system.cpus import check_threads, has_bf16, has_vnni, usable_cpus
from denseport.runtime.system.files import cache_folder, sha256_of, write_atomic
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.text import count

__all__ = ["NO_BF16", "NO_VNNI", "OLDEST", "OpenVinoSession", "why_no_openvino"]

OLDEST = (2025, 0)  # the first release that was tested
NO_BF16 = "this processor has no BF16 arithmetic (avx512_bf16 or amx_bf16; bf16 on ARM)"
NO_VNNI = "this processor has no VNNI (avx512_vnni or avx_vnni; asimddp on ARM): OpenVINO's INT8 sums saturate there"
TYPES = {"fp32": "f32", "bf16": "bf16"}  # a precision as OpenVINO calls it
INPUT = "image"
REQUESTS = 2  # images at a time: one computes on all threads, one is before or behind it
KEPT = 8  # compiled models in the cache: each takes as much room as the weights
FREE_MEMORY = "Give smaller images or batches, or free some memory."


def why_no_openvino(version: str | None) -> tuple[str, str]:
    """Why an OpenVINO of that version, None: none, cannot be used, and the remedy; two empty strings if it can."""
    if version is None:
        return "OpenVINO is not installed", install_command("openvino")
    if (found := re.match(r"(\d+)\.(\d+)", version)) and (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        what = f"OpenVINO {version} is too old: {oldest} is the oldest that works"
        return what, f"{install_command('openvino')} --upgrade"
    return "", ""


class OpenVinoSession(Session):
    """An ONNX file on OpenVINO's CPU plugin.

    Args:
        path: the model; external data lies beside it.
        precision: what its floats compute in: "fp32", or "bf16" with sums in FP32.
        quantized: it holds INT8 layers; computed in integers, as its QuantizeLinear and DequantizeLinear say.
        threads: for one inference; default: the CPUs this process may use.
        digests: hashes of the model's files, under which the compiled model is kept in Denseport's cache; none: it is
            compiled anew.

    Raises:
        MachineError: OpenVINO is missing or too old, the processor has no BF16 or no VNNI, or memory ran out.
        BundleError: OpenVINO cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "fp32",
        quantized: bool = False,
        threads: int | None = None,
        digests: Sequence[str] = (),
    ) -> None:
        openvino = _library()
        if precision == "bf16" and not has_bf16():
            raise MachineError(f"{path}: computes in BF16, and {NO_BF16}", "Run model.onnx, which is FP32.")
        if quantized and not has_vnni():
            raise MachineError(f"{path}: computes in INT8, and {NO_VNNI}", "Run int8.cpu.onnx, which cannot saturate.")
        threads = check_threads(threads) or usable_cpus()
        config = {
            "INFERENCE_PRECISION_HINT": TYPES[precision],  # its own default is BF16 wherever there is such arithmetic
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,  # all threads for one image
            "ENABLE_HYPER_THREADING": True,  # as many threads as asked for, be they two of one core
            "ENABLE_CPU_PINNING": False,  # which binds several processes to the same processors
            # Its default quantizes float activations on the way to a linear layer whose weight is stored in INT8.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        self._path, version = path, openvino.__version__.split("-")[0]
        key = hashlib.sha256("\n".join([*digests, str(path.absolute()), version, str(config)]).encode(errors="replace"))
        folder = _cache(key.hexdigest()) if digests else None
        if folder is not None:
            config["CACHE_DIR"] = str(folder)
        try:
            compiled: Any = openvino.Core().compile_model(str(path), "CPU", config)
            self._refuse_other_interfaces(compiled)
            computes = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except (RuntimeError, UnicodeEncodeError) as err:  # OpenVINO raises no other
            if is_out_of_memory(err):
                raise MachineError(f"{path}: memory ran out when it was opened", FREE_MEMORY) from err
            raise BundleError(f"{path}: OpenVINO cannot load it: {err}", "Run model.onnx on ONNX Runtime.") from err
        if computes != TYPES[precision]:
            raise MachineError(
                f"{path}: OpenVINO {version} computes in {computes} here, not in {TYPES[precision]}",
                "Run model.onnx on ONNX Runtime.",
            )
        if folder is not None:
            _sign(folder)
        self._requests = Pool(lambda _: _Request(compiled), REQUESTS)
        self._description = (
            f"OpenVINO {version}, CPU, {'INT8 and ' * quantized}{precision.upper()}, {count(threads, 'thread')}"
        )

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) of a normalised image batch (N, 3, H, W), both float32.

        Raises:
            BundleError: the model cannot be run on this batch.
            MachineError: memory ran out.
        """
        try:
            with self._requests.take() as request:
                result = request.run(image)
        except (RuntimeError, TypeError, ValueError, MemoryError) as err:
            if is_out_of_memory(err):
                raise MachineError(f"{self._path}: memory ran out on an input of {image.shape}", FREE_MEMORY) from err
            raise BundleError(
                f"{self._path}: OpenVINO cannot run it on an input of {image.shape} {image.dtype}: {err}",
                "Give an image of another size, or run model.onnx on ONNX Runtime.",
            ) from err
        if result.ndim != 4 or len(result) != len(image) or not result.size:
            raise BundleError(
                f"{self._path}: gave an array of {result.shape} {result.dtype} for an input of {image.shape}",
                "Export or import it again.",
            )
        return result

    def _refuse_other_interfaces(self, compiled: Any) -> None:
        """One image batch in, logits out."""
        inputs, outputs = (
            [(value.get_any_name(), value.element_type.to_string(), len(value.partial_shape)) for value in values]
            for values in (compiled.inputs, compiled.outputs)
        )
        if inputs != [(INPUT, "f32", 4)] or [each[1:] for each in outputs[:1]] != [("f32", 4)]:
            raise BundleError(
                f"{self._path}: takes {inputs} and gives {outputs}, which is not a segmentation network",
                "Export it again.",
            )

    def close(self) -> None:
        """Free the model; the session cannot be used again."""
        self._requests.close()

    @property
    def description(self) -> str:
        return self._description


class _Request:
    """Memory for one inference at a time."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if image.dtype != np.float32:
            raise TypeError("float32 is what it takes")  # OpenVINO would convert it
        # Copied on either way: a request that shared an image's memory would write the next image there.
        result: NDArray[np.float32] = self._request.infer({0: image}, share_inputs=False, share_outputs=False)[0]
        return result

    def close(self) -> None:
        self._request = None


def _library() -> Any:
    try:
        with _hidden("openvino_telemetry"):
            import openvino
    except ImportError as err:
        raise MachineError("OpenVINO is not installed", install_command("openvino")) from err
    reason, remedy = why_no_openvino(openvino.__version__)
    if reason:
        raise MachineError(reason, remedy)
    return openvino


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """A module that cannot be imported in the block, unless it was before.

    With `openvino_telemetry`, which its wheel installs, OpenVINO tells Google Analytics of each process that imports
    it; without, it uses a stub of its own.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # how Python itself marks it
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def _cache(key: str) -> Path | None:
    """The folder of a compiled model, empty unless what is in it is what was written; None: it cannot be used.

    OpenVINO compares nothing with what it wrote: of an altered weight it would compute other logits.
    """
    with suppress(OutputError, OSError):
        folder = cache_folder("openvino") / key
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_whole(folder):
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
        return folder
    return None


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / "sha256").read_text() == _digests(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _sign(folder: Path) -> None:
    """Note what OpenVINO has just written, and remove others, in no order, where there are too many."""
    with suppress(OSError, OutputError):
        write_atomic(folder / "sha256", _digests(folder).encode())
        others = [each for each in folder.parent.iterdir() if each != folder]
        for old in others[KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)


def _digests(folder: Path) -> str:
    return "\n".join(sha256_of(file) for file in sorted(folder.glob("*.blob")))

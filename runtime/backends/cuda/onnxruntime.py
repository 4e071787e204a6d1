"""ONNX Runtime's CUDA provider on memory that is on the GPU already."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from denseport.runtime.backends.cuda.driver import Cuda
from denseport.runtime.backends.cuda.zero_copy import View
from denseport.runtime.errors import BundleError, MachineError

__all__ = ["CudaExecutionSlot"]

_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class CudaExecutionSlot:
    """An `InferenceSession` bound to addresses; a `denseport.runtime.backends.cuda.device.ExecutionSlot`.

    ONNX Runtime queues its work on streams of its own: the slot waits for its stream before the network, and ONNX
    Runtime's run returns when its work is done. The output stays where ONNX Runtime's arena put it; the arena gives the
    same memory out again, so that nothing is allocated once each shape was seen.

    Args:
        place: ONNX Runtime's name of the kind of device, and its index.
    """

    def __init__(self, session: Any, cuda: Cuda, place: tuple[str, int] = ("cuda", 0)) -> None:
        self._session, self._cuda, self._place = session, cuda, place
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self._binding = session.io_binding()
        self.stream = cuda.stream()

    def infer(self, image: View) -> View:
        """As `denseport.runtime.backends.cuda.device.ExecutionSlot.infer`.

        Raises:
            BundleError: the output is neither float32 nor float16.
        """
        self._cuda.synchronize(self.stream)
        self._binding.bind_input(self._input, *self._place, np.float32, image.shape, image.address)
        self._binding.bind_output(self._output, *self._place)
        self._session.run_with_iobinding(self._binding)
        (value,) = self._binding.get_outputs()
        if value.data_type() not in _TYPES:
            raise BundleError(
                f"the network's output is a {value.data_type()}; expected float32 or float16",
                "Choose an artifact that gives logits: denseport inspect shows their outputs.",
            )
        return View(value.data_ptr(), tuple(value.shape()), _TYPES[value.data_type()], None, value)

    def capturable(self) -> bool:
        """No: the run waits for streams, which may not happen while work is recorded."""
        return False

    def close(self) -> None:
        with suppress(MachineError):  # of work that failed: whoever queued it was told
            self._cuda.synchronize(self.stream)
        self._binding = None
        self.stream.close()

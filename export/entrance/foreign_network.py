"""A foreign network that can be run: images of the house in, and what the file gives out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.export.checkpoint.labels import plain_text
from denseport.export.errors import ExportError
from denseport.export.graph.ends import NCHW, NHWC, TO_NHWC
from denseport.export.graph.probe import open_session
from denseport.runtime.bundle.steps import Normalise
from denseport.runtime.errors import InputError, MachineError, is_out_of_memory

__all__ = ["ForeignNetwork", "Run", "choose_output", "layouts", "named_shape"]

Run = Callable[[NDArray[np.float32]], NDArray[Any]]  # normalised images (N, C, H, W) to what a network gives
TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64)


class ForeignNetwork:
    """One output of a model on ONNX Runtime, for images (N, C, H, W) whatever layout and type the model takes.

    Args:
        label: of the file, for messages.
        folder: where its weights lie.
        layout: of its input, NCHW or NHWC.
        normalise: what was declared of the images that it takes.

    Attributes:
        declared: batch, height and width of its input, as the file has them; None: any.

    Raises:
        ExportError: ONNX Runtime cannot load the model.
    """

    def __init__(
        self, model: ir.Model, label: str, folder: Path, output: int, layout: str, normalise: Normalise
    ) -> None:
        image = model.graph.inputs[0]
        self.label, self.layout, self.channels = label, layout, len(normalise.mean)
        dims = (None,) * 4 if image.shape is None else image.shape
        places = (0, 2, 3) if layout == NCHW else (0, 1, 2)
        self.declared = tuple(n if isinstance(n := dims[place], int) else None for place in places)
        self._normalise, self._dtype = normalise, image.dtype or ir.DataType.FLOAT
        self._input, self._output = str(image.name), str(model.graph.outputs[output].name)
        try:
            self._session = open_session(ir.to_proto(model), label, folder=folder.absolute())
        except ExportError as err:
            raise ExportError(plain_text(err.message), "Export it again; onnx.checker may tell more.") from err
        import onnxruntime  # `open_session` has found it

        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = 4  # sizes that a network does not take are tried too

    def sample(self, batch: int, height: int, width: int, *, seed: int = 0) -> NDArray[np.float32]:
        """Random images as the network sees photographs, (batch, C, height, width): grey levels, normalised."""
        rng = np.random.default_rng([seed, batch, height, width])
        levels = rng.integers(0, 256, (batch, self.channels, height, width), np.uint8)
        own = (self._normalise.mean, self._normalise.std)
        mean, std = (np.reshape(np.array(each, np.float32), (1, -1, 1, 1)) for each in own)
        found: NDArray[np.float32] = (levels - mean) / std
        return found

    def run(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """What the model gives for a batch.

        Raises:
            ExportError: it cannot be run on images of that shape.
            MachineError: memory ran out.
        """
        given = images.transpose(TO_NHWC) if self.layout == NHWC else images
        try:
            found = self._session.run([self._output], {self._input: given.astype(self._dtype.numpy())}, self._quiet)[0]
        except Exception as err:  # ONNX Runtime raises a class of its own for every status code
            height, width = images.shape[2:]
            if is_out_of_memory(err):
                what = f"{self.label}: memory ran out on {width} x {height} pixels"
                raise MachineError(what, "Free some memory; a file of a stranger may ask for any amount.") from err
            raise ExportError(
                f"{self.label}: ONNX Runtime cannot run it on {width} x {height} pixels: {plain_text(str(err))}"
            ) from err
        return np.asarray(found)


def choose_output(model: ir.Model, label: str, name: str | None) -> int:
    """The number of the output to take; the model's one input was checked too.

    Raises:
        InputError: several inputs, an input of another type, or several outputs of which none was chosen.
    """
    inputs, outputs = model.graph.inputs, model.graph.outputs
    if len(inputs) != 1:
        raise InputError(
            f"{label}: has {len(inputs)} inputs ({', '.join(map(named_shape, inputs))}); a bundle's network takes one "
            "image",
            "Export it again with the image as its only input.",
        )
    if inputs[0].dtype not in TYPES:
        what = f"{label}: its input {named_shape(inputs[0])} is of type {inputs[0].dtype}, not of images"
        raise InputError(what, "Export it with an input of type float32 or uint8.")
    names = [plain_text(str(output.name)) for output in outputs]
    if name is not None and name not in names:
        raise InputError(f"--output-name {name}: {label} has no such output", f"It has {', '.join(names) or 'none'}.")
    if name is None and len(outputs) != 1:
        given = ", ".join(map(named_shape, outputs)) or "none"
        raise InputError(f"{label}: has {len(outputs)} outputs ({given})", "Name the one to take: --output-name NAME.")
    return 0 if name is None else names.index(name)


def named_shape(value: ir.Value) -> str:
    """``pixel_values (batch, 3, height, width)``, for people."""
    dims = "of any shape" if value.shape is None else "(" + ", ".join(map(_dim, value.shape)) + ")"
    return f"{plain_text(str(value.name))} {dims}"


def _dim(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else plain_text(str(dim.value or "any"))


def layouts(value: ir.Value, label: str, wanted: str | None) -> Sequence[tuple[str, int]]:
    """The layouts and numbers of channels that an input may have, the likeliest first.

    Raises:
        InputError: it cannot hold images of 3 channels or 1, or the file leaves open which side the channels are.
    """
    shape: Sequence[Any] = (None,) * 4 if value.shape is None else tuple(value.shape)
    if len(shape) != 4:
        what = f"{label}: its input {named_shape(value)} has {len(shape)} dimensions; a batch of images has 4"
        raise InputError(what, "Export it with a batch dimension: (1, 3, height, width).")
    sides = {NCHW: shape[1], NHWC: shape[3]}
    sides = sides if wanted is None else {wanted: sides[wanted]}
    sure = [(layout, size) for layout, size in sides.items() if size in (1, 3)]
    if len(sure) > 1:
        raise InputError(f"{label}: its input {named_shape(value)} may be NCHW or NHWC", "Say which with --layout.")
    if sure:
        return sure
    found = [(layout, n) for n in (3, 1) for layout, size in sides.items() if not isinstance(size, int)]
    if not found:
        raise InputError(
            f"{label}: its input {named_shape(value)} takes neither 3 channels nor 1",
            "Denseport gives colour images (3 channels) or grey ones (1).",
        )
    return found

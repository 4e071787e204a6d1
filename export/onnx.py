"""From a torch network to ``model.onnx``, checked against torch before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from denseport.export.errors import ExportError
from denseport.export.models.operators import onnx_translations
from denseport.export.models.segmentor import Segmentor
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession

__all__ = ["TOLERANCE", "Check", "check_export", "export_onnx"]

OPSET = 20
TOLERANCE = 1e-4  # on logits; float32's own noise on them is 2.5e-5
PROTOBUF_LIMIT = 2**31 - 2**20  # bytes; a single ONNX file cannot be larger


@dataclass(frozen=True)
class Check:
    """One comparison of ONNX Runtime with torch."""

    shape: tuple[int, ...]  # of the input
    max_difference: float  # of the logits, absolute
    agreement: float  # share of logit pixels whose class is the same


def export_onnx(model: Segmentor, path: Path, *, limit: int = PROTOBUF_LIMIT) -> list[Path]:
    """Write ``model`` as ONNX; input ``image`` and output ``logits`` have dynamic batch, height and width.

    Args:
        limit: bytes of weights beyond which they go to ``path`` + ".data".

    Returns:
        The files written, the model first.

    Raises:
        ExportError: torch could not export the network, or specialised a size that must stay dynamic.
    """
    dim = torch.export.Dim
    sizes = {0: dim("batch", max=1024), 2: dim("height", max=16384), 3: dim("width", max=16384)}
    # Different from one another and no multiples of the patch, so that no two sizes are taken for one.
    example = torch.zeros(2, 3, 5 * model.spec.backbone.patch_size + 3, 6 * model.spec.backbone.patch_size + 7)
    chatter = io.StringIO()
    try:
        with quiet_exporter(), contextlib.redirect_stdout(chatter):
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": sizes},
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
    except Exception as err:  # whatever torch.export, the translation or the optimizer raise
        raise ExportError(f"torch could not export the network: {err}", "Please report this with the checkpoint's configuration.") from err
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    size = sum(value.nbytes for value in model.state_dict().values())
    program.save(path, external_data=size > limit)
    _check_interface(path)
    data = path.with_name(path.name + ".data")
    return [path, data] if data.exists() else [path]


@contextlib.contextmanager
def quiet_exporter():
    """Keep the exporter's notices to its own developers off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_interface(path: Path) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    for value, dynamic in ((graph.input[0], (0, 2, 3)), (graph.output[0], (0, 2, 3))):
        dims = value.type.tensor_type.shape.dim
        fixed = [i for i in dynamic if not dims[i].dim_param]
        if fixed:
            raise ExportError(f"the exported graph's {value.name!r} has a fixed size in dimension {fixed[0]}")


def check_shapes(patch: int) -> list[tuple[int, int, int, int]]:
    """Input shapes that differ in batch, in aspect, in parity of the token grid, and in padding."""
    return [(1, 3, 8 * patch, 8 * patch), (2, 3, 5 * patch, 7 * patch), (1, 3, 6 * patch + 5, 4 * patch + 9)]


def check_export(
    model: Segmentor, path: Path, shapes: list[tuple[int, int, int, int]] | None = None, tolerance: float = TOLERANCE
) -> list[Check]:
    """Compare ONNX Runtime on ``path`` with torch on random images.

    Args:
        shapes: of the inputs (N, 3, H, W); default `check_shapes`.

    Raises:
        ExportError: the logits differ by more than ``tolerance`` times their own size (where that exceeds 1).
    """
    session = OnnxRuntimeSession(path)
    generator = torch.Generator().manual_seed(0)
    checks = []
    for shape in shapes or check_shapes(model.spec.backbone.patch_size):
        image = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            expected: Tensor = model(image)
        found = session.run(image.numpy())
        want = expected.numpy()
        if found.shape != want.shape:
            raise ExportError(f"for an input of {shape} ONNX Runtime gives {found.shape}, torch {want.shape}")
        check = Check(
            shape, float(np.abs(found - want).max()), float((found.argmax(1) == want.argmax(1)).mean())
        )
        allowed = tolerance * max(1.0, float(np.abs(want).max()))
        if not check.max_difference <= allowed:
            raise ExportError(
                f"for an input of {shape} the logits of ONNX Runtime differ from torch's by "
                f"{check.max_difference:.2g}; allowed are {allowed:.2g}",
                "No bundle was written. Please report this with the checkpoint's configuration and versions.",
            )
        checks.append(check)
    return checks

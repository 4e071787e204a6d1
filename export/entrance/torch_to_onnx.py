"""From a torch network to ``model.onnx``, checked against torch before it is kept."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from denseport.export.entrance.compare import TOLERANCE, Check
from denseport.export.errors import ExportError
from denseport.export.graph.model import PROTOBUF_LIMIT
from denseport.export.graph.opset import lower_opset
from denseport.export.graph.tidy import DYNAMIC, tidy
from denseport.export.models.operators import onnx_translations
from denseport.export.models.segmentor import Segmentor
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.manifest import OUTPUTS
from denseport.runtime.errors import InputError

__all__ = [
    "IR_VERSION",
    "OPSET",
    "check_export",
    "check_versions",
    "export_onnx",
    "exporting",
    "save_program",
]

OPSET, IR_VERSION = 20, 10  # what is written unless older ones are asked for
OLDEST_OPSET, OLDEST_IR_VERSION = 13, 7  # of ONNX 1.8: ONNX Runtime 1.7 and TensorRT 8.0 read them
TRACED_OPSET = 18  # the oldest that torch writes; older graphs are made of it


def check_versions(opset: int, ir_version: int) -> None:
    """Refuse versions of ONNX that the networks cannot be written in.

    Raises:
        InputError: the version, and the oldest and newest that can be had.
    """
    limits = {"opset": (opset, OLDEST_OPSET, OPSET), "ir_version": (ir_version, OLDEST_IR_VERSION, IR_VERSION)}
    for name, (given, oldest, newest) in limits.items():
        if not oldest <= given <= newest:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} {given}: the oldest is {oldest}, the newest {newest}",
                f"Give {option} {oldest} to {newest}.",
            )


def export_onnx(model: Segmentor, path: Path, opset: int = OPSET, ir_version: int = IR_VERSION) -> list[Path]:
    """Write ``model`` as ONNX; input ``image`` and output ``logits`` or ``depth`` have dynamic batch, height and width.

    Args:
        opset, ir_version: of ONNX, in the limits of `check_versions`; older ones are for older servers.

    Returns:
        The files written, the model first; weights beyond `PROTOBUF_LIMIT` bytes are in ``path`` + ".data".

    Raises:
        ExportError: torch could not export the network, or specialised a size that must stay dynamic; an operator has
            no form in ``opset``.
    """
    unit, channels = model.spec.unit, model.spec.backbone.in_channels
    # Height and width differ and are no multiples of the patch, so that the exporter does not take two sizes for one,
    # and no level of the neck has one row, which it would take for a constant.
    example = torch.zeros(2, channels, 5 * unit + 3, 6 * unit + 7)
    dynamic = dict.fromkeys(DYNAMIC, torch.export.Dim.DYNAMIC)
    with exporting("the network", "Please report this with the checkpoint's configuration."):
        traced = torch.export.export(model, (example,), dynamic_shapes={"image": dynamic}, strict=False)
        program = torch.onnx.export(
            traced,
            (),
            input_names=["image"],
            output_names=[OUTPUTS[model.spec.task]],
            dynamo=True,
            opset_version=max(opset, TRACED_OPSET),
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    assert program is not None  # it is only in the deprecated, TorchScript form of the call
    tidy(program.model)
    lower_opset(program.model, opset)
    program.model.ir_version = ir_version
    return save_program(program, path, model)


@contextlib.contextmanager
def exporting(what: str, remedy: str) -> Iterator[None]:
    """Keep the exporter's notices to its own developers off the user's terminal.

    Raises:
        ExportError: the exporter raised something.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as err:  # whatever torch.export, the translation or the optimizer raise
        raise ExportError(f"torch could not export {what}: {err}", remedy) from err
    finally:
        logger.setLevel(level)


def save_program(program: torch.onnx.ONNXProgram, path: Path, network: nn.Module) -> list[Path]:
    """Write a network that torch exported; the files, the model first, and its weights where they are many."""
    is_large = sum(value.nbytes for value in network.state_dict().values()) > PROTOBUF_LIMIT
    program.save(path, external_data=is_large)
    return [path, path.with_name(path.name + ".data")] if is_large else [path]


def check_export(
    model: Segmentor, path: Path, shapes: Sequence[tuple[int, int, int, int]] | None = None
) -> list[Check]:
    """Compare ONNX Runtime on ``path`` with torch on random images.

    Args:
        shapes: of the inputs (N, C, H, W); default: three that differ in batch, aspect, padding and odd token grids.

    Raises:
        ExportError: logits or depths differ by more than `TOLERANCE` times the largest of them (where that exceeds 1).
    """
    p, c = model.spec.unit, model.spec.backbone.in_channels
    shapes = shapes or [(1, c, 8 * p, 8 * p), (2, c, 5 * p, 7 * p), (1, c, 6 * p + 5, 4 * p + 9)]
    session = OnnxRuntimeSession(path)
    generator = torch.Generator().manual_seed(0)
    checks = []
    for shape in shapes:
        image = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            want: NDArray[np.float32] = model(image).numpy()
        found = session.run(image.numpy())
        if found.shape != want.shape:
            raise ExportError(f"for an input of {shape} ONNX Runtime gives {found.shape}, torch {want.shape}")
        same = float((found.argmax(1) == want.argmax(1)).mean())
        check = Check(shape, float(np.abs(found - want).max()), same, found.shape)
        allowed = TOLERANCE * max(1.0, float(np.abs(want).max()))
        if not check.max_difference <= allowed:
            given = "depths" if model.spec.task == "depth" else "logits"
            raise ExportError(
                f"for an input of {shape} the {given} of ONNX Runtime differ from torch's by "
                f"{check.max_difference:.2g}; {allowed:.2g} is allowed",
                "No bundle was written. Please report this with the checkpoint's configuration and versions.",
            )
        checks.append(check)
    return checks

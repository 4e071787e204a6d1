"""The whole way of a module of torch that Denseport did not build, to a bundle on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import Foreign, write_foreign
from denseport.export.entrance.onnx_file import read_onnx
from denseport.export.entrance.torch_to_onnx import OPSET, exporting, save_program
from denseport.export.graph.ends import NCHW
from denseport.export.graph.tidy import DYNAMIC, tidy
from denseport.runtime.bundle.bundle import Bundle, new_bundle
from denseport.runtime.bundle.preprocessing import normalisation
from denseport.runtime.errors import InputError
from denseport.runtime.system.arguments import required_path
from denseport.runtime.system.files import work_folder
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["export_module"]

EXAMPLE = (256, 320)  # height, width, pixels: multiples of all usual strides, and different
USUAL_OUTPUTS = ("logits", "out")  # of transformers, of torchvision


def export_module(
    module: nn.Module,
    output: Path | str,
    declared: Declared,
    *,
    output_name: str | None = None,
    dynamic: bool = True,
    name: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a module that takes images (N, C, H, W) float32, normalised, and gives a class for each pixel.

    The bundle is kept only if ONNX Runtime computes, at three sizes, what the module computes.

    Args:
        module: in evaluation mode; on any device. It gives logits or probabilities (N, C, h, w), or classes; or a dict
            with such.
        declared: classes, and how images are prepared.
        output_name: the entry of a dict; default: its only one, else "logits" or "out".
        dynamic: for any batch, height and width; else for one image of ``declared.size``, where torch ties the module
            to a size.
        name: what the manifest calls the model; default: the class of the module.
        replace: replace an existing bundle.

    Raises:
        ExportError: torch cannot export the module, or the graph computes something else.
        InputError: the module is in training mode, cannot be run, or does not fit what was declared.
        OutputError: ``output`` exists, or cannot be written.
    """
    output, progress = required_path("output", output), progress or Silent()
    if not isinstance(module, nn.Module):
        raise InputError(f"a {type(module).__name__} is not a torch.nn.Module", "Wrap it in one.")
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in module.parameters()):
        raise InputError("the module has weights in 16 bits; a bundle's source is FP32", "Call module.float() first.")
    if module.training:
        raise InputError("the module is in training mode: its result would not repeat", "Call module.eval() first.")
    size = declared.resize_size()
    if not dynamic and size is None:
        raise InputError("dynamic=False exports for one size, and none was declared", "Give Declared(size=(W, H)).")
    kind = type(module)
    with new_bundle(output, replace=replace) as folder, work_folder(folder) as work:
        progress.say(f"exporting {kind.__name__} by torch")
        network = _OneOutput(module, output_name)
        example = torch.zeros(2 if dynamic else 1, _channels(declared), *(size if size and not dynamic else EXAMPLE))
        path = work / f"{kind.__name__}.onnx"
        _trace(network, example, path, dynamic=dynamic)
        about = {"checkpoint": f"{kind.__module__}.{kind.__qualname__}", "layout": "a module of torch"}
        foreign = Foreign(
            label=f"the module {kind.__name__}",
            folder=work,
            name=kind.__name__,
            model=read_onnx(path),
            about=about,
            architecture=kind.__name__,
            layout=NCHW,
            reference=network.run,
        )
        write_foreign(foreign, folder, output, declared, name=name, progress=progress)
    return Bundle(output)


def _channels(declared: Declared) -> int:
    if declared.mean is not None:
        return len(declared.mean)
    given = declared.settings.preprocess
    return 3 if given is None else len(normalisation(given).mean)


class _OneOutput(nn.Module):
    """A module whose result is one tensor."""

    def __init__(self, module: nn.Module, name: str | None) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.training = False  # the module is, and its parts are left as they are
        tensors = (*module.parameters(), *module.buffers())
        self.device = tensors[0].device if tensors else torch.device("cpu")

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> what was chosen of the module's result."""
        found = self.module(image)
        return found if isinstance(found, Tensor) else _chosen(found, self.name)

    def run(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """The same for arrays."""
        with torch.inference_mode():
            found: NDArray[Any] = self(torch.from_numpy(images).to(self.device)).cpu().numpy()
        return found


def _chosen(found: Any, name: str | None) -> Tensor:
    """One tensor of a dict.

    Raises:
        InputError: no dict, or none was chosen of several.
    """
    if not isinstance(found, Mapping):
        what = f"the module gives a {type(found).__name__}, not a tensor or a dict of tensors"
        raise InputError(what, "Wrap it in a module that returns the logits.")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    wanted = name if name is not None else next((key for key in USUAL_OUTPUTS if key in tensors), None)
    if wanted is None and len(tensors) == 1:
        wanted = next(iter(tensors))
    if wanted not in tensors:
        what = f"the module gives {', '.join(tensors) or 'no tensor'}"
        raise InputError(f"{what}, not {wanted}" if wanted else what, "Name the one to take with output_name.")
    return tensors[wanted]


def _trace(network: _OneOutput, example: Tensor, path: Path, *, dynamic: bool) -> None:
    """Write the network as ONNX, its nodes named after its layers."""
    remedy = "Give dynamic=False and a size: one that the module was trained for."
    example = example.to(network.device)
    try:
        with torch.inference_mode():
            network(example)  # what the module itself does not take is no fault of the exporter
    except InputError:
        raise
    except Exception as err:  # whatever its own code raises
        batch, channels, height, width = example.shape
        given = f"{batch} images of {width} x {height} pixels and {channels} channels"
        raise InputError(f"the module cannot be run on {given}: {err}", remedy) from err
    free = dict.fromkeys(DYNAMIC, torch.export.Dim.DYNAMIC)
    remedy = remedy if dynamic else "Export it yourself, and give the file to denseport import."
    with exporting(f"the module{' for any size' * dynamic}", remedy):
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=["output"],
            dynamic_shapes=({**free},) if dynamic else None,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # it is only in the deprecated, TorchScript form of the call
    tidy(program.model, any_size=False)
    for named in (*program.model.graph, *program.model.graph.initializers.values()):
        named.name = str(named.name).removeprefix("module.")
    save_program(program, path, network)

"""What can go wrong between a checkpoint and a bundle, or an engine.

denseport.runtime.errors.InputError     exit 2
├── CheckpointError                     not a checkpoint, unsafe, or of another network
├── ExportError                         an ONNX graph is wrong, or cannot be changed or run as was asked
└── BuildError                          TensorRT cannot make an engine of the graph
"""

from __future__ import annotations

from denseport.runtime.errors import InputError

__all__ = ["BuildError", "CheckpointError", "ExportError"]


class CheckpointError(InputError):
    """A file that is not a checkpoint, that would run code, or that holds another network."""


class ExportError(InputError):
    """An ONNX graph that cannot be made, read, changed or run, or that does not compute what torch computes."""


class BuildError(InputError):
    """TensorRT cannot make an engine of the graph."""

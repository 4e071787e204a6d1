"""What can go wrong between a checkpoint and a bundle, or an engine.

denseport.runtime.errors.InputError     exit 2
├── CheckpointError                     not a checkpoint, unsafe, or of another network
├── ExportError                         the exported graph is wrong, so no bundle was kept
└── BuildError                          TensorRT cannot make an engine of the graph
"""

from __future__ import annotations

from denseport.runtime.errors import InputError

__all__ = ["BuildError", "CheckpointError", "ExportError"]


class CheckpointError(InputError):
    """A file that is no checkpoint, that would run code, or that holds another network."""


class ExportError(InputError):
    """The exported graph could not be made, or does not compute what torch computes."""


class BuildError(InputError):
    """TensorRT cannot make an engine of the graph."""

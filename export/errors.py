"""What can go wrong between a checkpoint and a bundle.

denseport.runtime.errors.InputError     exit 2
├── CheckpointError                     not a checkpoint, unsafe, or of another network
└── ExportError                         the exported graph is wrong, so no bundle was kept
"""

from __future__ import annotations

from denseport.runtime.errors import InputError

__all__ = ["CheckpointError", "ExportError"]


class CheckpointError(InputError):
    """A file that is no checkpoint, that would run code, or that holds another network."""


class ExportError(InputError):
    """The exported graph could not be made, or does not compute what torch computes."""

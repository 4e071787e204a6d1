"""The errors that a user can meet, and the exit code each one carries.

Each message says what is wrong and where; ``remedy`` says how to mend it. The accuracy gate is not an
error: a failed gate is a result, reported with exit code 1.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "DatasetError",
    "DenseportError",
    "ImageError",
    "InputError",
    "MachineError",
    "OutputError",
    "ServerError",
    "is_out_of_memory",
]

# What libraries say that raise no MemoryError: C++'s own, ONNX Runtime, torch, OpenCV, and threads without a stack.
_OUT_OF_MEMORY = (
    "bad_alloc",
    "Failed to allocate",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "Insufficient memory",
    "can't start new thread",
)


class DenseportError(Exception):
    """Base of every error that Denseport raises on purpose.

    Args:
        message: what is wrong, and where (the file, key or argument at fault).
        remedy: the command or change that mends it.
    """

    exit_code = 2

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class InputError(DenseportError):
    """Something that the user gave (an argument, a file) is wrong."""


class ImageError(InputError):
    """An image, video or mask that is missing or cannot be decoded."""


class BundleError(InputError):
    """A bundle that is incomplete, altered since it was written, or of an unknown format."""


class DatasetError(InputError):
    """A data set whose images and masks do not belong together or do not fit the model."""


class OutputError(InputError):
    """A place that cannot be written: no permission, no room, or a file in the way."""


class MachineError(DenseportError):
    """This machine lacks something that was asked for: a package, a device, memory."""

    exit_code = 3


class ServerError(MachineError):
    """A server that cannot be reached, is not ready, or does not answer in time."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of Python or of a library, says that memory ran out."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)

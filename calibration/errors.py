"""The error of calibration; see `denseport.runtime.errors` for the tree it belongs to."""

from __future__ import annotations

from denseport.runtime.errors import InputError

__all__ = ["CalibrationError"]


class CalibrationError(InputError):
    """A model that cannot be quantized, or images that cannot calibrate it."""

"""The files of kernels, in the order in which they are joined."""

from __future__ import annotations

from pathlib import Path

__all__ = ["COMMON", "PICTURE", "PICTURE_SOURCES", "RESIZE_ARGMAX"]

_HERE = Path(__file__).parent
COMMON, RESIZE_ARGMAX, PICTURE = (_HERE / name for name in ("common.cu", "resize_argmax.cu", "picture.cu"))
PICTURE_SOURCES = (COMMON, RESIZE_ARGMAX, PICTURE)

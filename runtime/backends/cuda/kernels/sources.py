"""The files of kernels, in the order in which they are joined."""

from __future__ import annotations

from pathlib import Path

__all__ = ["COMMON", "IMAGE", "IMAGE_SOURCES", "RESIZE_ARGMAX"]

_HERE = Path(__file__).parent
COMMON, RESIZE_ARGMAX, IMAGE = (_HERE / name for name in ("common.cu", "resize_argmax.cu", "image.cu"))
IMAGE_SOURCES = (COMMON, RESIZE_ARGMAX, IMAGE)

"""The PTX of the plugin's kernels: all of them for a GPU that loads them, or one alone for an engine."""

from __future__ import annotations

import re
from pathlib import Path

from denseport.runtime.backends.cuda.kernels import compile as nvrtc
from denseport.runtime.backends.cuda.kernels.compile import COMMON, RESIZE_ARGMAX

__all__ = ["SOURCES", "compile_ptx", "single_kernel"]

SOURCES = (COMMON, RESIZE_ARGMAX, Path(__file__).with_name("kernels.cu"))


def compile_ptx() -> bytes:
    """The PTX of every kernel of the plugin; compiled once, errors as of the runtime's `compile_ptx`."""
    return nvrtc.compile_ptx(SOURCES)


def single_kernel(ptx: bytes, kernel: str) -> bytes:
    """Return ``ptx`` cut down to one entry point: an engine then holds 15 to 95 kB of it a layer, not 700.

    Raises:
        ValueError: ``ptx`` has no such entry point, or it calls a function outside of it.
    """
    text = ptx.decode("ascii")
    entries = list(re.finditer(r"^(?:\t?//.*\n)*\.visible \.entry (\w+)\((?:.*\n)*?^}\n", text, re.MULTILINE))
    wanted = [entry for entry in entries if entry[1] == kernel]
    if not wanted or ".func" in text:
        raise ValueError(f"no self-contained kernel {kernel} in the PTX: it has {[entry[1] for entry in entries]}")
    return (text[: entries[0].start()] + wanted[0][0]).encode("ascii")

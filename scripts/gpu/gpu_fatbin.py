"""Machine code of other GPUs out of a CUDA library, so that it packs small: what stays is found where it was.

A library holds fatbins, each with an entry for every architecture it was built for. The driver picks one by its header;
the contents of the others are never read and become zeros here. A fatbin without that architecture stays whole.
NVIDIA's cuobjdump still extracts what stays.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator

__all__ = ["keep_architecture"]

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)  # and the version and size of the header, as CUDA 12 and 13 write them
CUBIN, PTX = 2, 1


def keep_architecture(library: bytearray, architecture: int) -> Counter[int]:
    """Blank all machine code but that of one architecture, in place.

    Args:
        library: a shared library; its length and layout stay.
        architecture: 90 for Hopper.

    Returns:
        Bytes of machine code by architecture, before.

    Raises:
        ValueError: a fatbin is not laid out as expected, or none has code for that architecture.
    """
    found: Counter[int] = Counter()
    for start, end in _fatbins(library):
        entries = list(_entries(library, start, end))
        there = any(number == architecture for number, _, _ in entries)
        for number, begin, size in entries:
            found[number] += size
            if there and number != architecture:
                library[begin : begin + size] = bytes(size)
    if architecture not in found:
        raise ValueError(f"no code for sm_{architecture}, only for {', '.join(f'sm_{each}' for each in sorted(found))}")
    return found


def _fatbins(library: bytearray) -> Iterator[tuple[int, int]]:
    """First byte and end of the entries of each."""
    for match in re.finditer(re.escape(MAGIC), library):
        (size,) = struct.unpack_from("<Q", library, match.end())
        start = match.start() + 16
        if start + size > len(library):
            raise ValueError(f"the fatbin at byte {match.start()} ends behind the file")
        yield start, start + size


def _entries(library: bytearray, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Architecture, first byte and size of each entry's content."""
    at = start
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", library, at)
        (number,) = struct.unpack_from("<I", library, at + 28)
        if kind not in (PTX, CUBIN) or header < 64 or at + header + size > end:
            raise ValueError(f"the entry at byte {at} is none of a fatbin")
        yield number, at + header, size
        at += header + size

"""Which files an ONNX model makes its reader open, found without the onnx package and without opening them.

A tensor may lie in an external file, at a path that the author of the model chose. Readers follow it with few checks or
none, so `Bundle.verified` compares these files with the manifest first.

Only lengths are read from the protobuf; weights are skipped. Source of the field numbers: onnx.proto3 of ONNX 1.20; of
the wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["external_files"]

# The messages on the way from a model to its tensors: which field of each holds which message.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LARGEST_TAG = 2**32 - 1


def external_files(path: Path) -> set[str]:
    """The locations of all external tensors of an ONNX file, as they are written in it.

    Raises:
        ValueError: the file is no protobuf message.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise ValueError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _locations(data)


def _locations(data: mmap.mmap) -> set[str]:
    found = set[str]()
    left = [("model", 0, len(data))]  # a stack: a hostile file may nest graphs deeper than Python's recursion
    while left:
        message, start, stop = left.pop()
        for field, begin, end in _fields(data, start, stop):
            kind = _FIELDS[message].get(field)
            if kind == "entry":
                entry = {number: data[a:b] for number, a, b in _fields(data, begin, end)}
                if entry.get(_KEY) == b"location":
                    found.add(entry.get(_VALUE, b"").decode("utf-8", "replace"))
            elif kind is not None:
                left.append((kind, begin, end))
    return found


def _fields(data: mmap.mmap, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that hold bytes: number, begin and end of each."""
    while at < stop:
        tag, at = _varint(data, at, stop)
        field, wire = tag >> 3, tag & 7
        if not field or tag > _LARGEST_TAG:
            raise ValueError(f"no protobuf message at byte {at}")
        begin = at
        if wire == _BYTES:
            length, begin = _varint(data, at, stop)
            at = begin + length
        elif wire == _VARINT:
            _, at = _varint(data, at, stop)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"no protobuf message at byte {at}")
        if at > stop:
            raise ValueError(f"cut short at byte {stop}")
        if wire == _BYTES:
            yield field, begin, at


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"no number at byte {at}")

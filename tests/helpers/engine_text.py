"""What an engine of TensorRT-RTX says of itself in its own bytes, since opening it takes a GPU."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_TENSOR = re.compile(rb'tensor=\{(?:[^{}]|\{[^{}]*\})*?name="([^"]+)"(?:[^{}]|\{[^{}]*\})*?type=(\w+)')
_PRODUCT = re.compile(rb'(fully_connected|corrltn)=\{ name="[^"]+" output=\{"[^"]+" \} input=\{((?:"[^"]+" ?)+)\}')


def products(engine: Path) -> Counter[tuple[str, str, str]]:
    """How many linear layers ("fully_connected") and convolutions ("corrltn") multiply which two types."""
    data = engine.read_bytes()
    types = {found[1]: found[2].decode() for found in _TENSOR.finditer(data)}
    counts: Counter[tuple[str, str, str]] = Counter()
    for kind, names in _PRODUCT.findall(data):
        first, second = re.findall(rb'"([^"]+)"', names)[:2]
        counts[kind.decode(), types.get(first, "?"), types.get(second, "?")] += 1
    return counts

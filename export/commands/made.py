"""What a command that makes a bundle says of it first."""

from __future__ import annotations

import json
from typing import Any

from denseport.runtime.bundle.bundle import Bundle

__all__ = ["say_made"]


def say_made(bundle: Bundle, *, as_json: bool) -> dict[str, Any] | None:
    """Print what was made; returns the source's record, to say more of, or None after JSON, which has all of it."""
    manifest = bundle.manifest
    record = manifest.artifacts[manifest.source].record
    if as_json:
        about = {"bundle": str(bundle.path), "name": manifest.name, "warnings": manifest.provenance["warnings"]}
        print(json.dumps({**about, **record}))
        return None
    gives = f"{len(manifest.classes)} classes"
    if (depth := manifest.depth) is not None:
        limit = f" up to {depth.largest:.4g}" if depth.largest else ""
        gives = f"depth in metres{limit}" if depth.unit == "metres" else f"relative depth, larger is {depth.larger_is}"
    size = f"{manifest.parameters / 1e6:,.1f} M parameters, {gives}"
    print(f"{bundle.path}: {manifest.name}, {size}")
    return record

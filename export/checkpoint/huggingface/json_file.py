"""A folder's JSON files as settings, of which those that are not carried out are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from denseport.export.errors import CheckpointError

__all__ = ["OTHER", "check_settings", "object_of", "read_object"]

LIMIT = 10_000_000  # bytes of a JSON file
OTHER = "Run it with transformers, or export it there and `denseport import` the ONNX file."


def check_settings(path: Path, given: Mapping[str, Any], known: Set[str], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse, by its name, a key or a value that may change the result and is not carried out.

    Args:
        known: keys that are carried out, or change nothing.
        only: keys that are supported with some values.

    Raises:
        CheckpointError: there is one.
    """
    for key, value in given.items():
        if key in only and value not in only[key]:
            raise CheckpointError(f"{path}: {key} is {value!r}; only {only[key][0]!r} is supported", OTHER)
        if key not in only and key not in known:
            what = f"{path}: {key} is {value!r}, which is not known and may change the result"
            raise CheckpointError(what, f"Remove it if it changes no prediction. {OTHER}")


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError where it says a key twice, of which json would take the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is said twice")
        found[name] = value
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise CheckpointError(f"{path}: above {LIMIT:,} bytes, which no configuration has", "Fetch it again.")
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=object_of)
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read: {err.strerror or err}", "Check its permissions.") from err
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: not JSON: {err}", "Fetch the file again.") from err
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a JSON object", "Fetch the file again.")
    return data

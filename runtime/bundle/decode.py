"""Frozen dataclasses from JSON, strictly: a missing, unknown or mistyped field is an error that names it."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from denseport.runtime.errors import BundleError

__all__ = ["decode_dataclass", "reading_record"]

LARGEST_INTEGER = 2**63 - 1  # JSON knows no limit; arrays and floats do
EXPORT_AGAIN = "Export or import it again."

T = TypeVar("T")


def decode_dataclass(cls: type[T], value: Any, where: str, at: str) -> T:
    """A frozen dataclass from JSON values, strictly. JSON has no fields that the constructor does not take.

    Args:
        where: the file, for messages.
        at: the field in the file, for messages.

    Raises:
        BundleError: a field is missing, unknown or mistyped.
    """
    if not isinstance(value, dict):
        raise _mistyped(where, at, cls.__name__, value)
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init]
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    for problem, keys in (("missing", needed - value.keys()), ("unknown", value.keys() - {f.name for f in fields})):
        if keys:
            raise BundleError(f"{where}: {at}: {problem} {', '.join(sorted(keys))}", EXPORT_AGAIN)
    try:
        return cls(**{key: _decode(hints[key], item, where, f"{at}.{key}") for key, item in value.items()})
    except (ValueError, OverflowError) as err:
        raise BundleError(f"{where}: {at}: {err}", EXPORT_AGAIN) from err


def _decode(kind: Any, value: Any, where: str, at: str) -> Any:
    """``value`` (from JSON) as an instance of the annotated type ``kind``; ``at`` names it in messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType]
        if value is None and len(options) < len(arguments):
            return None
        return _decode(options[0], value, where, at) if len(options) == 1 else _tagged(options, value, where, at)
    if dataclasses.is_dataclass(kind):
        return decode_dataclass(typing.cast(Any, kind), value, where, at)
    if origin is tuple and isinstance(value, list):
        many = arguments[-1] is Ellipsis
        if not many and len(value) != len(arguments):
            raise _mistyped(where, at, f"{len(arguments)} values", value)
        kinds = arguments[:1] * len(value) if many else arguments
        return tuple(_decode(k, v, where, f"{at}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, where, f"{at}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _mistyped(where, at, "a finite number", value)
        return float(value)
    if kind is int and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise _mistyped(where, at, "a smaller number", "…")
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _mistyped(where, at, getattr(kind, "__name__", str(kind)), value)


def _tagged(options: list[Any], value: Any, where: str, at: str) -> Any:
    """One of several dataclasses, chosen by the field ``kind``, which has another value in each."""
    by_kind = {option.kind: option for option in options}  # the default of a dataclass's field is its attribute
    if not isinstance(value, dict):
        raise _mistyped(where, at, f"an object of kind {', '.join(by_kind)}", value)
    rest = dict(value)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in by_kind:
        raise _mistyped(where, f"{at}.kind", f"one of {', '.join(by_kind)}", kind)
    return decode_dataclass(by_kind[kind], rest, where, at)


def _mistyped(where: str, at: str, expected: str, found: Any) -> BundleError:
    shown = json.dumps(found)
    shown = shown if len(shown) < 60 else shown[:57] + "..."
    return BundleError(f"{where}: {at}: expected {expected}, found {shown}", EXPORT_AGAIN)


@contextmanager
def reading_record(where: str) -> Iterator[None]:
    """Turns what goes wrong with a record, whose fields are not checked, into a BundleError about ``where``."""
    try:
        yield
    except BundleError as err:
        raise err if err.message.startswith(where) else BundleError(f"{where}: {err.message}", err.remedy) from err
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
        raise BundleError(f"{where}: its record is damaged: {err!r}", "Build or measure the artifact again.") from err

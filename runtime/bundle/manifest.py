"""The manifest of a bundle: what the model is, how images reach it, and which artifacts run it.

A bundle is a folder; ``manifest.json`` in it is this module's `Manifest` as JSON (docs/bundle.md has it
field by field). Reading is strict: a missing, unknown or mistyped field is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from denseport.runtime.errors import BundleError
from denseport.runtime.system.terminal import CONTROLS

__all__ = [
    "FORMAT_VERSION",
    "FOR_CPU",
    "FP32",
    "LARGEST_SIDE",
    "Artifact",
    "Inference",
    "Manifest",
    "Preprocess",
    "Reference",
    "decode_dataclass",
    "reading_record",
]

FORMAT_VERSION = 1
FP32 = "model.onnx"  # the artifact that an export writes; all others are made of it and compared with it
FOR_CPU = ".cpu.onnx"  # ends the names of INT8 artifacts in operators of ONNX Runtime's CPU back end
LARGEST_INTEGER = 2**63 - 1  # JSON knows no limit; arrays and floats do
LARGEST_SIDE = 2**15  # pixels that an image may be resized to; a hostile manifest must not ask for all the memory
# Names are printed, one a line: a line that a name breaks could say anything.
_UNPRINTABLE = re.compile(f"[\t\n{CONTROLS}]")

T = TypeVar("T")


@dataclass(frozen=True)
class Preprocess:
    """From a uint8 BGR image to the network's input."""

    # Pixels: the longer and the shorter side's limit; width, height if not keep_ratio.
    scale: tuple[int, int] = (2048, 512)
    keep_ratio: bool = True
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, grey levels
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)  # RGB, grey levels
    bgr_to_rgb: bool = True  # the network wants RGB (False: BGR; mean and std are then in BGR order)

    def __post_init__(self) -> None:
        if min(self.scale) < 1:
            raise ValueError(f"scale {self.scale} has a side below 1 pixel")
        if max(self.scale) > LARGEST_SIDE:
            raise ValueError(f"scale {self.scale} has a side above {LARGEST_SIDE} pixels")
        if len(self.mean) != 3 or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean {self.mean} is not three numbers")
        if len(self.std) != 3 or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std {self.std} is not three positive numbers")


@dataclass(frozen=True)
class Inference:
    """How the network is moved over the resized image."""

    mode: str = "whole"  # "whole" or "slide"
    crop: tuple[int, int] | None = None  # slide: height, width of a window, pixels of the resized image
    stride: tuple[int, int] | None = None  # slide: rows, columns from one window to the next

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ValueError(f"mode {self.mode!r} is neither 'whole' nor 'slide'")
        if self.mode == "slide" and (self.crop is None or self.stride is None):
            raise ValueError("mode 'slide' needs crop and stride")
        for name in ("crop", "stride"):
            value = getattr(self, name)
            if value is not None and not 1 <= min(value) <= max(value) <= LARGEST_SIDE:
                raise ValueError(f"{name} {value} has a side that is not in 1..{LARGEST_SIDE} pixels")


@dataclass(frozen=True)
class Reference:
    """The published result that this model is compared with."""

    preset: str
    dataset: str
    protocol: str  # how it was measured; the accuracy gate compares like with like
    mIoU: float | None  # percent, single scale
    mIoU_ms_flip: float | None  # percent, multi-scale and flip
    recognised_by: str  # why this checkpoint is taken for that model


@dataclass(frozen=True)
class Artifact:
    """One runnable file of a bundle."""

    kind: str  # "onnx" or "engine"
    precision: str  # "fp32", "fp16", "bf16", "int8", "fp8"
    files: dict[str, str]  # file name to sha256; the first is opened, others are its external data
    record: dict[str, Any] = field(default_factory=dict)  # how it was built and what was measured on it


@dataclass(frozen=True)
class Manifest:
    """Everything that a deployment needs to know about a model."""

    name: str
    architecture: str  # "DPT" or "UPerNet"
    parameters: int
    patch_size: int  # pixels; a network input has at least one patch
    stride: int  # input pixels per logit
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB
    reduce_zero_label: bool  # the data set's masks count from 1, 0 is ignored
    preprocess: Preprocess
    inference: Inference
    reference: Reference | None
    provenance: dict[str, Any]  # checkpoint and its hash, versions, warnings given
    spec: dict[str, Any]  # the network, for people; `denseport.export.models.spec` has the meaning
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    budgets: dict[str, float] = field(default_factory=dict)  # mIoU points a precision may lose; default: the gate's own
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("parameters", "patch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")
        if not self.classes:
            raise ValueError("a model has at least one class")
        if not all(0 <= level <= 255 for colour in self.palette for level in colour):
            raise ValueError("the palette is not within 0..255")
        for text in (self.name, self.architecture, *self.classes, *self.artifacts):
            if _UNPRINTABLE.search(text):
                raise ValueError(f"the name {text!r} holds control characters")
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} colours for {len(self.classes)} classes")

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read a manifest.

        Args:
            where: the file's name, for messages.

        Raises:
            BundleError: no JSON, another format version, or a field that is missing, unknown or mistyped.
        """
        try:
            data = json.loads(text)
            json.dumps(data, ensure_ascii=False).encode()  # lone surrogates could be written nowhere
        except (ValueError, RecursionError) as err:
            raise BundleError(f"{where}: not JSON: {err}", "Export the checkpoint again.") from err
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{where}: format version {version!r}; this Denseport reads version {FORMAT_VERSION}",
                "Use the Denseport that wrote the bundle, or export the checkpoint again.",
            )
        return decode_dataclass(cls, data, where, "manifest")


def _decode(kind: Any, value: Any, where: str, at: str) -> Any:
    """``value`` (from JSON) as an instance of the annotated type ``kind``; ``at`` names it in messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType]
        return None if value is None else _decode(options[0], value, where, at)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return decode_dataclass(typing.cast(Any, kind), value, where, at)
    if origin is tuple and isinstance(value, list):
        many = arguments[-1] is Ellipsis
        if not many and len(value) != len(arguments):
            raise _mistyped(where, at, f"{len(arguments)} values", value)
        kinds = [arguments[0]] * len(value) if many else list(arguments)
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


def decode_dataclass(cls: type[T], value: dict[str, Any], where: str, at: str) -> T:
    """A frozen dataclass from JSON values, strictly.

    Args:
        where: the file, and
        at: the field in it, for messages.

    Raises:
        BundleError: a field is missing, unknown or mistyped.
    """
    if not isinstance(value, dict):
        raise _mistyped(where, at, cls.__name__, value)
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    required = {
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    for problem, keys in (("missing", required - value.keys()), ("unknown", value.keys() - names)):
        if keys:
            raise BundleError(f"{where}: {at}: {problem} {', '.join(sorted(keys))}", "Export the checkpoint again.")
    try:
        return cls(**{key: _decode(hints[key], item, where, f"{at}.{key}") for key, item in value.items()})
    except (ValueError, OverflowError) as err:
        raise BundleError(f"{where}: {at}: {err}", "Export the checkpoint again.") from err


@contextmanager
def reading_record(where: str) -> Iterator[None]:
    """Turns what goes wrong with a record, whose fields nobody checked, into a BundleError about ``where``."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
        raise BundleError(f"{where}: its record is damaged: {err!r}", "Build or measure the artifact again.") from err


def _mistyped(where: str, at: str, expected: str, found: Any) -> BundleError:
    shown = json.dumps(found)
    return BundleError(
        f"{where}: {at}: expected {expected}, found {shown if len(shown) < 60 else shown[:57] + '...'}",
        "Export the checkpoint again.",
    )

"""mmsegmentation's configuration: the text inside a checkpoint, or a file with its ``_base_``. Nothing of it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from denseport.export.checkpoint.huggingface.json_file import object_of
from denseport.export.checkpoint.python_data import DUMPED, TEXT_LIMIT, Assignments, Unknown, settled
from denseport.export.errors import CheckpointError

__all__ = ["CORRECT", "apply_config", "look_up", "parse_config", "read_config", "with_fields"]

# The remedy for a setting that the weights or Denseport contradict.
CORRECT = (
    "Give a corrected configuration by --config: mmsegmentation's own file, or a .json of the settings that are wrong."
)
FILES_LIMIT = 100

# What a file of weights cannot show: the spec's name, its place in a configuration, an example of its type, or several
# (a tuple).
_HEAD, _NORMALISE, _DATA = "model.decode_head.", "model.data_preprocessor.", "test_dataloader.dataset."
FIELDS: dict[str, tuple[str, Any]] = {
    "num_heads": ("model.backbone.num_heads", (12, [1])),
    "out_indices": ("model.backbone.out_indices", [2]),
    "norm_eps": ("model.backbone.norm_cfg.eps", 1e-6),
    "img_size": ("model.backbone.img_size", [512]),
    "interpolate_mode": ("model.backbone.interpolate_mode", "bilinear"),
    "with_cls_token": ("model.backbone.with_cls_token", True),
    "strides": ("model.backbone.strides", [4]),
    "scales": ("model.neck.scales", [0.5]),
    "in_index": (f"{_HEAD}in_index", (3, [0])),
    "readout": (f"{_HEAD}readout_type", "project"),
    "pool_scales": (f"{_HEAD}pool_scales", [1]),
    "up_scale": (f"{_HEAD}up_scale", 4),
    "decoder_heads": (f"{_HEAD}num_heads", 12),
    "align_corners": (f"{_HEAD}align_corners", False),
    "threshold": (f"{_HEAD}threshold", 0.3),
    "depth": (f"{_HEAD}depth", "relative"),
    "max_depth": (f"{_HEAD}max_depth", 20.0),
    "inversion": (f"{_HEAD}inversion", [0.000305, 0.1378]),
    "mean": (f"{_NORMALISE}mean", [0.5]),
    "std": (f"{_NORMALISE}std", [0.5]),
    "bgr_to_rgb": (f"{_NORMALISE}bgr_to_rgb", True),
    "mode": ("model.test_cfg.mode", "slide"),
    "crop_size": ("model.test_cfg.crop_size", [512]),
    "stride": ("model.test_cfg.stride", [512]),
    "classes": (f"{_DATA}metainfo.classes", ["wall"]),
    "reduce_zero_label": (f"{_DATA}reduce_zero_label", True),
    "ignore_index": ("test_evaluator.ignore_index", 255),
}
# Parts of a configuration that decide what a network computes on a test image, without those that only training uses.
USED = ("model", "data_preprocessor", "test_pipeline", "test_dataloader.dataset.pipeline", "data.test.pipeline")
TRAINING = {"pretrained", "train_cfg", "auxiliary_head", "init_cfg", "loss_decode", "drop_path_rate", "dropout_ratio"}


def look_up(config: Mapping[str, Any], *path: str, default: Any = None) -> Any:
    """``config[path[0]][path[1]]…``, or ``default`` where a step is missing or no dict.

    Raises:
        CheckpointError: the value, or a part of a list of values, is unknown.
    """
    value: Any = config
    for i, key in enumerate(path):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
        if isinstance(value, Unknown):
            value.refuse(name=".".join(path[: i + 1]))
    for item in value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, Unknown):
            item.refuse(name=".".join(path))
    return value


def apply_config(path: Path, own: dict[str, Any] | None) -> tuple[dict[str, Any], bool, list[str]]:
    """The configuration of a file, or its fields over ``own``; whether that is a whole one; and warnings.

    Args:
        path: mmsegmentation's configuration (``.py``, ``.json``), or a ``.json`` file of `FIELDS`.
        own: the configuration inside the checkpoint; None where it has none.

    Raises:
        CheckpointError: as `read_config`, and a field that is unknown or of another type.
    """
    found = read_config(path)
    if has_fields := _holds_fields(path, found):
        found = _merge(_fields(found, path), own or {}, str(path))
    names = (
        [] if own is None else [name for part in USED for name in _differences(_at(found, part), _at(own, part), part)]
    )
    warnings = []
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        said = f"--config differs from the checkpoint's own configuration in {', '.join(names[:5])}{more}"
        warnings.append(f"{said}: --config is used.")
    return found, not has_fields or own is not None, warnings


def with_fields(path: Path, own: dict[str, Any], known: Collection[str], what: str) -> dict[str, Any]:
    """A configuration that is not mmsegmentation's, with the fields of a ``.json`` file that it leaves open.

    Args:
        known: the fields that mean something for it.
        what: the checkpoint, to begin a message with.

    Raises:
        CheckpointError: a whole configuration, another field, or one that ``own`` says otherwise.
    """
    given = read_config(path)
    remedy = f"Give a .json of settings that it does not hold: {', '.join(known)}."
    if not _holds_fields(path, given):
        raise CheckpointError(f"{what}, and --config is mmsegmentation's: {path.name}", remedy)
    fields = _fields(given, path, known)
    for name in given:
        if name not in known or _at(own, FIELDS[name][0]) not in (None, given[name]):
            said = _at(own, FIELDS[name][0])
            where = "" if said is None else f", and the checkpoint {said!r}"
            raise CheckpointError(f"{what}: {path.name} says {name} {given[name]!r}{where}", remedy)
    return _merge(fields, own, str(path))


def _holds_fields(path: Path, found: Mapping[str, Any]) -> bool:
    return path.suffix == ".json" and not found.keys() & {"model", "data", "test_dataloader", "test_pipeline"}


def _fields(given: dict[str, Any], path: Path, known: Collection[str] = tuple(FIELDS)) -> dict[str, Any]:
    """Fields under the spec's names as a configuration; ``known`` are named where another one is given."""
    config: dict[str, Any] = {}
    for name, value in given.items():
        if name not in FIELDS:
            what = f"{path}: {name!r} is neither a field nor a part of a configuration"
            raise CheckpointError(what, f"Fields are {', '.join(known)}.")
        place, example = FIELDS[name]
        if not _is_like(value, example):
            examples = " or ".join(map(json.dumps, example if isinstance(example, tuple) else (example,)))
            raise CheckpointError(f"{path}: {name} is {value!r}", f"Give a value like {examples}.")
        *parts, last = place.split(".")
        inner = config
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return config


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, tuple):
        return any(_is_like(value, each) for each in example)
    if isinstance(example, list):
        return isinstance(value, list) and all(_is_like(item, example[0]) for item in value)
    return type(value) is type(example) or (type(value) is int and type(example) is float)


def _at(config: Mapping[str, Any], place: str) -> Any:
    value: Any = config
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _differences(one: Any, other: Any, name: str) -> Iterator[str]:
    """The dotted names of the settings in which two configurations differ; lists and tuples are the same."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}.keys() - TRAINING:
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{name}[{i}]")
    elif isinstance(one, Unknown) or isinstance(other, Unknown) or one != other:
        yield name


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a ``.py`` or ``.json`` file, merged over its bases as mmengine's ``Config.fromfile`` does.

    Raises:
        CheckpointError: it cannot be read, is not such a configuration, or is one that only Python could resolve.
    """
    try:
        return _Files().read(path)
    except RecursionError as err:
        raise CheckpointError(f"{path}: nested too deeply", DUMPED) from err


def parse_config(text: str, where: str = "the configuration") -> dict[str, Any]:
    """The assignments of a whole configuration, by name; ``where`` is how messages call the text.

    Raises:
        CheckpointError: the text is not Python, too large, or refers to files (``_base_``).
    """
    try:
        assignments = Assignments(text, where)
        if assignments.base() is not None:
            raise CheckpointError(f"{where}: refers to other files by _base_", f"Give --config. {DUMPED}")
        found = assignments.read({})
    except RecursionError as err:
        raise CheckpointError(f"{where}: nested too deeply", DUMPED) from err
    return {name: value for name, value in found.items() if name != "_base_"}


class _Files:
    """Reads one file and its bases."""

    def __init__(self) -> None:
        self.open: list[str] = []  # the files that are being read, each a base of the one before
        self.count, self.left = 0, TEXT_LIMIT

    def read(self, path: Path) -> dict[str, Any]:
        text, real = _text(path), os.path.realpath(path)
        self.count, self.left = self.count + 1, self.left - len(text)
        if real in self.open:
            raise CheckpointError(f"{path}: is its own base", DUMPED)
        if self.count > FILES_LIMIT or self.left < 0:
            raise CheckpointError(f"{path}: more than {FILES_LIMIT} bases, or {TEXT_LIMIT:,} characters", DUMPED)
        self.open.append(real)
        assignments = Assignments(text, str(path), path) if path.suffix == ".py" else None
        own = {"_base_": assignments.base()} if assignments else _json(text, path)
        base: dict[str, Any] = {}
        for name in _paths(own.pop("_base_", None), path):
            found = self.read(path.parent / name)
            if twice := sorted(base.keys() & found.keys()):
                raise CheckpointError(f"{path}: two of its bases define {', '.join(twice)}", "Leave one of them out.")
            base |= found
        self.open.pop()
        if assignments:
            own = assignments.read(base)
            base = own.pop("_base_")
        return settled(_merge(own, base, str(path)), str(path), {})


def _text(path: Path) -> str:
    try:
        if path.suffix not in (".py", ".json"):
            raise CheckpointError(f"{path}: a configuration is a .py or .json file", DUMPED)
        if not path.is_file():
            what = "not an ordinary file" if path.exists() else "no such file"
            raise CheckpointError(f"{path}: {what}", DUMPED)
        with path.open("rb") as file:
            data = file.read(TEXT_LIMIT + 1)
        if len(data) > TEXT_LIMIT:
            raise CheckpointError(f"{path}: above {TEXT_LIMIT:,} bytes, which no configuration has", DUMPED)
        return data.decode()
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read: {err.strerror or err}", "Check its permissions.") from err
    except UnicodeDecodeError as err:
        raise CheckpointError(f"{path}: not UTF-8 text: {err.reason}", DUMPED) from err


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text, object_pairs_hook=object_of)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: not JSON: {err}", "Correct the file.") from err
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a JSON object", "Correct the file.")
    return settled(data, str(path), {})


def _paths(base: Any, path: Path) -> list[str]:
    if isinstance(base, Unknown):
        base.refuse(name="_base_")
    paths = list(base) if isinstance(base, (list, tuple)) else [] if base is None else [base]
    for name in paths:
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: _base_ {name!r} is not a path", DUMPED)
        if "::" in name:
            what = f"{path}: _base_ {name!r} is in another package, which Denseport does not search"
            raise CheckpointError(what, DUMPED)
    return paths


def _merge(own: dict[str, Any], base: dict[str, Any], where: str, name: str = "") -> dict[str, Any]:
    """A dict over its base: dicts are merged, other values and lists replaced; ``_delete_`` drops the base's dict."""
    merged = dict(base)
    for key, value in own.items():
        if not isinstance(value, dict) or key not in base:
            merged[key] = value
            continue
        rest = {k: v for k, v in value.items() if k != "_delete_"}
        if value.get("_delete_", False):
            merged[key] = rest
        elif isinstance(base[key], dict):
            merged[key] = _merge(rest, base[key], where, f"{name}{key}.")
        elif not isinstance(base[key], Unknown):  # an unknown base stays unknown
            raise CheckpointError(
                f"{where}: {name}{key} is a dict here and {type(base[key]).__name__} in its base, as mmengine refuses",
                "Add _delete_=True to the dict if it replaces the base's value.",
            )
    return merged

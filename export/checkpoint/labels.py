"""What a checkpoint and its configuration say of a data set's labels: names, colours, what is ignored or renumbered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.python_data import TEXT_LIMIT
from denseport.export.errors import CheckpointError
from denseport.runtime.errors import InputError
from denseport.runtime.system.terminal import CONTROLS

__all__ = ["Colours", "check_count", "colours_of", "labels_of", "plain_text", "read_classes", "read_palette"]

Colours = tuple[tuple[int, int, int], ...]  # RGB, 0..255
CORRECT_META = "Correct dataset_meta (1.x), or CLASSES and PALETTE (0.x), in the file; save it again with torch.save."
IGNORED = 255  # upstream's label for what is not counted
# Data sets of mmsegmentation that have no class names of their own.
PLAIN_DATASETS = {"BaseSegDataset", "CustomDataset"}
_UNPRINTABLE = re.compile(f"[\\t\\n{CONTROLS}]")


def plain_text(value: str) -> str:
    """On one line and writable as UTF-8: a pickled string or the name of a file may hold anything."""
    return _UNPRINTABLE.sub("?", value.strip()).encode("utf-8", "replace").decode()


def labels_of(
    path: Path, meta: Mapping[str, Any], config: Mapping[str, Any], *, first: str, warnings: Iterable[str] = ()
) -> dict[str, Any]:
    """Fields of `Checkpoint`: classes, palette, reduce_zero_label, label_map, ignore_index, and warnings.

    Args:
        meta: what the file says: the keys of mmsegmentation's ``dataset_meta``.
        first: which of "meta" and "config" counts where both say something.
        warnings: that come before those of the labels.

    Raises:
        CheckpointError: something of it cannot be used.
    """
    dataset, warnings = _test_dataset(config), [*warnings]
    said = {"meta": _stated(meta, lambda err: warnings.append(str(err)))}
    said["config"] = _stated(dataset, lambda err: warnings.append(f"{err.message}. Give it by --classes or --palette."))
    one, other = said[first], said["config" if first == "meta" else "meta"]
    chosen = {key: one[key] if one[key] is not None else other[key] for key in one}
    classes, palette = _class_names(path, chosen["classes"]), _palette(path, chosen["palette"])
    differ = None not in (one["classes"], other["classes"]) and list(one["classes"]) != list(other["classes"])
    if first == "config" and differ:
        warnings.append("--config names other classes than the checkpoint: --config's are used.")
    kind = _last_part(dataset.get("type"))
    if said["meta"]["classes"] is None and classes is not None and kind and kind not in PLAIN_DATASETS:
        warnings.append(
            f"{kind} may have class names of its own. mmsegmentation then renumbers the labels in its masks to the "
            "configuration's classes. Denseport does not know them: evaluate on masks that hold the model's classes."
        )
    return {
        "classes": classes,
        "palette": palette,
        "reduce_zero_label": chosen["reduce_zero_label"],
        "label_map": _label_map(path, meta.get("label_map")),
        "ignore_index": _ignore_index(path, config, dataset),
        "warnings": tuple(warnings),
    }


def _test_dataset(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data set that mmsegmentation tests on: classes, palette and reduce_zero_label in 1.x's and 0.x's places."""
    for place in (("test_dataloader", "dataset"), ("data", "test")):
        dataset = _innermost(look_up(config, *place))
        if isinstance(dataset, Mapping):
            about = look_up(dataset, "metainfo")
            return {**dataset, **(about if isinstance(about, Mapping) else {})}
    return {}


def _innermost(dataset: Any) -> Any:
    """The data set that others wrap; of several, the first."""
    if isinstance(dataset, (list, tuple)):
        return _innermost(dataset[0]) if dataset else None
    for key in ("dataset", "datasets"):
        if look_up(dataset, key) is not None:
            return _innermost(dataset[key])
    return dataset


def _stated(about: Mapping[str, Any], unusable: Callable[[CheckpointError], None]) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(("classes", "palette", "reduce_zero_label"))
    for key in found:
        try:
            found[key] = look_up(about, key)
            if isinstance(found[key], str):
                raise CheckpointError(f"{key} are in the file {plain_text(found[key])!r}, which is not read")
        except CheckpointError as err:
            found[key] = None
            unusable(err)
    if not isinstance(found["classes"], (list, tuple)):
        found["classes"] = None
    if not isinstance(found["reduce_zero_label"], bool):
        found["reduce_zero_label"] = None
    return found


def _class_names(path: Path, classes: Any) -> tuple[str, ...] | None:
    if classes is None:
        return None
    # Plain values only: nested lists of a few bytes can be terabytes as text.
    if not all(isinstance(name, (str, int, float)) for name in classes):
        raise CheckpointError(f"{path}: its class names are not all texts", CORRECT_META)
    return tuple(plain_text(str(name)) for name in classes)


def _palette(path: Path, palette: Any) -> Colours | None:
    if palette is None:
        return None
    colours = colours_of(palette)
    if colours is None:
        raise CheckpointError(f"{path}: its palette is not a list of RGB triples in 0..255", CORRECT_META)
    return colours


def colours_of(palette: Any) -> Colours | None:
    """RGB triples in 0..255, or None where it is anything else."""
    try:
        colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    except (TypeError, ValueError, OverflowError):
        return None
    return colours if all(0 <= v <= 255 for colour in colours for v in colour) else None


def _label_map(path: Path, label_map: Any) -> dict[str, int]:
    """Label in the masks to class; upstream's -1, a label that has no class, is `IGNORED`."""
    if label_map is None:
        return {}
    if isinstance(label_map, Mapping) and all(type(v) is int for pair in label_map.items() for v in pair):
        return {str(old): IGNORED if new == -1 else new for old, new in label_map.items()}
    raise CheckpointError(f"{path}: its label_map does not map numbers to numbers", CORRECT_META)


def _ignore_index(path: Path, config: Mapping[str, Any], dataset: Mapping[str, Any]) -> int:
    """Of the test evaluator (1.x; the validation's where there is none), or of the data set (0.x)."""
    for metric in (*_metrics(config), dataset):
        index = look_up(metric, "ignore_index")
        if index is not None:
            if type(index) is not int:
                raise CheckpointError(
                    f"{path}: ignore_index {index!r} is not a whole number", "Correct the configuration."
                )
            return index
    return IGNORED


def _metrics(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    evaluator = look_up(config, "test_evaluator", default=look_up(config, "val_evaluator"))
    metrics = look_up(evaluator, "metrics", default=evaluator) if isinstance(evaluator, Mapping) else evaluator
    metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    found = [metric for metric in metrics if isinstance(metric, Mapping)]
    # The metric that mIoU comes from decides where several are listed.
    yield from sorted(found, key=lambda metric: _last_part(metric.get("type")) != "IoUMetric")


def _last_part(kind: Any) -> str:
    """Of the name of a type, such as mmseg.IoUMetric; "" where the configuration does not tell it."""
    return re.split(r"[.:/]", kind)[-1] if isinstance(kind, str) else ""


def read_classes(given: str) -> tuple[str, ...]:
    """``a,b,c``, or the name of a file with one name a line; blank lines and lines that begin with # do not count.

    Raises:
        InputError: no such file, or no names.
    """
    path = Path(given)
    if path.is_file():
        lines = (line.strip() for line in _lines(path))
        names = [line for line in lines if line and not line.startswith("#")]
    elif "," not in given and (path.suffix or len(path.parts) > 1):
        raise InputError(
            f"--classes {given}: no such file", "Give names with commas between, or a file with one a line."
        )
    else:
        names = [name.strip() for name in given.split(",")]
    if not names or not all(names):
        raise InputError(
            f"--classes {given}: an empty name", "Give names with commas between, or a file with one a line."
        )
    return tuple(names)


def read_palette(path: Path) -> Colours:
    """A file with a colour a line, ``R G B`` or ``#rrggbb``, or a JSON list of triples.

    Raises:
        InputError: no such file, or a line that is not a colour.
    """
    lines, remedy = _lines(path), "Give a line R G B (0..255) or #rrggbb for each class, or a JSON list of triples."
    if lines and lines[0].lstrip().startswith("["):
        try:
            colours = colours_of(json.loads("\n".join(lines)))
        except (ValueError, RecursionError) as err:
            raise InputError(f"--palette {path}: not JSON: {err}", remedy) from err
        if colours is None:
            raise InputError(f"--palette {path}: not a list of RGB triples in 0..255", remedy)
        return colours
    found: list[tuple[int, int, int]] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if hexadecimal := re.fullmatch("#([0-9a-fA-F]{6})", line):
            red, green, blue = bytes.fromhex(hexadecimal[1])
            found.append((red, green, blue))
        elif line and not line.startswith("#"):
            colour = colours_of([re.split(r"[\s,]+", line)])
            if colour is None:
                raise InputError(f"--palette {path}: line {number} is not a colour: {plain_text(line)[:40]!r}", remedy)
            found += colour
    return tuple(found)


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_LIMIT + 1)
        if len(data) > TEXT_LIMIT:
            raise ValueError(f"above {TEXT_LIMIT:,} bytes")
        return data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise InputError(f"{path}: cannot be read: {reason}", "Give a text file in UTF-8.") from err


def check_count(option: str, given: Sequence[Any] | None, num_classes: set[int]) -> None:
    """Refuse another number of names or colours than the network has classes.

    Raises:
        InputError: it names both numbers.
    """
    if given is not None and not isinstance(given, Sized):
        raise InputError(f"{option.removeprefix('--')} cannot be {given!r}", "Give a list, with one for each class.")
    if given is not None and len(given) not in num_classes:
        wanted = " or ".join(map(str, sorted(num_classes)))
        raise InputError(
            f"{option} gives {len(given)}, but the network has {wanted} classes",
            "Give one for each output of decode_head.conv_seg, in their order.",
        )

"""Read a checkpoint without running any code of it.

Three layouts: mmsegmentation 1.x (``meta.cfg``, ``meta.dataset_meta``), 0.x (``meta.config``, ``meta.CLASSES``,
``meta.PALETTE``), and bare weights (a dict of tensors, or safetensors).
"""

from __future__ import annotations

import ast
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from denseport.export.errors import CheckpointError
from denseport.runtime.errors import MachineError
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.terminal import CONTROLS

__all__ = ["CORRECT", "Checkpoint", "look_up", "parse_config", "read_checkpoint"]

# The remedy for a setting that the weights or Denseport contradict.
CORRECT = "Correct the configuration that the file carries (meta), and save it again with torch.save."


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says, as data."""

    path: Path
    sha256: str
    layout: str  # "mmseg 1.x", "mmseg 0.x" or "weights only"
    state_dict: dict[str, Tensor]
    ema_state_dict: dict[str, Tensor] = field(default_factory=dict)  # what mmengine's EMAHook put beside it
    config: dict[str, Any] = field(default_factory=dict)  # the configuration text, parsed
    classes: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None  # RGB
    reduce_zero_label: bool | None = None  # whether label 0 means "ignore" in the data set's masks
    experiment: str = ""
    iterations: int | None = None

    @property
    def name(self) -> str:
        """The file's name, as text that can be written."""
        return _text(self.path.name)


_UNPRINTABLE = re.compile(f"[\\t\\n{CONTROLS}]")
HOLD_WEIGHTS = "Give a file that holds a state dict, as mmsegmentation writes it."
CORRECT_META = "Correct dataset_meta (1.x), or CLASSES and PALETTE (0.x), in the file; save it again with torch.save."
# Of weights and counters; others (8 bits, complex) are not those of a training checkpoint.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32)


class _Stub:
    """Stands for an object of a training run (a loss history, a numpy scalar), or a call that makes one."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# What mmengine's Runner pickles beside the weights. torch's weights-only unpickler resolves these names to the stub
# instead of importing anything; every other name outside torch's own list is refused.
_STUBBED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",
    "builtins.getattr",
)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.pth`` / ``.pt`` / ``.safetensors`` file.

    Raises:
        CheckpointError: no such file, not a checkpoint, truncated, or a pickle that names anything but tensors,
            containers and the training records that are known to be harmless.
        MachineError: the file is safetensors, and that package is not installed.
    """
    try:
        if not path.is_file():
            reason = "no ordinary file" if path.exists() else "no such file"
            reason = "this is a folder" if path.is_dir() else reason
            raise CheckpointError(f"{path}: {reason}", "Give the .pth or .safetensors file.")
        sha256 = sha256_of(path)
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read: {err.strerror or err}", "Check its permissions.") from err
    data = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(data).__name__}, not the dict that a checkpoint is",
            "Give the file that mmsegmentation or torch.save wrote, not one tensor of it.",
        )
    state_dict = _state_dict(path, data)
    meta = data.get("meta") if "state_dict" in data else None
    ema = data.get("ema_state_dict") if "state_dict" in data else None
    ema_state_dict = _state_dict(path, {"state_dict": ema}) if isinstance(ema, Mapping) and ema else {}
    if not isinstance(meta, Mapping):
        return Checkpoint(path, sha256, "weights only", state_dict, ema_state_dict)
    layout, about = "mmseg 1.x", meta.get("dataset_meta")
    if not isinstance(about, Mapping):
        layout, about = "mmseg 0.x", {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    text, reduce_zero_label = meta.get("cfg", meta.get("config")), about.get("reduce_zero_label")
    names = (meta.get("experiment_name"), meta.get("exp_name"))
    iterations = meta.get("iter")
    return Checkpoint(
        path=path,
        sha256=sha256,
        layout=layout,
        state_dict=state_dict,
        ema_state_dict=ema_state_dict,
        config=parse_config(text) if isinstance(text, str) else {},
        classes=_class_names(path, about.get("classes")),
        palette=_palette(path, about.get("palette")),
        reduce_zero_label=reduce_zero_label if isinstance(reduce_zero_label, bool) else None,
        experiment=_text(next((name for name in names if isinstance(name, str) and name), "")),
        iterations=iterations if isinstance(iterations, int) else None,
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as err:
        raise MachineError("safetensors is not installed", "pip install 'denseport[export]'") from err
    try:
        return load_file(path)
    except Exception as err:  # safetensors raises its own, OSError and ValueError alike
        raise CheckpointError(f"{path}: not a whole safetensors file: {err}", "Fetch or save it again.") from err


def _load_pickle(path: Path) -> Any:
    _refuse_odd_zip(path)
    stubs = torch.serialization.safe_globals([(_Stub, name) for name in _STUBBED])
    try:
        with stubs, warnings.catch_warnings(action="ignore"):  # they are for people who call torch.load themselves
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # hostile or broken bytes make the reader fail in any way it can
        called = re.search(r"GLOBAL (\w[\w.]*)|unrecognized function", str(err))
        if called:
            what = repr(called[1]) if called[1] else "a function"
            raise CheckpointError(
                f"{path}: refused: its pickle calls {what}, which is no part of a checkpoint's weights",
                "Do not open this file with torch.load(weights_only=False) unless you trust its author; "
                "save only the weights: torch.save({'meta': meta, 'state_dict': model.state_dict()}, …).",
            ) from err
        # torch puts its advice to load unsafely before what it found; what other errors say is of no use.
        reason = str(err).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
        found = f": {reason}" if isinstance(err, (RuntimeError, UnpicklingError)) else ""
        raise CheckpointError(
            f"{path}: not a checkpoint, or a truncated one{found}",
            "Compare its size and hash with the source and fetch it again.",
        ) from err


def _refuse_odd_zip(path: Path) -> None:
    """torch stores each record once, uncompressed. Other zip files may unpack to gigabytes, or be read in two ways."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch's old layout, or not a checkpoint
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: refused: a zip file with compressed or repeated records, which torch.save does not write",
            "Save it again with torch.save, on the machine that it comes from.",
        )


def _state_dict(path: Path, data: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = data.get("state_dict", data)
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path}: has no weights under 'state_dict'", HOLD_WEIGHTS)
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor", HOLD_WEIGHTS)
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.dtype not in _DTYPES:
            kind = f"{value.layout}, {value.dtype}, on {value.device}"
            raise CheckpointError(
                f"{path}: {key!r} is not a plain tensor of floats or integers ({kind})",
                "Save the weights dense, in float32 or float16.",
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # by strides of 0
            raise CheckpointError(
                f"{path}: {key!r} claims more numbers ({tuple(value.shape)}) than the file holds for it",
                "Save a contiguous copy of it.",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {key!r} holds NaN or infinity", "Take one from before training diverged.")
    # Weights saved from inside DistributedDataParallel have this prefix.
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _text(value: str) -> str:
    """On one line and writable as UTF-8: a pickled string or the name of a file may hold anything."""
    return _UNPRINTABLE.sub("?", value.strip()).encode("utf-8", "replace").decode()


def _class_names(path: Path, classes: Any) -> tuple[str, ...] | None:
    if not isinstance(classes, (list, tuple)):
        return None
    # Plain values only: nested lists of a few bytes can be terabytes as text.
    if not all(isinstance(name, (str, int, float)) for name in classes):
        raise CheckpointError(f"{path}: its class names are not all texts", CORRECT_META)
    return tuple(_text(str(name)) for name in classes)


def _palette(path: Path, palette: Any) -> tuple[tuple[int, int, int], ...] | None:
    if palette is None:
        return None
    try:
        colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        if all(0 <= v <= 255 for colour in colours for v in colour):
            return colours
    except (TypeError, ValueError, OverflowError):
        pass
    raise CheckpointError(f"{path}: its palette is not a list of RGB triples in 0..255", CORRECT_META)


def parse_config(text: str) -> dict[str, Any]:
    """Top-level assignments of a configuration text, read as data; empty where the text is not Python.

    mmcv and mmengine store the resolved configuration as Python source made of assignments of literals and
    ``dict(...)`` calls. It is never executed; an assignment that is anything else is left out.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # a path such as 'C:\\data' is an unknown escape
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    config: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                config[node.targets[0].id] = _evaluate(node.value)
            except (TypeError, ValueError, RecursionError, MemoryError):
                continue
    return config


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal or of ``dict(key=literal, …)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _evaluate(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _evaluate(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.List):
        return [_evaluate(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(item) for item in node.elts)
    return ast.literal_eval(node)


def look_up(config: Mapping[str, Any], *path: str, default: Any = None) -> Any:
    """``config[path[0]][path[1]]…``, or ``default`` where a step is missing or no dict."""
    value: Any = config
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value

"""Read a checkpoint without running any code of it.

Three layouts: mmsegmentation 1.x (``meta.cfg``, ``meta.dataset_meta``), 0.x (``meta.config``, ``meta.CLASSES``,
``meta.PALETTE``), and bare weights (a dict of tensors, or safetensors). Folders: see `checkpoint.huggingface`.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denseport.export.checkpoint.config import CORRECT, apply_config, parse_config, with_fields
from denseport.export.checkpoint.huggingface import folder as huggingface
from denseport.export.checkpoint.labels import Colours, labels_of, plain_text
from denseport.export.checkpoint.networks.original import DEPTH_ANYTHING, ISL, Layout, layout_of
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.errors import MachineError
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.machine import install_command

__all__ = ["HUGGING_FACE", "Checkpoint", "read_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says, as data."""

    path: Path
    sha256: str
    layout: str  # "mmseg 1.x", "mmseg 0.x", "weights only", `HUGGING_FACE`, or a name of `networks.original`
    state_dict: dict[str, Tensor]
    ema_state_dict: dict[str, Tensor] = field(default_factory=dict)  # what mmengine's EMAHook put beside it
    config: dict[str, Any] = field(default_factory=dict)  # the configuration, parsed
    config_file: str = ""  # the file that it is from; "" where the checkpoint holds it
    complete: bool = True  # what the configuration does not say has upstream's default; otherwise it is not known
    preprocess: Preprocessing | None = None  # of a Hugging Face processor, or of a layout; else the configuration's
    classes: tuple[str, ...] | None = None
    palette: Colours | None = None
    reduce_zero_label: bool | None = None  # whether label 0 means "ignore" in the data set's masks
    label_map: dict[str, int] = field(default_factory=dict)  # a label in the data set's masks to its class
    ignore_index: int = 255  # the label in the masks that is not counted
    warnings: tuple[str, ...] = ()
    experiment: str = ""
    iterations: int | None = None

    @property
    def name(self) -> str:
        """The file's name, as text that can be written."""
        return plain_text(self.path.name)

    @property
    def follows_mmseg(self) -> bool:
        """Whether its code is mmsegmentation's; the others compute a little else with the same weights."""
        return self.layout not in (HUGGING_FACE, DEPTH_ANYTHING, ISL)

    @property
    def correction(self) -> str:
        """The remedy for a setting that the weights or Denseport contradict."""
        if self.follows_mmseg:
            return CORRECT
        fields = FOLDER_FIELDS if self.layout == HUGGING_FACE else LAYOUT_FIELDS
        own = " its config.json, or" if self.layout == HUGGING_FACE else ""
        return f"Correct{own} the .json that is given by --config; it may say {', '.join(fields)}."

    @property
    def settings_from(self) -> str:
        """Where its settings were read, to begin a message with."""
        return f"{self.path} with --config {self.config_file}" if self.config_file else str(self.path)


HUGGING_FACE = "Hugging Face"
# Fields of --config that mean something where a folder, or the code of a layout, says the rest.
FOLDER_FIELDS = ("depth",)
LAYOUT_FIELDS = ("num_heads", "out_indices", "readout", "depth", "max_depth", "inversion")
HOLD_WEIGHTS = "Give a file that holds a state dict, as mmsegmentation writes it."
# Of weights and counters; others (8 bits, complex) are not those of a training checkpoint.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32)


class _Stub:
    """Stands for an object of a training run (a loss history, a numpy scalar), or a call that makes one."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> list[Any] | None:
        """The numbers of a pickled numpy array; None where it is anything else."""
        match self.state:
            case (_, tuple(shape), _Stub(arguments=(str(kind), *_)), False, bytes(data)):
                try:
                    numbers: list[Any] = np.frombuffer(data, _NUMBERS[kind]).reshape(shape).tolist()
                except (KeyError, TypeError, ValueError):
                    return None
                return numbers
        return None


_NUMBERS = {kind: f"<{kind}" for kind in ("u1", "i1", "i2", "i4", "i8", "f4", "f8")}  # of an array, as numpy calls them


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


def read_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Read a ``.pth`` / ``.pt`` / ``.safetensors`` file, or a Hugging Face folder.

    Args:
        config: a configuration that counts more than the file's own (`apply_config`).

    Raises:
        CheckpointError: no such file, not a checkpoint, truncated, or a pickle that names anything but tensors,
            containers and the training records that are known to be harmless; a configuration that cannot be read.
        MachineError: the file is safetensors, and that package is not installed.
    """
    if huggingface.is_folder(path):
        return _read_folder(path, config)
    try:
        if not path.is_file():
            reason = "not an ordinary file" if path.exists() else "no such file"
            reason = f"this is a folder, without {huggingface.CONFIG}" if path.is_dir() else reason
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
    if (own_layout := layout_of(state_dict)) is not None:
        return _read_layout(path, sha256, own_layout, state_dict, config)
    trained = data if "state_dict" in data else {}  # a bare dict of weights says nothing else
    layout, meta, about = _metadata(trained.get("meta"))
    ema = trained.get("ema_state_dict")
    settings, complete, warnings = _configuration(path, meta, config)
    names, iterations = (meta.get("experiment_name"), meta.get("exp_name")), meta.get("iter")
    return Checkpoint(
        path=path,
        sha256=sha256,
        layout=layout,
        state_dict=state_dict,
        ema_state_dict=_state_dict(path, {"state_dict": ema}) if isinstance(ema, Mapping) and ema else {},
        config=settings,
        config_file=plain_text(config.name) if config else "",
        complete=complete,
        experiment=plain_text(next((name for name in names if isinstance(name, str) and name), "")),
        iterations=iterations if isinstance(iterations, int) else None,
        **labels_of(path, about, settings, first="config" if config else "meta", warnings=warnings),
    )


def _metadata(meta: Any) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The layout, what a file says besides its weights, and of that what 1.x calls ``dataset_meta``."""
    if not isinstance(meta, Mapping):
        return "weights only", {}, {}
    layout, about = "mmseg 1.x", meta.get("dataset_meta")
    if not isinstance(about, Mapping):
        layout, about = "mmseg 0.x", {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    if isinstance(about.get("palette"), _Stub):
        about = {**about, "palette": about["palette"].array() or about["palette"]}
    return layout, meta, about


def _read_folder(folder: Path, config: Path | None) -> Checkpoint:
    file = read_checkpoint(huggingface.weights_file(folder))
    found = huggingface.translate(folder, file.state_dict)
    settings = found.config
    if config is not None:
        settings = with_fields(config, settings, FOLDER_FIELDS, f"{folder}: is Hugging Face's")
    labels = labels_of(folder, found.dataset_meta, settings, first="meta")
    about: dict[str, Any] = {"layout": HUGGING_FACE, "state_dict": found.weights, "config": settings}
    about["config_file"] = plain_text(config.name) if config else ""
    return replace(file, path=folder, preprocess=found.preprocess, complete=True, **about, **labels)


def _read_layout(
    path: Path, sha256: str, layout: Layout, weights: dict[str, Tensor], config: Path | None
) -> Checkpoint:
    """A file of Depth Anything's or isl-org/DPT's own code."""
    settings: dict[str, Any] = {"model": layout.model}
    if config is not None:
        settings = with_fields(config, settings, LAYOUT_FIELDS, f"{path}: is of {layout.name}'s own code")
    try:
        state_dict = layout.weights(weights)
    except ValueError as err:
        raise CheckpointError(f"{path}: {err}", "Give the file as it was released or trained.") from err
    return Checkpoint(
        path=path,
        sha256=sha256,
        layout=layout.name,
        state_dict=state_dict,
        config=settings,
        config_file=plain_text(config.name) if config else "",
        complete=False,
        preprocess=layout.preprocess,
        **labels_of(path, layout.about, settings, first="config", warnings=layout.warnings),
    )


def _configuration(path: Path, meta: Mapping[str, Any], config: Path | None) -> tuple[dict[str, Any], bool, list[str]]:
    """The configuration that counts, whether it is a whole one, and warnings."""
    text, own, warnings = meta.get("cfg", meta.get("config")), None, []
    try:
        own = parse_config(text, f"{path}: its configuration") if isinstance(text, str) else None
    except CheckpointError as err:
        if config is None:
            raise CheckpointError(err.message, f"Give the configuration by --config. {err.remedy}") from err
        warnings.append(f"The checkpoint's own configuration cannot be read ({err.message}): --config is used.")
    if config is None:
        return own or {}, True, warnings
    found, complete, differing = apply_config(config, own)
    return found, complete, warnings + differing


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as err:
        raise MachineError("safetensors is not installed", install_command("export")) from err
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
                f"{path}: refused: its pickle calls {what}, which does not belong to a checkpoint's weights",
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

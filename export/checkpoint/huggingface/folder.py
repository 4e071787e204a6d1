"""Reads the folder: which class it is of, its configuration in mmsegmentation's words, its processor as steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from denseport.export.checkpoint.huggingface.depth import DEPTH_ANYTHING, DPT_DEPTH
from denseport.export.checkpoint.huggingface.dpt import DPT
from denseport.export.checkpoint.huggingface.family import GENERIC
from denseport.export.checkpoint.huggingface.json_file import OTHER, check_settings, read_object
from denseport.export.checkpoint.huggingface.processor import PROCESSOR, processor_steps
from denseport.export.checkpoint.huggingface.segformer import SEGFORMER
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import Preprocessing

__all__ = ["CONFIG", "FAMILIES", "PROCESSOR", "WEIGHTS", "Translation", "is_folder", "translate", "weights_file"]

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FAMILIES = {family.architecture: family for family in (SEGFORMER, DPT, DPT_DEPTH, DEPTH_ANYTHING)}


@dataclass(frozen=True)
class Translation:
    """A folder in mmsegmentation's words."""

    weights: dict[str, Tensor]  # under its keys
    config: dict[str, Any]
    dataset_meta: dict[str, Any]
    preprocess: Preprocessing | None  # None: the folder has no processor


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that transformers' ``save_pretrained`` may have written."""
    try:
        return (path / CONFIG).is_file()
    except OSError:  # a name that is too long, a link to itself
        return False


def weights_file(folder: Path) -> Path:
    """The file with the weights.

    Raises:
        CheckpointError: there is none, or they are in several files.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if sharded := sorted(folder.glob("*.index.json")):
        what = f"{folder}: its weights are in several files ({sharded[0].name})"
        raise CheckpointError(what, "Save them as one: model.save_pretrained(FOLDER, max_shard_size='20GB').")
    raise CheckpointError(f"{folder}: holds neither {' nor '.join(WEIGHTS)}", "Fetch the whole folder.")


def translate(folder: Path, weights: Mapping[str, Tensor]) -> Translation:
    """The folder as mmsegmentation's checkpoint that computes the same, and how its processor prepares images.

    Raises:
        CheckpointError: another network, or settings that are not carried out.
    """
    path = folder / CONFIG
    config = read_object(path)
    names = config.get("architectures")
    family = next((family for name, family in FAMILIES.items() if names == [name]), None)
    if family is None:
        known = f"of Hugging Face's classes, {', '.join(FAMILIES)} are known"
        raise CheckpointError(f"{path}: architectures is {names!r}; {known}", OTHER)
    carried = family.carried | {"architectures", "id2label"}
    own = config.get("backbone_config")
    parts = {f"backbone_config.{key}": value for key, value in own.items()} if isinstance(own, Mapping) else {}
    check_settings(path, {**config, **parts}, carried | family.harmless | GENERIC, family.only)
    meta: dict[str, Any] = {}
    try:
        model = family.model(config)
        if "num_classes" in model["decode_head"]:
            names = config["id2label"]
            meta["classes"] = tuple(str(names[str(i)]) for i in range(len(names)))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as err:
        raise CheckpointError(f"{path}: cannot be used: {err!r}", "Fetch the file again.") from err
    preprocess = None
    if (folder / PROCESSOR).is_file():
        preprocess, meta["reduce_zero_label"] = processor_steps(folder / PROCESSOR, family)
    try:
        return Translation(family.weights(weights, config), {"model": model}, meta, preprocess)
    except ValueError as err:
        raise CheckpointError(f"{folder}: {err}", "Save the model again with transformers.") from err

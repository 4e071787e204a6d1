"""Reads the folder: which class it is of, its configuration in mmsegmentation's words, its processor as a test path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from denseport.export.checkpoint.huggingface.dpt import DPT
from denseport.export.checkpoint.huggingface.family import GENERIC, Family
from denseport.export.checkpoint.huggingface.segformer import SEGFORMER
from denseport.export.errors import CheckpointError

__all__ = ["CONFIG", "FAMILIES", "PROCESSOR", "WEIGHTS", "is_folder", "translate", "weights_file"]

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LIMIT = 10_000_000  # bytes of a JSON file
FAMILIES = {family.architecture: family for family in (SEGFORMER, DPT)}

# Keys of preprocessor_config.json: carried out, supported with some values, without effect.
PROCESSOR_CARRIED = {
    "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
    "do_reduce_labels", "reduce_labels",
}  # fmt: skip
PROCESSOR_ONLY: dict[str, tuple[Any, ...]] = {
    "keep_aspect_ratio": (False,),
    "ensure_multiple_of": (1,),
    "do_pad": (False, None),
    "size_divisor": (None,),
    "do_center_crop": (False, None),
}
PROCESSOR_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "data_format",
    "device", "input_data_format", "return_tensors", "default_to_square", "crop_size", "pad_size", "do_convert_rgb",
}  # fmt: skip
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL.Image.Resampling
OTHER = "Run it with transformers, or export it there and `denseport import` the ONNX file."


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


def translate(folder: Path, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights under mmsegmentation's keys, its configuration, and what its ``dataset_meta`` would say.

    Raises:
        CheckpointError: another network, or settings that are not carried out.
    """
    path = folder / CONFIG
    config = _read(path)
    names = config.get("architectures")
    family = next((family for name, family in FAMILIES.items() if names == [name]), None)
    if family is None:
        known = f"of Hugging Face's classes, {' and '.join(FAMILIES)} are known"
        raise CheckpointError(f"{path}: architectures is {names!r}; {known}", OTHER)
    carried = family.carried | {"architectures", "id2label"}
    _check(path, config, carried | family.harmless | GENERIC, family.only)
    try:
        model = family.model(config)
        classes = tuple(str(config["id2label"][str(i)]) for i in range(len(config["id2label"])))
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as err:
        raise CheckpointError(f"{path}: cannot be used: {err!r}", "Fetch the file again.") from err
    settings: dict[str, Any] = {"model": model}
    about: dict[str, Any] = {"classes": classes}
    if (folder / PROCESSOR).is_file():
        steps, normalisation, about["reduce_zero_label"] = _processor(folder / PROCESSOR, family)
        settings["test_pipeline"], model["data_preprocessor"] = steps, normalisation
    try:
        return family.weights(weights), settings, about
    except ValueError as err:
        raise CheckpointError(f"{folder}: {err}", "Save the model again with transformers.") from err


def _processor(path: Path, family: Family) -> tuple[list[dict[str, Any]], dict[str, Any], bool]:
    """The processor as a test pipeline and a data pre-processor; whether it takes label 0 for "ignore"."""
    given = _read(path)
    _check(path, given, PROCESSOR_CARRIED | PROCESSOR_HARMLESS, PROCESSOR_ONLY)
    kind = given.get("image_processor_type", given.get("feature_extractor_type"))
    if kind is not None and not (isinstance(kind, str) and kind in family.processors):
        raise CheckpointError(f"{path}: its processor is {kind!r}, not one of {family.architecture}", OTHER)
    own = {**family.processor, **given}
    # Images are opened by Pillow, whose files are not turned as EXIF says.
    steps: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation", "imdecode_backend": "pillow"}
    ]
    try:
        if own.get("do_resize", True):
            size = own["size"]
            scale = (size["width"], size["height"]) if isinstance(size, Mapping) else (size, size)
            way = {"backend": "pillow", "interpolation": RESAMPLE[own["resample"]]}
            steps.append({"type": "Resize", "scale": scale, "keep_ratio": False, **way})
        factor = own.get("rescale_factor", 1 / 255) if own.get("do_rescale", True) else 1.0
        normalises = own.get("do_normalize", True)
        mean, std = (own["image_mean"], own["image_std"]) if normalises else ([0.0] * 3, [1.0] * 3)
        levels = {name: [value / factor for value in values] for name, values in (("mean", mean), ("std", std))}
    except (KeyError, TypeError, ZeroDivisionError) as err:
        raise CheckpointError(f"{path}: cannot be used: {err!r}", "Fetch the file again.") from err
    normalisation = {"type": "SegDataPreProcessor", "bgr_to_rgb": True, **levels}
    reduces = own.get("do_reduce_labels", own.get("reduce_labels", False))
    return [*steps, {"type": "PackSegInputs"}], normalisation, bool(reduces)


def _check(path: Path, given: Mapping[str, Any], known: Set[str], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse, by its name, a key or a value that may change the mask and is not carried out."""
    for key, value in given.items():
        if key in only and value not in only[key]:
            raise CheckpointError(f"{path}: {key} is {value!r}; only {only[key][0]!r} is supported", OTHER)
        if key not in only and key not in known:
            what = f"{path}: {key} is {value!r}, which is not known and may change the mask"
            raise CheckpointError(what, f"Remove it if it changes no prediction. {OTHER}")


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LIMIT:
            raise CheckpointError(f"{path}: above {LIMIT:,} bytes, which no configuration has", "Fetch it again.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read: {err.strerror or err}", "Check its permissions.") from err
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: not JSON: {err}", "Fetch the file again.") from err
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a JSON object", "Fetch the file again.")
    return data

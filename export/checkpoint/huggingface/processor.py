"""``preprocessor_config.json`` as the steps of a manifest, for every family of networks.

Source: transformers 4.57, ``models/{dpt,segformer}/image_processing_*.py``, whose images are resized by Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from denseport.export.checkpoint.huggingface.family import Family
from denseport.export.checkpoint.huggingface.json_file import OTHER, check_settings, read_object
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.bundle.steps import Load, Normalise, Pad, Resize, ResizeRounded, ResizeStep

__all__ = ["PROCESSOR", "processor_steps"]

PROCESSOR = "preprocessor_config.json"
# Keys that every processor carries out; those that only DPT's does, and the values with which the others agree;
# those without effect.
CARRIED = {
    "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
    "do_reduce_labels", "reduce_labels",
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {
    "keep_aspect_ratio": (False,),
    "ensure_multiple_of": (1,),
    "do_pad": (False, None),
    "size_divisor": (None,),
    "do_center_crop": (False, None),
}
HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "data_format",
    "device", "input_data_format", "return_tensors", "default_to_square", "crop_size", "pad_size", "do_convert_rgb",
}  # fmt: skip
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL.Image.Resampling
# Images are opened by Pillow, whose files are not turned as EXIF says.
LOAD = Load(orientation=False, library="pillow")


def processor_steps(path: Path, family: Family) -> tuple[Preprocessing, bool]:
    """What a family's processor does to an image, and whether it takes label 0 for "ignore".

    Args:
        path: of ``preprocessor_config.json``.

    Raises:
        CheckpointError: another processor, or settings that are not carried out.
    """
    given = read_object(path)
    own = {**family.processor, **given}
    only = {key: values for key, values in ONLY.items() if key not in family.processor}
    check_settings(path, given, CARRIED | HARMLESS | family.processor.keys(), only)
    kind = given.get("image_processor_type", given.get("feature_extractor_type"))
    if kind is not None and not (isinstance(kind, str) and kind in family.processors):
        raise CheckpointError(f"{path}: its processor is {kind!r}, not one of {family.architecture}", OTHER)
    try:
        steps: Preprocessing = (LOAD, *([_resize(own)] if own.get("do_resize", True) else []), _normalise(own))
        if own.get("do_pad"):
            steps = (*steps, Pad(divisor=_whole(own["size_divisor"]), centred=True))
    except (KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError) as err:
        raise CheckpointError(f"{path}: cannot be used: {err!r}", "Fetch the file again.") from err
    return steps, bool(own.get("do_reduce_labels", own.get("reduce_labels", False)))


def _resize(own: Mapping[str, Any]) -> ResizeStep:
    size, sampling = own["size"], RESAMPLE[own["resample"]]
    width, height = (size["width"], size["height"]) if isinstance(size, Mapping) else (size, size)  # 2022: a number
    wanted, divisor = (_whole(width), _whole(height)), _whole(own.get("ensure_multiple_of", 1))
    if own.get("keep_aspect_ratio") or divisor != 1:
        rule = "minimal" if own.get("keep_aspect_ratio") else "stretch"
        return ResizeRounded(wanted, rule, divisor, sampling, "pillow")
    return Resize(wanted, False, sampling, "pillow")


def _normalise(own: Mapping[str, Any]) -> Normalise:
    """Of grey levels: the processor's rescaling goes into the mean and the deviation."""
    factor = own.get("rescale_factor", 1 / 255) if own.get("do_rescale", True) else 1.0
    mean, std = (own["image_mean"], own["image_std"]) if own.get("do_normalize", True) else ([0.0] * 3, [1.0] * 3)
    return Normalise(tuple(each / factor for each in mean), tuple(each / factor for each in std), bgr_to_rgb=True)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value

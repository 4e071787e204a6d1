"""How a checkpoint was meant to be run: pre-processing and inference mode, from its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from denseport.export.checkpoint.config import CORRECT, look_up
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE, USUAL_RESIZE, Preprocessing
from denseport.runtime.media.overlay import default_palette

__all__ = ["class_names", "inference_of", "palette_of", "preprocess_of", "reduces_zero_label"]

# Steps of a test pipeline that leave the pixels alone. Any other, besides Resize and Normalize, is refused.
HARMLESS = {
    "LoadImageFromFile",
    "LoadAnnotations",
    "PackSegInputs",
    "RandomFlip",
    "ImageToTensor",
    "DefaultFormatBundle",
    "Collect",
}
# The arguments of Resize that are carried out, and those that are allowed with upstream's default alone.
RESIZE = {"type", "scale", "img_scale", "keep_ratio"}
RESIZE_DEFAULTS = {"interpolation": "bilinear", "backend": "cv2", "clip_object_border": True}


def preprocess_of(checkpoint: Checkpoint) -> tuple[Preprocessing, list[str]]:
    """The test pipeline as steps, and warnings for what had to be assumed.

    Raises:
        CheckpointError: the pipeline holds a step that is not supported, or settings that cannot be used.
    """
    try:
        steps = list(_steps(checkpoint.config.get("test_pipeline", ())))
        resizing, normalising = _resizing(steps), _normalisation(checkpoint.config, steps)
        resize, normalise = replace(USUAL_RESIZE, **resizing), replace(USUAL_NORMALISE, **normalising)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as err:
        raise CheckpointError(f"{checkpoint.path}: its test pipeline cannot be used: {err!r}", CORRECT) from err
    except CheckpointError as err:
        raise CheckpointError(f"{checkpoint.path}: {err.message}", err.remedy) from err
    warnings = []
    if not resizing:
        size = f"keep-ratio {resize.size[0]} x {resize.size[1]}"
        warnings.append(f"The file does not say how images are resized: assumed {size}. Change it with --scale.")
    if not normalising:
        assumed = f"mean {normalise.mean}, std {normalise.std}"
        warnings.append(f"The file does not say how images are normalised: assumed {assumed}.")
    return (resize, normalise), warnings


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The steps of a 1.x pipeline, or of a 0.x one, whose MultiScaleFlipAug holds the scale and the other steps."""
    for step in pipeline:
        kind = step["type"]
        if kind == "MultiScaleFlipAug":
            for inner in _steps(step["transforms"]):
                # 0.x keeps the ratio unless told otherwise, 1.x does not.
                resize = {"keep_ratio": True, **inner, "scale": step["img_scale"]}
                yield resize if inner["type"] == "Resize" else inner
        elif kind in {"Resize", "Normalize", *HARMLESS}:
            yield dict(step)
        else:
            raise CheckpointError(
                f"test_pipeline step {kind!r} is not supported",
                "Supported steps: Resize, Normalize, " + ", ".join(sorted(HARMLESS)),
            )


def _resizing(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Size and keep_ratio of the Resize step; nothing where there is none."""
    resizes = [step for step in steps if step["type"] == "Resize"]
    if not resizes:
        return {}
    for key, value in resizes[0].items():
        if key not in RESIZE and value is not None and value != RESIZE_DEFAULTS.get(key):
            raise CheckpointError(
                f"test_pipeline: Resize with {key}={value!r} is not supported",
                "Only bilinear resizing to a fixed scale is. Correct the step and measure the accuracy again.",
            )
    if len(resizes) > 1:
        raise CheckpointError("test_pipeline: Resize comes twice", "Leave one of the two out.")
    scale = resizes[0].get("scale", resizes[0].get("img_scale"))
    return {"size": _pair(scale), "keep_ratio": bool(resizes[0].get("keep_ratio", False))}


def _normalisation(config: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, std and channel order: the data pre-processor's (1.x) or the Normalize step's (0.x)."""
    given = look_up(config, "model", "data_preprocessor", default=config.get("data_preprocessor"))
    if given is not None:
        # Both names exchange the first and the last channel.
        bgr_to_rgb = bool(given.get("bgr_to_rgb") or given.get("rgb_to_bgr"))
    else:
        given = next((step for step in steps if step["type"] == "Normalize"), None)
        if given is None:
            return {}
        bgr_to_rgb = bool(given.get("to_rgb", True))
    if given.get("test_cfg"):
        raise CheckpointError(
            f"data_preprocessor.test_cfg is {given['test_cfg']}: padding at test time is not supported",
            "The published configurations do not pad. Remove it from the configuration and check the accuracy.",
        )
    return {
        "mean": tuple(float(v) for v in given["mean"]),
        "std": tuple(float(v) for v in given["std"]),
        "bgr_to_rgb": bgr_to_rgb,
    }


def _pair(value: Any) -> tuple[int, int]:
    """Two whole numbers, in the order of the configuration."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r} is not two numbers")
    return int(value[0]), int(value[1])


def inference_of(checkpoint: Checkpoint) -> Inference:
    """Whole or slide, as ``model.test_cfg`` says; whole where nothing does.

    Raises:
        CheckpointError: another mode, or windows that leave gaps.
    """
    test = look_up(checkpoint.config, "model", "test_cfg")
    if not isinstance(test, Mapping) or test.get("mode", "whole") == "whole":
        return Inference()
    try:
        crop, stride = _pair(test.get("crop_size")), _pair(test.get("stride"))
        return Inference(test["mode"], crop, stride)
    except (TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(f"{checkpoint.path}: model.test_cfg {test!r} cannot be used: {err}", CORRECT) from err


def class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and a warning where the file has none.

    Raises:
        CheckpointError: the file names another number of classes than its last layer has.
    """
    names = checkpoint.classes
    if names is None:
        warning = "The file names no classes: they are called class 0, class 1, …"
        return tuple(f"class {i}" for i in range(num_classes)), [warning]
    if len(names) != num_classes:
        raise CheckpointError(
            f"{checkpoint.path}: names {len(names)} classes, but decode_head.conv_seg has {num_classes} outputs",
            "The metadata belongs to another data set; correct dataset_meta (1.x) or CLASSES (0.x) in the file.",
        )
    return names, []


def palette_of(checkpoint: Checkpoint, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The file's colours; the default palette where it has none or another number of them."""
    if checkpoint.palette is not None and len(checkpoint.palette) == num_classes:
        return checkpoint.palette
    return tuple(default_palette(num_classes))


def reduces_zero_label(checkpoint: Checkpoint) -> bool:
    """Whether the data set's masks count classes from 1 and leave 0 for "ignore"."""
    if checkpoint.reduce_zero_label is not None:
        return checkpoint.reduce_zero_label
    pipelines = (checkpoint.config.get(name) for name in ("train_pipeline", "test_pipeline"))
    lists = [pipeline for pipeline in pipelines if isinstance(pipeline, (list, tuple))]
    steps = [step for pipeline in lists for step in pipeline if isinstance(step, Mapping)]
    return any(step.get("reduce_zero_label") for step in steps if step.get("type") == "LoadAnnotations")

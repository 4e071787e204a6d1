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

# What a test pipeline may hold besides Resize; anything else would change pixels that we would not.
HARMLESS = {
    "LoadImageFromFile",
    "LoadAnnotations",
    "PackSegInputs",
    "RandomFlip",
    "ImageToTensor",
    "DefaultFormatBundle",
    "Collect",
}
# The arguments of Resize that fix the network's input. Others are allowed with upstream's default, named here.
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
        warnings.append(
            f"The file does not say how images are resized: assumed keep-ratio {resize.size}. Change it with --scale."
        )
    if not normalising:
        warnings.append(
            f"The file does not say how images are normalised: assumed mean {normalise.mean}, std {normalise.std}."
        )
    return (resize, normalise), warnings


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The steps of a 1.x pipeline or, unwrapped, of a 0.x one, where MultiScaleFlipAug holds the scale."""
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
                "Denseport resizes and normalises; supported steps: Resize, Normalize, " + ", ".join(sorted(HARMLESS)),
            )


def _resizing(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Size and keep_ratio of the only Resize step, nothing where there is none."""
    resizes = [step for step in steps if step["type"] == "Resize"]
    if not resizes:
        return {}
    for key, value in resizes[0].items():
        if key not in RESIZE and value is not None and value != RESIZE_DEFAULTS.get(key):
            raise CheckpointError(
                f"test_pipeline: Resize with {key}={value!r} is not supported",
                "Denseport resizes to a fixed scale, bilinear; correct the step and measure the accuracy again.",
            )
    if len(resizes) > 1:
        raise CheckpointError("test_pipeline: Resize comes twice", "Denseport resizes once; leave one out.")
    scale = resizes[0].get("scale", resizes[0].get("img_scale"))
    return {"size": _pair(scale), "keep_ratio": bool(resizes[0].get("keep_ratio", False))}


def _normalisation(config: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, std and channel order: the data pre-processor's (1.x) or the Normalize step's (0.x)."""
    given = look_up(config, "model", "data_preprocessor", default=config.get("data_preprocessor"))
    if given is not None:
        # The two names ask for the same exchange of channels.
        bgr_to_rgb = bool(given.get("bgr_to_rgb") or given.get("rgb_to_bgr"))
    else:
        given = next((step for step in steps if step["type"] == "Normalize"), None)
        if given is None:
            return {}
        bgr_to_rgb = bool(given.get("to_rgb", True))
    if given.get("test_cfg"):
        raise CheckpointError(
            f"data_preprocessor.test_cfg is {given['test_cfg']}: padding at test time is not supported",
            "The published configurations do not pad; remove it from the configuration and check the accuracy.",
        )
    return {
        "mean": tuple(float(v) for v in given["mean"]),
        "std": tuple(float(v) for v in given["std"]),
        "bgr_to_rgb": bgr_to_rgb,
    }


def _pair(value: Any) -> tuple[int, int]:
    """(width, height), or for keep_ratio (longer, shorter) in either order, as mmcv takes it."""
    first, second = value
    return int(first), int(second)


def inference_of(checkpoint: Checkpoint) -> Inference:
    """Whole or slide, as ``model.test_cfg`` says; whole where nothing does.

    Raises:
        CheckpointError: another mode, or windows that leave gaps.
    """
    test = look_up(checkpoint.config, "model", "test_cfg")
    if not isinstance(test, Mapping) or test.get("mode", "whole") == "whole":
        return Inference()
    try:
        inference = Inference(test["mode"], crop=_pair(test.get("crop_size")), stride=_pair(test.get("stride")))
    except (TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(f"{checkpoint.path}: model.test_cfg {test!r} cannot be used: {err}", CORRECT) from err
    if any(stride > crop for stride, crop in zip(inference.stride or (), inference.crop or (), strict=True)):
        raise CheckpointError(
            f"{checkpoint.path}: model.test_cfg {test!r}: strides beyond the crop leave gaps", CORRECT
        )
    return inference


def class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and a warning where the file has none.

    Raises:
        CheckpointError: the file names another number of classes than its last layer has.
    """
    names = checkpoint.classes
    if names is None:
        return tuple(f"class {i}" for i in range(num_classes)), [
            "The file names no classes: called class 0, class 1, …"
        ]
    if len(names) != num_classes:
        raise CheckpointError(
            f"{checkpoint.path}: names {len(names)} classes, but decode_head.conv_seg has {num_classes} outputs",
            "The metadata belongs to another data set; correct dataset_meta (1.x) or CLASSES (0.x) in the file.",
        )
    return names, []


def palette_of(checkpoint: Checkpoint, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The file's colours, or distinct ones made up."""
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

"""How a checkpoint was meant to be run: pre-processing and inference mode, from its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from denseport.export.checkpoint import Checkpoint
from denseport.export.config import look_up
from denseport.export.errors import CheckpointError
from denseport.runtime.manifest import Inference, Preprocess

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


def preprocess_of(checkpoint: Checkpoint) -> tuple[Preprocess, list[str]]:
    """The test pipeline as a `Preprocess`, and warnings for what had to be assumed.

    Raises:
        CheckpointError: the pipeline holds a step that is not supported.
    """
    config = checkpoint.config
    steps = list(_steps(config.get("test_pipeline", ())))
    normalise = _normalisation(config, steps)
    resize = next((step for step in steps if step.get("type") == "Resize"), None)
    scale = (resize or {}).get("scale")
    warnings = []
    if scale is None and not normalise:
        warnings.append(
            f"The file has no test pipeline: assumed {Preprocess()}. Change it with --scale, --mean and --std."
        )
    try:
        return Preprocess(
            scale=_pair(scale) if scale is not None else Preprocess.scale,
            keep_ratio=bool((resize or {}).get("keep_ratio", scale is None)),
            **normalise,
        ), warnings
    except (TypeError, ValueError) as err:
        raise CheckpointError(f"{checkpoint.path}: its test pipeline cannot be used: {err}") from err


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The steps of a 1.x pipeline or, unwrapped, of a 0.x one, where MultiScaleFlipAug holds the scale."""
    for step in pipeline:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "MultiScaleFlipAug":
            for inner in step.get("transforms", ()):
                yield {**inner, "scale": step.get("img_scale")} if inner.get("type") == "Resize" else dict(inner)
        elif kind in {"Resize", "Normalize", *HARMLESS}:
            yield dict(step)
        else:
            raise CheckpointError(
                f"test_pipeline step {kind!r} is not supported",
                "Denseport resizes and normalises; supported steps: Resize, Normalize, " + ", ".join(sorted(HARMLESS)),
            )


def _normalisation(config: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, std and channel order: the data pre-processor's (1.x) or the Normalize step's (0.x)."""
    given = look_up(config, "model", "data_preprocessor", default=config.get("data_preprocessor"))
    order = "bgr_to_rgb"
    if given is None:
        given = next((step for step in steps if step.get("type") == "Normalize"), None)
        order = "to_rgb"
    if given is None:
        return {}
    if given.get("test_cfg"):
        raise CheckpointError(
            f"data_preprocessor.test_cfg is {given['test_cfg']}: padding at test time is not supported",
            "The published configurations do not pad; remove it from the configuration and check the accuracy.",
        )
    return {
        "mean": tuple(float(v) for v in given["mean"]),
        "std": tuple(float(v) for v in given["std"]),
        "bgr_to_rgb": bool(given.get(order, False)),
    }


def _pair(value: Any) -> tuple[int, int]:
    """(width, height), or for keep_ratio (longer, shorter) in either order, as mmcv takes it."""
    first, second = value
    return int(first), int(second)


def inference_of(checkpoint: Checkpoint) -> Inference:
    """Whole or slide, as ``model.test_cfg`` says; whole where nothing does."""
    test = look_up(checkpoint.config, "model", "test_cfg", default={})
    mode = test.get("mode", "whole") if isinstance(test, Mapping) else "whole"
    if mode == "whole":
        return Inference()
    try:
        return Inference(mode, crop=_pair(test["crop_size"]), stride=_pair(test["stride"]))
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{checkpoint.path}: model.test_cfg {test!r} cannot be used: {err}") from err


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
    from denseport.runtime.visualize import default_palette

    if checkpoint.palette is not None and len(checkpoint.palette) == num_classes:
        return checkpoint.palette
    return tuple(default_palette(num_classes))


def reduces_zero_label(checkpoint: Checkpoint) -> bool:
    """Whether the data set's masks count classes from 1 and leave 0 for "ignore"."""
    if checkpoint.reduce_zero_label is not None:
        return checkpoint.reduce_zero_label
    pipelines = (checkpoint.config.get(name, ()) for name in ("train_pipeline", "test_pipeline"))
    steps = [step for pipeline in pipelines for step in pipeline if isinstance(step, Mapping)]
    return any(step.get("reduce_zero_label") for step in steps if step.get("type") == "LoadAnnotations")

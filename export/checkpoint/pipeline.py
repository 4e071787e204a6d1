"""How a checkpoint's own evaluation makes the network's input of an image: the test path of its configuration.

mmsegmentation's ``tools/test.py`` runs the pipeline of the test data set, then the model's data pre-processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from denseport.export.checkpoint.config import CORRECT, look_up
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.pipeline_keys import type_name
from denseport.export.checkpoint.pipeline_steps import Reader
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import (
    USUAL_NORMALISE,
    USUAL_RESIZE,
    Preprocessing,
    check_steps,
    loading,
    with_resize,
)
from denseport.runtime.bundle.steps import (
    Augmentation,
    Normalise,
    Resize,
)

__all__ = ["USUAL", "ImageSteps", "Usual", "evaluated_pipeline", "image_steps"]

Settings = Mapping[str, Any]
# Of a VisionTransformer and of a MixVisionTransformer: they show how many channels an image has.
FIRST_LAYERS = ("backbone.patch_embed.projection.weight", "backbone.layers.0.0.projection.weight")
WHOLE = Inference()
OLD_STEPS = {"MultiScaleFlipAug", "ImageToTensor", "DefaultFormatBundle", "Collect"}  # 1.x has none of them


@dataclass(frozen=True)
class ImageSteps:
    """What a checkpoint's evaluation does to an image."""

    preprocess: Preprocessing
    augmentation: Augmentation | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Usual:
    """How the published models of a kind are tested: assumed of a file that does not say how its own is."""

    resize: Resize = USUAL_RESIZE
    normalise: Normalise = USUAL_NORMALISE
    inference: Inference = WHOLE


USUAL = Usual()


def image_steps(checkpoint: Checkpoint, usual: Usual = USUAL) -> ImageSteps:
    """The test path of a checkpoint; what it does not say is assumed, and each assumption is a warning.

    Raises:
        CheckpointError: it holds a step or a key that is not supported, or settings that cannot be used.
    """
    try:
        return _image_steps(checkpoint, usual)
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError) as err:
        raise CheckpointError(
            f"{checkpoint.settings_from}: its test pipeline cannot be used: {err!r}", CORRECT
        ) from err
    except CheckpointError as err:
        where = "" if err.message.startswith(f"{checkpoint.path}") else f"{checkpoint.settings_from}: "
        raise CheckpointError(f"{where}{err.message}", err.remedy) from err


def _image_steps(checkpoint: Checkpoint, usual: Usual) -> ImageSteps:
    if checkpoint.preprocess is not None:
        check_steps(checkpoint.preprocess)
        return ImageSteps(checkpoint.preprocess, None, ())
    pipeline, warnings = evaluated_pipeline(checkpoint.config)
    old = checkpoint.layout == "mmseg 0.x" or any(type_name(step) in OLD_STEPS for step in pipeline or ())
    reader = Reader(old=old, channels=_channels(checkpoint))
    for step in pipeline or ():
        reader.read(step)
    preprocessor = look_up(
        checkpoint.config, "model", "data_preprocessor", default=checkpoint.config.get("data_preprocessor")
    )
    if preprocessor is not None:
        reader.read_preprocessor(preprocessor)
    steps = reader.steps
    if pipeline is None:
        steps = with_resize(steps, usual.resize)
        longer, shorter = usual.resize.size
        warnings.append(
            f"The file does not say how images are resized: assumed keep-ratio {longer} x {shorter}. "
            "Change it with --scale."
        )
    if not any(isinstance(step, Normalise) for step in steps):
        steps = (*steps, usual.normalise)
        assumed = f"mean {usual.normalise.mean}, std {usual.normalise.std}"
        warnings.append(f"The file does not say how images are normalised: assumed {assumed}.")
    if reader.channels == 1 and not loading(steps).grey:
        warnings.append("The network takes one channel, and the test pipeline loads colours: images are made grey.")
    check_steps(steps)
    return ImageSteps(steps, reader.augmentation, tuple(warnings))


def _channels(checkpoint: Checkpoint) -> int:
    weights = [checkpoint.state_dict[key] for key in FIRST_LAYERS if key in checkpoint.state_dict]
    return weights[0].shape[1] if weights and weights[0].dim() == 4 else 3


def evaluated_pipeline(config: Settings) -> tuple[list[Settings] | None, list[str]]:
    """The steps that the evaluation runs, and warnings; None where the configuration has no such pipeline.

    Raises:
        CheckpointError: several data sets are tested, with pipelines that differ.
    """
    validation = ("val_dataloader", "dataset"), ("data", "val")
    for path in (("test_dataloader", "dataset"), ("data", "test"), ("test_pipeline",), *validation):
        found = look_up(config, *path)
        pipelines = [found] if path == ("test_pipeline",) and found is not None else list(_pipelines(found))
        if not pipelines:
            continue
        if any(each != pipelines[0] for each in pipelines):
            raise CheckpointError(
                f"{'.'.join(path)} holds several data sets whose pipelines differ",
                "Keep one of them in the configuration, and export a bundle for each.",
            )
        warnings = []
        if path in validation:
            warnings.append(f"The file has no test pipeline: took that of {'.'.join(path)}.")
        other = config.get("test_pipeline")
        if other is not None and list(other) != list(pipelines[0]):
            where = ".".join(path)
            warnings.append(
                f"test_pipeline differs from the pipeline of {where}, which the evaluation runs: took the latter."
            )
        return list(pipelines[0]), warnings
    return None, []


def _pipelines(dataset: Any) -> Iterator[Any]:
    """Of a data set, and of those that it wraps: ``dataset`` and ``datasets``."""
    if isinstance(dataset, (list, tuple)):
        for each in dataset:
            yield from _pipelines(each)
    elif isinstance(dataset, Mapping):
        if look_up(dataset, "pipeline") is not None:
            yield dataset["pipeline"]
        for key in ("dataset", "datasets"):
            yield from _pipelines(look_up(dataset, key))

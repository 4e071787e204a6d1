"""What a checkpoint says besides its network and its pipeline: windows, classes, labels, the meaning of depths."""

from __future__ import annotations

from collections.abc import Mapping

from denseport.export.checkpoint.config import CORRECT, look_up
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.networks.original import DEPTH_ANYTHING
from denseport.export.checkpoint.pipeline import USUAL, Usual, evaluated_pipeline
from denseport.export.checkpoint.pipeline_keys import check_keys, type_name, whole_pair
from denseport.export.errors import CheckpointError
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DPTDepthHeadSpec
from denseport.runtime.bundle.manifest import DepthOutput, Inference
from denseport.runtime.media.overlay import default_palette

__all__ = ["class_names", "depth_of", "inference_of", "palette_of", "reduces_zero_label"]


def inference_of(checkpoint: Checkpoint, usual: Usual = USUAL) -> tuple[Inference, list[str]]:
    """Whole or slide, as ``model.test_cfg`` says; where nothing does it is assumed, with a warning.

    Raises:
        CheckpointError: another mode, or windows that leave gaps.
    """
    test = look_up(checkpoint.config, "model", "test_cfg")
    if "mode" in (look_up(checkpoint.config, "test_cfg") or ()) and test:
        raise CheckpointError(
            f"{checkpoint.settings_from}: test_cfg and model.test_cfg both say how to test, as mmsegmentation refuses",
            "Leave one of the two in the configuration.",
        )
    outer = look_up(checkpoint.config, "test_cfg")
    if test is None and not (isinstance(outer, Mapping) and "type" in outer):
        test = outer  # of early 0.x; 1.x names its loop so
    if test is None and not checkpoint.follows_mmseg:  # the code of the others knows no windows
        return Inference(), []
    if test is None:
        return usual.inference, [
            "The file does not say whether the network is given whole images or windows of them: assumed "
            f"{_words(usual.inference)}, as the published models were tested. Change it with --config."
        ]
    try:
        if not isinstance(test, Mapping):
            raise ValueError("it is not a dict")
        own = check_keys("model.test_cfg", test)
        if own["mode"] == "whole":
            return Inference(), []
        return Inference(own["mode"], whole_pair(own["crop_size"]), whole_pair(own["stride"])), []
    except CheckpointError as err:
        raise CheckpointError(f"{checkpoint.settings_from}: {err.message}", err.remedy) from err
    except (TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(
            f"{checkpoint.settings_from}: model.test_cfg {test!r} cannot be used: {err}", CORRECT
        ) from err


def _words(inference: Inference) -> str:
    if inference.crop is None or inference.stride is None:
        return "whole images"
    sizes = [f"{width} x {height}" for height, width in (inference.crop, inference.stride)]
    return f"windows of {sizes[0]} pixels with a stride of {sizes[1]}"


def depth_of(checkpoint: Checkpoint, head: DPTDepthHeadSpec | DepthAnythingHeadSpec) -> DepthOutput:
    """What a head's numbers mean, and how the checkpoint's own code resizes them to the image."""
    return DepthOutput(
        unit="metres" if head.metres else "relative",
        larger_is="farther" if head.metres else "nearer",
        # An inversion ends at 1 / shift, below what its data sets hold: no limit up to which depths are to be judged.
        largest=head.max_depth if isinstance(head, DepthAnythingHeadSpec) else None,
        interpolation="bilinear" if checkpoint.layout == DEPTH_ANYTHING else "bicubic",
    )


def class_names(
    checkpoint: Checkpoint, num_classes: int, *, is_binary: bool = False
) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and a warning where the file has none.

    Args:
        is_binary: the two classes are what one output and a threshold tell apart; a single name is of the second.

    Raises:
        CheckpointError: the file names another number of classes than its last layer has.
    """
    names = checkpoint.classes
    if names is None:
        warning = "The file names no classes: they are called class 0, class 1, …. Name them with --classes."
        return tuple(f"class {i}" for i in range(num_classes)), [warning]
    if is_binary and len(names) == 1:
        warning = f"The file names one class, {names[0]!r}: what is not above the threshold is called background."
        return ("background", *names), [warning]
    if len(names) != num_classes:
        raise CheckpointError(
            f"{checkpoint.path}: names {len(names)} classes, but decode_head.conv_seg has {num_classes} outputs",
            "The metadata belongs to another data set; correct dataset_meta (1.x) or CLASSES (0.x), or give --classes.",
        )
    return names, []


def palette_of(checkpoint: Checkpoint, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The file's colours, with black for the background of a single class; a default where their number differs."""
    background = ((0, 0, 0),) if num_classes == 2 and len(checkpoint.classes or ()) == 1 else ()
    named = num_classes - len(background)
    if checkpoint.palette is not None and len(checkpoint.palette) == named:
        return (*background, *checkpoint.palette)
    return (*background, *default_palette(named))


def reduces_zero_label(checkpoint: Checkpoint) -> bool:
    """Whether the data set's masks count classes from 1 and leave 0 for "ignore"."""
    if checkpoint.reduce_zero_label is not None:
        return checkpoint.reduce_zero_label
    pipelines = (evaluated_pipeline(checkpoint.config)[0], look_up(checkpoint.config, "train_pipeline"))
    lists = [pipeline for pipeline in pipelines if isinstance(pipeline, (list, tuple))]
    steps = [step for pipeline in lists for step in pipeline if isinstance(step, Mapping) and "type" in step]
    return any(step.get("reduce_zero_label") for step in steps if type_name(step) == "LoadAnnotations")

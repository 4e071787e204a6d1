"""The whole way from a checkpoint file to a bundle on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any

from denseport.export.checkpoint import settings
from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.labels import check_count, colours_of
from denseport.export.checkpoint.pipeline import ImageSteps, image_steps
from denseport.export.checkpoint.recognise import Recognised, recognise
from denseport.export.checkpoint.weights import choose_weights, load_model
from denseport.export.entrance.compare import record_of
from denseport.export.entrance.fetch import Weights, fetch_weights, similar_presets
from denseport.export.entrance.torch_to_onnx import (
    IR_VERSION,
    OPSET,
    check_export,
    check_versions,
    export_onnx,
)
from denseport.export.entrance.write import MODEL, announce, made_with, refuse_inside, renamed, write_source
from denseport.export.errors import CheckpointError
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DPTDepthHeadSpec
from denseport.export.models.presets import DepthPreset, Preset, published
from denseport.export.models.segmentor import Segmentor, has_rewrites
from denseport.export.models.spec import ModelSpec
from denseport.runtime.bundle.bundle import Bundle, new_bundle
from denseport.runtime.bundle.manifest import Manifest, NetworkInput, Reference
from denseport.runtime.bundle.preprocessing import resized_to, resizing
from denseport.runtime.bundle.steps import Resize, ResizeRounded
from denseport.runtime.errors import InputError
from denseport.runtime.system.arguments import optional_path, required_path
from denseport.runtime.system.files import writing
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["export_bundle"]


def export_bundle(
    checkpoint: Path | str,
    output: Path | str,
    *,
    preset: Preset | DepthPreset | str | None = None,
    config: Path | str | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    name: str | None = None,
    scale: tuple[int, int] | None = None,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
    rewrite: bool = True,
    ema: bool | None = None,
    replace: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a checkpoint, for classes or for depth; the bundle is kept only if ONNX Runtime computes what torch does.

    Args:
        checkpoint: a file, a folder, or a name, fetched unless ``offline`` (`export.entrance.fetch.fetch_weights`).
        preset: the published model that the checkpoint is, or its name; default: recognised, or none.
        config: mmsegmentation's configuration, ``.py`` or ``.json``, or a ``.json`` of settings that weights cannot
            show (`denseport.export.checkpoint.config.FIELDS`); it counts more than the checkpoint's own. Of files that
            are not mmsegmentation's: a ``.json`` of what they leave open.
        classes, palette: a name and an RGB colour (0..255) for each class; default: the checkpoint's own.
        name: what the bundle's manifest calls the model; default: the published model's name, or the file's.
        scale: limits of the longer and the shorter side, pixels; default: the checkpoint's own.
        opset, ir_version: of ONNX, for servers that refuse newer ones.
        rewrite: apply the exact rewrites of `denseport.export.models.dpt`.
        ema: of two sets of weights, those that were averaged over the training, or the others; default: the plain
            state_dict, which mmsegmentation tests.
        replace: replace an existing bundle.

    Raises:
        CheckpointError, ServerError: the file, its network or its settings cannot be used, or not fetched.
        ExportError: the graph differs from torch; nothing is written.
        InputError: no such preset; another number of names or colours than of classes; no such opset or IR version.
        OutputError: ``output`` exists, cannot be written, or is to be replaced and holds a file that is read.
    """
    progress, preset, config = progress or Silent(), _preset(preset), optional_path("config", config)
    checkpoint, output = required_path("checkpoint", checkpoint), required_path("output", output)
    check_versions(opset, ir_version)
    refuse_inside(output, (checkpoint, config), replace=replace)
    with new_bundle(output, replace=replace) as folder:
        weights, source = _read(checkpoint, config, progress, offline=offline)
        recognised = recognise(source, preset, name=weights.name)
        source = _named(source, recognised.spec, classes, palette)
        model = load_model(source, recognised.spec, rewrite=rewrite, ema=ema)
        source = dataclasses.replace(source, warnings=(*source.warnings, *choose_weights(source, ema)[1]))
        manifest = renamed(_manifest(source, weights, recognised, scale, model), name, progress)
        announce(manifest, progress)
        with writing(output):
            files = export_onnx(model, folder / MODEL, opset, ir_version)
        progress.say("comparing ONNX Runtime with torch")
        checks, rewritten = check_export(model, folder / MODEL), rewrite and has_rewrites(recognised.spec)
        record = {"opset": opset, "ir_version": ir_version, "rewrite": rewritten, "ema": ema} | record_of(checks)
        write_source(manifest, files, output, against="torch", record=record)
    return Bundle(output)


def _read(checkpoint: Path, config: Path | None, progress: Progress, *, offline: bool) -> tuple[Weights, Checkpoint]:
    weights = fetch_weights(checkpoint, offline=offline, progress=progress)
    progress.say(f"reading {weights.path}")
    return weights, read_checkpoint(weights.path, config)


def _preset(preset: Preset | DepthPreset | str | None) -> Preset | DepthPreset | None:
    if preset is None or isinstance(preset, Preset | DepthPreset):
        return preset
    if not isinstance(preset, str):
        raise InputError(f"preset cannot be {preset!r}", "Give a name of denseport models.")
    if preset not in published():
        raise InputError(f"no preset {preset!r}", similar_presets(preset))
    return published()[preset]


def _named(
    source: Checkpoint,
    spec: ModelSpec,
    classes: Sequence[str] | None,
    palette: Sequence[tuple[int, int, int]] | None,
) -> Checkpoint:
    """The checkpoint with the names and colours that were given."""
    if spec.task == "depth" and (classes is not None or palette is not None):
        what = "--classes" if classes is not None else "--palette"
        raise InputError(f"{what}: a network for depth has no classes", "Leave it out.")
    # A network with one output has two classes, and one or two names.
    numbers = {spec.num_classes, 1} if spec.head.threshold is not None else {spec.num_classes}
    check_count("--classes", classes, numbers)
    check_count("--palette", palette, numbers)
    if classes is not None:
        source = dataclasses.replace(source, classes=tuple(classes))
    if palette is not None:
        colours = colours_of(palette)
        if colours is None:
            raise InputError(f"palette: {palette!r} are not RGB triples in 0..255", "Give three whole numbers a class.")
        source = dataclasses.replace(source, palette=colours)
    return source


def _manifest(
    source: Checkpoint, weights: Weights, recognised: Recognised, scale: tuple[int, int] | None, model: Segmentor
) -> Manifest:
    spec, preset = recognised.spec, recognised.preset
    if spec.task == "depth" and source.preprocess is None:
        what = f"{source.path}: nothing says how images are prepared: it has no preprocessor_config.json"
        raise CheckpointError(what, "Fetch that file too.")
    if spec.task == "depth" and scale is not None:
        what = f"--scale {scale[0]} {scale[1]}: the size for a depth network follows the rule of {source.layout}"
        raise CheckpointError(what, "Leave --scale out.")
    path = image_steps(source, recognised.usual)
    inference, inference_warnings = settings.inference_of(source, recognised.usual)
    if scale is not None:
        path = _scaled(path, scale)
    preprocess = path.preprocess
    resize = resizing(preprocess)
    if isinstance(resize, Resize | ResizeRounded) and min(resize.size) < spec.backbone.smallest:
        raise CheckpointError(
            f"{source.path}: its test scale {resize.size[0]} x {resize.size[1]} is below one patch of "
            f"{spec.backbone.smallest} pixels",
            "Give limits of the longer and the shorter side, for example --scale 2048 512."
            if spec.task == "segmentation"
            else "Give the folder's own preprocessor_config.json, whose size is that of its training.",
        )
    reference = None
    if preset is not None:
        about = preset.name, f"{preset.dataset} validation", preset.protocol
        reference = Reference(*about, preset.mIoU, preset.mIoU_ms_flip, recognised.recognised_by, preset.figures)
    gives, warnings = _gives(source, spec)
    warnings = [*source.warnings, *recognised.warnings, *path.warnings, *inference_warnings, *warnings]
    try:
        return Manifest(
            name=preset.name if preset else weights.name or Path(source.name).stem,
            architecture=spec.architecture,
            parameters=sum(value.numel() for value in model.parameters()),
            patch_size=spec.backbone.smallest,
            stride=spec.stride,
            **gives,
            reduce_zero_label=settings.reduces_zero_label(source),
            preprocess=preprocess,
            augmentation=path.augmentation,
            inference=inference,
            label_map=source.label_map,
            ignore_index=source.ignore_index,
            reference=reference,
            provenance=_provenance(source, weights, warnings)
            | {"licence": preset.licence if preset else weights.licence},
            spec=dataclasses.asdict(spec),
            source=MODEL,
            task=spec.task,
            input=NetworkInput(shape=(None, spec.backbone.in_channels, None, None)),
            align_corners=spec.head.align_corners,
            via_input=source.follows_mmseg,
            threshold=spec.head.threshold,
        )
    except ValueError as err:
        raise CheckpointError(f"{source.path}: {err}", source.correction) from err


def _gives(source: Checkpoint, spec: ModelSpec) -> tuple[dict[str, Any], list[str]]:
    """Fields of the manifest that say what the network gives, classes or depth, and warnings."""
    if isinstance(spec.head, DPTDepthHeadSpec | DepthAnythingHeadSpec):
        return {"classes": (), "palette": (), "depth": settings.depth_of(source, spec.head)}, []
    binary = spec.head.threshold is not None
    classes, warnings = settings.class_names(source, spec.num_classes, is_binary=binary)
    palette = settings.palette_of(source, len(classes))
    if source.palette is not None and not {*source.palette} <= {*palette}:
        warnings.append(f"The file has {len(source.palette)} colours for {len(classes)} classes: others are taken.")
    return {"classes": classes, "palette": palette}, warnings


def _scaled(path: ImageSteps, scale: tuple[int, int]) -> ImageSteps:
    """The test path with another test size, in each of its views."""
    if path.augmentation is not None and len(path.augmentation.scales) > 1:
        raise CheckpointError(
            f"--scale {scale[0]} {scale[1]}: the checkpoint's own test has {len(path.augmentation.scales)} scales",
            "Leave --scale out, or give a configuration whose test has one scale by --config.",
        )
    try:
        longer, shorter = map(index, scale)  # numpy's integers as Python's; no floats
        preprocess = resized_to(path.preprocess, (longer, shorter), keep_ratio=True)
    except (TypeError, ValueError) as err:
        raise CheckpointError(
            f"--scale {scale}: {err}", "Give two sides in pixels, for example --scale 2048 512."
        ) from err
    resize, views = resizing(preprocess), path.augmentation
    assert resize is not None  # resized_to
    views = views and dataclasses.replace(views, scales=(resize,))
    return dataclasses.replace(path, preprocess=preprocess, augmentation=views)


def _provenance(source: Checkpoint, weights: Weights, warnings: list[str]) -> dict[str, Any]:
    return {
        "checkpoint": source.name,
        "address": weights.address,
        "sha256": source.sha256,
        "layout": source.layout,
        "config": source.config_file,
        "experiment": source.experiment,
        "iterations": source.iterations,
        **made_with(("torch", "onnx"), warnings),
    }

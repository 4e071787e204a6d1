"""The accuracy of an artifact on labelled images, and whether it may ship: what ``denseport eval`` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.evaluation.dataset import Dataset, open_dataset
from denseport.runtime.evaluation.gate import Gate, published_miou
from denseport.runtime.evaluation.metrics import Scores
from denseport.runtime.evaluation.record import float_warnings, measurable, note_accuracy
from denseport.runtime.evaluation.report import QUALITY, Evaluation, Origin, worst_images, write_report
from denseport.runtime.evaluation.state import MASKS_ONLY, Extras, Measurement
from denseport.runtime.evaluation.task import LongRun, Task, open_task
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.arguments import optional_path, whole
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["evaluate", "judged", "open_data"]

EVALUATES_DEPTH = "denseport.runtime.evaluation.depth.evaluate.evaluate_depth"


def evaluate(
    bundle: Path | str | Bundle,
    data: Path | str | Dataset,
    *,
    artifact: str | None = None,
    protocol: str | Protocol = "reference",
    gate: Gate | str | float | None = None,
    masks: Path | str | None = None,
    list_file: Path | str | None = None,
    split: str | None = None,
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    reduce_zero_label: bool | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_index: int | None = None,
    limit: int | None = None,
    threads: int | None = None,
    workers: int = 2,
    extras: Extras = MASKS_ONLY,
    run: LongRun | None = None,
    checkpoint: Path | str | None = None,
    report: Path | str | None = None,
    record: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure an artifact on labelled images and, with a gate, judge it. A failed gate is a result, no exception.

    Args:
        data: a path as of `open_dataset`, or a data set that is open already.
        artifact, gate: default: the FP32 model, and none. A gate may be given as what it compares with.
        protocol: how images reach the network, by name (docs/evaluation.md).
        masks, list_file, split, image_suffix, mask_suffix: as of `open_dataset`, where ``data`` is a path.
        reduce_zero_label, label_map, ignore_index: the same; default: as in the bundle's data set.
        limit: only the first images.
        threads: CPU threads of the network; default: all that this process may use.
        workers: threads beside the network, which decode and post-process; bounds the images in memory.
        extras: what else is counted: boundaries, and the calibration error of the scores.
        run: how a long measurement is kept, resumed and divided.
        checkpoint: that the bundle was exported from: explain which step lost what (needs torch).
        report, record: folder to write a self-contained HTML page to; keep the result in the bundle's manifest.

    Raises:
        BundleError, MachineError: as of `Segmenter`; also where Ray or torch is missing.
        DatasetError, ImageError: labels or images that cannot be used.
        InputError: what cannot be compared or resumed, or no such protocol.
        OutputError: the report, the state or the manifest cannot be written.
    """
    progress, run, report = progress or Silent(), run or LongRun(), optional_path("report", report)
    checkpoint = optional_path("checkpoint", checkpoint)
    run.check()
    bundle = measurable(bundle, "segmentation", report, record=record, otherwise=EVALUATES_DEPTH)
    options: dict[str, Any] = {"masks": masks, "list_file": list_file, "split": split, "image_suffix": image_suffix}
    options |= {"mask_suffix": mask_suffix, "reduce_zero_label": reduce_zero_label, "label_map": label_map}
    data = open_data(bundle, data, limit=limit, ignore_index=ignore_index, **options)
    with open_task(bundle, data, artifact, protocol, gate, threads, workers, extras) as task:
        progress.say(data.found)
        found = judged(task, *task.measure(run, progress))
        found = found if checkpoint is None else replace(found, explanation=_explain(task, checkpoint, progress))
        found = found if report is None else replace(found, report=_write_report(report, task, found))
        return _recorded(task.segmenter, found, run) if record else found


def open_data(bundle: Bundle, data: Path | str | Dataset, *, limit: int | None, **options: Any) -> Dataset:
    """The images that are measured; errors as of `evaluate`, ``options`` as of `open_dataset`."""
    if not isinstance(data, Dataset):
        data = open_dataset(data, **options, manifest=bundle.manifest)
    elif lost := [name for name, value in options.items() if value is not None]:
        raise InputError(
            f"{' and '.join(lost)}: applies to a path, and the data set is open already", "Give it to open_dataset."
        )
    return replace(data, samples=data.samples[: None if limit is None else whole("limit", limit, 1)])


def judged(task: Task, measurement: Measurement, session: str) -> Evaluation:
    """What was measured, with its verdict and its warnings.

    Args:
        session: what ran it, in words.
    """
    segmenter, classes = task.segmenter, task.segmenter.manifest.classes
    scores = measurement.scores(classes)
    return Evaluation(
        **vars(scores),
        artifact=segmenter.artifact,
        session=session,
        protocol=segmenter.protocol,
        reduce_zero_label=task.dataset.reduce_zero_label,
        measurement=measurement,
        agreement=measurement.agreement,
        gate=task.comparison.judge(measurement, classes) if task.comparison is not None else None,
        warnings=(*_warnings(segmenter, scores, measurement), *_label_warnings(segmenter, task.dataset, measurement)),
        data=task.dataset.found,
        label_map=dict(task.dataset.label_map),
        ignore_index=task.dataset.ignore_index,
        temperature=segmenter.manifest.temperature,
    )


def _warnings(segmenter: Segmenter, scores: Scores, found: Measurement) -> list[str]:
    reference = segmenter.manifest.reference
    warnings = []
    if reference is not None and published_miou(segmenter) is None:
        warnings.append(
            f"the published mIoU {reference.mIoU} was measured with another protocol ({reference.protocol}) than this "
            f"({segmenter.protocol.description})"
        )
    if scores.mIoU != scores.mIoU:
        warnings.append("there is no mIoU: every pixel of the masks is ignored")
    if bad := int(found.counts["non_finite"].sum()):
        warnings.append(f"the logits of {bad} of {found.images} images are not finite: the figures mean little")
    return [*warnings, *float_warnings(segmenter.bundle.artifact(segmenter.artifact), on_gpu=found.on_gpu)]


def _told(setting: object) -> str:
    """A setting of the labels in words; False and 0 are values, an empty map is none."""
    return "none" if setting == {} else str(setting)


def _label_warnings(segmenter: Segmenter, dataset: Dataset, found: Measurement) -> Iterator[str]:
    """What is to be known of how the labels were read."""
    manifest, labelled = segmenter.manifest, found.confusion.label
    wanted = {int(old): new for old, new in manifest.label_map.items()}
    read = (dataset.reduce_zero_label, dataset.label_map, dataset.ignore_index)
    for name, own, other in zip(
        ("reduce_zero_label", "label_map", "ignore_index"),
        read,
        (manifest.reduce_zero_label, wanted, manifest.ignore_index),
        strict=True,
    ):
        if own != other:
            yield f"the labels were read with {name} {_told(own)}; the bundle's data set has {_told(other)}"
    if dataset.ignore_index != 255 and (dataset.reduce_zero_label or 255 in dataset.label_map.values()):
        yield (
            f"labels that are dropped become 255 and are ignored here; mmsegmentation ignores {dataset.ignore_index} "
            "alone and counts a prediction there as wrong"
        )
    if found.ignored and len(labelled) == 2 and labelled[0] and not labelled[1] and dataset.ignore_index == 255:
        yield (
            f"{100 * found.ignored:.1f} % of the labels are 255 and ignored, and no mask holds the class "
            f"{manifest.classes[1]!r}: if 255 is that class, add --label-map 255:1"
        )


def _explain(task: Task, checkpoint: Path, progress: Progress) -> dict[str, Any]:
    """What `denseport.export.explain.explain` says; found through its entry point, as the runtime knows no export."""
    try:
        (entry,) = entry_points(group="denseport.explain")
        explain = entry.load()
    except (ValueError, ImportError) as err:
        raise MachineError("--explain needs torch", install_command("export,onnxruntime")) from err
    segmenter = task.segmenter
    explanation = explain(
        segmenter.bundle, segmenter.artifact, checkpoint, task.dataset, segmenter.protocol, progress=progress
    )
    return {**explanation.to_dict(), "lines": explanation.lines()}


def _write_report(folder: Path, task: Task, found: Evaluation) -> Path:
    segmenter = task.segmenter
    images = worst_images(task.dataset, found.measurement, segmenter, task.fp32)
    return write_report(folder, found, segmenter.manifest, images, Origin.of_this_run(segmenter.description))


def _recorded(segmenter: Segmenter, found: Evaluation, run: LongRun) -> Evaluation:
    """Record the result, or say in a warning why not."""
    bundle, result, fp32 = segmenter.bundle, found.to_dict(), found.measurement.fp32_confusion
    kept = {key: result[key] for key in ("mIoU", "mAcc", "aAcc", "images", "protocol", "agreement", "gate")}
    quality = {key: result[key] for key in QUALITY if key in result}
    beside = None
    if fp32 is not None:
        scores = fp32.scores(bundle.manifest.classes).to_dict()
        beside = kept | {name: scores[name] for name in ("mIoU", "mAcc", "aAcc")} | {"agreement": None, "gate": None}
    elsewhere = run.ray is not None or found.measurement.measured < found.measurement.images
    how = {"on_gpu": found.measurement.on_gpu, "elsewhere": elsewhere}
    return replace(
        found, warnings=(*found.warnings, *note_accuracy(bundle, found.artifact, kept | quality, **how, fp32=beside))
    )

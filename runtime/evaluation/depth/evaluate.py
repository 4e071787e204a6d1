"""The accuracy of a depth artifact, and whether it may ship: what ``denseport eval`` does with a depth bundle."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import DatasetError, InputError
from denseport.runtime.evaluation.depth.dataset import DepthDataset, DepthReading, open_depth_dataset
from denseport.runtime.evaluation.depth.gate import Yardstick, choose_yardstick, collapses, judge
from denseport.runtime.evaluation.depth.measure import DepthMeasurement, measure_depths
from denseport.runtime.evaluation.depth.report import DepthEvaluation, worst_depths, write_depth_report
from denseport.runtime.evaluation.gate import Gate
from denseport.runtime.evaluation.record import float_warnings, measurable, note_accuracy
from denseport.runtime.evaluation.report import Origin
from denseport.runtime.segmenter.depth import DepthEstimator
from denseport.runtime.system.arguments import optional_path, whole
from denseport.runtime.system.cpus import MOST_THREADS
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["evaluate_depth"]

LEAST = 1e-3  # metres, as upstream has it


def evaluate_depth(
    bundle: Path | str | Bundle,
    data: Path | str | DepthDataset,
    *,
    artifact: str | None = None,
    protocol: str | Protocol = "reference",
    gate: Gate | str | float | None = None,
    depths: Path | str | None = None,
    list_file: Path | str | None = None,
    image_suffix: str | None = None,
    depth_suffix: str | None = None,
    settings: DepthReading | None = None,
    limit: int | None = None,
    threads: int | None = None,
    workers: int = 2,
    report: Path | str | None = None,
    record: bool = False,
    progress: Progress | None = None,
) -> DepthEvaluation:
    """Measure a depth artifact and, with a gate, judge it. A failed gate is a result, no exception.

    Args:
        data: a path as of `open_depth_dataset`, or a data set that is open already.
        artifact, gate, protocol, limit, threads, workers, report, record: as of `denseport.runtime.evaluate`; a gate
            compares with FP32 (``"model.onnx"``), the published figures (``"reference"``) or an AbsRel.
        depths, list_file, image_suffix, depth_suffix: as of `open_depth_dataset`, where ``data`` is a path.
        settings: the scale of PNGs, the limits in metres, the crop; default: the layout's, then 0.001 and the network's
            own limit.

    Raises:
        BundleError, MachineError: as of `DepthEstimator`.
        DatasetError, ImageError: images or depths that cannot be used.
        InputError: what cannot be compared, or nothing says how far measured depths count.
        OutputError: the report or the manifest cannot be written.
    """
    progress, report = progress or Silent(), optional_path("report", report)
    bundle = measurable(bundle, "depth", report, record=record, otherwise="denseport.runtime.evaluate")
    workers, manifest = whole("workers", workers, 1, MOST_THREADS), bundle.manifest
    artifact = manifest.source if artifact is None else artifact
    gate = gate if gate is None or isinstance(gate, Gate) else Gate(gate)
    how: dict[str, Any] = {"depths": depths, "list_file": list_file, "settings": settings}
    how |= {"image_suffix": image_suffix, "depth_suffix": depth_suffix}
    data = _complete(_opened(data, limit, how), manifest)
    with ExitStack() as stack:
        common: dict[str, Any] = {"protocol": protocol, "threads": threads}
        own = stack.enter_context(DepthEstimator(bundle, artifact=artifact, **common))
        yardstick = None if gate is None else choose_yardstick(gate, manifest, own.artifact, data, own.protocol.name)
        fp32 = None
        if yardstick is not None and yardstick.abs_rel is None:
            fp32 = stack.enter_context(DepthEstimator(bundle, artifact=manifest.source, **common))
        progress.say(data.found)
        with progress.phase(f"measuring {artifact}") as told:
            found = measure_depths(data, own, fp32=fp32, workers=workers, progress=told)
        evaluation = _judged(own, data, found, yardstick)
        if report is not None:
            images = worst_depths(data, found, [own] if fp32 is None else [own, fp32])
            page = write_depth_report(report, evaluation, manifest, images, Origin.of_this_run(own.description))
            evaluation = replace(evaluation, report=page)
    return _recorded(bundle, evaluation) if record else evaluation


def _opened(data: Path | str | DepthDataset, limit: int | None, how: dict[str, Any]) -> DepthDataset:
    """The images that are measured."""
    if not isinstance(data, DepthDataset):
        data = open_depth_dataset(data, **how)
    elif lost := [name for name, value in how.items() if value is not None]:
        raise InputError(
            f"{lost[0]}: applies to a path, and the data set is open already", "Give it to open_depth_dataset."
        )
    return replace(data, samples=data.samples[: None if limit is None else whole("limit", limit, 1)])


def _complete(data: DepthDataset, manifest: Manifest) -> DepthDataset:
    """The data set with its limits.

    Raises:
        InputError: nothing says the largest depth that counts.
    """
    assert manifest.depth is not None  # of a depth bundle
    largest = manifest.depth.largest if manifest.depth.unit == "metres" else None
    reading = data.reading.over(DepthReading(least=LEAST, most=largest))
    if reading.most is None:
        what = "nothing says up to how many metres measured depths count"
        raise InputError(what, "Give --max-depth: 10 is usual for NYUv2, 80 for KITTI.")
    if reading.least is None or not 0 < reading.least < reading.most:
        what = f"--min-depth {reading.least} and --max-depth {reading.most} do not go together"
        raise InputError(what, "Both are above 0, and the second is larger.")
    return replace(data, reading=reading)


def _judged(
    estimator: DepthEstimator, data: DepthDataset, found: DepthMeasurement, yardstick: Yardstick | None
) -> DepthEvaluation:
    output = estimator.manifest.depth
    assert output is not None  # of a depth bundle
    if not found.pixels.any():
        limits = f"{data.reading.least:g} to {data.reading.most:g} metres"
        what = f"{data.found}: no pixel counts: none has a measured depth of {limits} within the crop"
        raise DatasetError(what, "Correct --depth-scale, --min-depth, --max-depth or --crop.")
    warnings = [] if yardstick is not None else collapses(found)
    warnings += float_warnings(estimator.bundle.artifact(estimator.artifact), on_gpu=found.on_gpu)
    if nothing := int((found.pixels == 0).sum()):
        warnings.append(f"{nothing} of {found.images} images have no pixel that counts, and are left out of the means")
    return DepthEvaluation(
        metrics=found.means(),
        fp32=found.means(1) if len(found.values) == 2 else None,
        artifact=estimator.artifact,
        session=estimator.description,
        protocol=estimator.protocol,
        reading=data.reading,
        measurement=found,
        aligned=output.unit == "relative",
        gate=None if yardstick is None else judge(yardstick, found),
        warnings=tuple(warnings),
        data=data.found,
    )


def _recorded(bundle: Bundle, found: DepthEvaluation) -> DepthEvaluation:
    """The result in the artifact's record, or a warning why not."""
    result = found.to_dict()
    kept = {key: result[key] for key in ("AbsRel", "d1", "images", "protocol", "gate")}
    fp32 = result["fp32"]
    beside = fp32 and kept | {"gate": None, "AbsRel": fp32["AbsRel"], "d1": fp32["d1"]}
    why_not = note_accuracy(bundle, found.artifact, kept, on_gpu=found.measurement.on_gpu, fp32=beside)
    return replace(found, warnings=(*found.warnings, *why_not))

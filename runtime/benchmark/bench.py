"""How fast each artifact of a bundle is on this machine, side by side: what ``denseport bench`` does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.benchmark.load import LoadMonitor
from denseport.runtime.benchmark.report import REPORTS, as_dict, recorded_accuracy, write_report
from denseport.runtime.benchmark.speed import Plan, Result, run_bench, speed_warnings, synthetic_image
from denseport.runtime.benchmark.startup import measure_startup
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import DenseportError, InputError, MachineError, OutputError
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.network_input import network_inputs
from denseport.runtime.pipeline.pipeline import checked_image
from denseport.runtime.segmenter.opening import open_predictor
from denseport.runtime.segmenter.predictor import Predictor
from denseport.runtime.system.arguments import optional_path, required_path, several
from denseport.runtime.system.files import refuse_unwritable
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Bench", "bench"]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Bench:
    """What `bench` found."""

    results: tuple[Result, ...]  # of each artifact, and of the baseline last
    skipped: dict[str, str]  # artifacts that were not measured, and why
    warnings: tuple[str, ...]  # why the figures may be wrong
    details: dict[str, Any]  # everything, ready for JSON
    report: Path | None = None  # the page; None: not asked for

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport bench --json`` prints."""
        return self.details


def bench(
    bundle: Path | str | Bundle,
    artifacts: str | Sequence[str] = (),
    *,
    image: Path | str | Image | None = None,
    plan: Plan | None = None,
    threads: int | None = None,
    baseline: str | None = None,
    checkpoint: Path | str | None = None,
    report: Path | str | None = None,
    record: bool = True,
    progress: Progress | None = None,
) -> Bench:
    """Measure speed, memory and start-up of artifacts in turns.

    Args:
        artifacts: default: all that run on this machine.
        image: a file, or (H, W, 3) uint8 BGR; default: a made-up one of 512 x 512.
        plan: rounds, seconds, callers at once, batches.
        threads: CPU threads; default: all that this process may use.
        baseline: "torch": measure the network in PyTorch too, upstream's way.
        checkpoint: weights of the baseline; default: random ones.
        report: folder for bench.html and bench.json.
        record: keep the figures in the bundle's manifest.

    Raises:
        BundleError: no such artifact, or an altered one.
        ImageError: the image cannot be read, or an artifact cannot run it.
        InputError: a checkpoint without a baseline.
        MachineError: nothing runs here, or the baseline is not installed.
        OutputError: the report or the manifest cannot be written.
    """
    progress, plan, report = progress or Silent(), plan or Plan(), optional_path("report", report)
    bundle = _check(bundle, report, checkpoint, baseline, record=record)
    shown = _read(image)
    with ExitStack() as stack:
        segmenters, skipped = _open(bundle, several("artifacts", artifacts), threads, stack, progress)
        first, contenders = segmenters[0], list(segmenters)
        if baseline is not None:
            contenders.append(stack.enter_context(_baseline(baseline, first, checkpoint, threads)))
        tensor = next(network_inputs(shown, first.protocol, first.manifest.patch_size))
        monitor = LoadMonitor()
        results = run_bench(contenders, shown, tensor, plan, progress)
        conditions = monitor.stop()
        starts = {}
        for segmenter in segmenters:
            progress.say(f"starting {segmenter.artifact} in a process of its own")
            starts[segmenter.artifact] = measure_startup(bundle.path, segmenter.artifact, shown.shape[:2], threads)
    warnings = [*conditions.warnings(), *speed_warnings(results)]
    details = as_dict(bundle, results, starts, shown, tensor, conditions, warnings, skipped)
    if record:
        _keep(bundle, details)
    page = None if report is None else write_report(report, details)
    return Bench(tuple(results), skipped, tuple(warnings), details, page)


def _check(
    bundle: Path | str | Bundle,
    report: Path | None,
    checkpoint: Path | str | None,
    baseline: str | None,
    *,
    record: bool,
) -> Bundle:
    """The bundle, opened, once it is known that what is asked for fits together and can be written."""
    if report is not None:
        refuse_unwritable(report, *REPORTS)
    if checkpoint is not None and baseline is None:
        raise InputError("--checkpoint is used by --baseline only", "Add --baseline torch.")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    if record:
        try:
            refuse_unwritable(bundle.path)
        except OutputError as err:
            raise OutputError(err.message, "Measure without writing the figures into the bundle: --no-record.") from err
    return bundle


def _read(image: Path | str | Image | None) -> Image:
    if image is None:
        return synthetic_image(512, 512)
    return checked_image(image) if isinstance(image, np.ndarray) else read_image(required_path("image", image))


def _open(
    bundle: Bundle, artifacts: Sequence[str], threads: int | None, stack: ExitStack, progress: Progress
) -> tuple[list[Predictor[Any]], dict[str, str]]:
    """A predictor for each artifact that runs here, and why the others do not."""
    opened, skipped = list[Predictor[Any]](), dict[str, str]()
    for name in artifacts or bundle.manifest.artifacts:
        progress.say(f"opening {name}")
        try:
            recorded_accuracy(bundle, name)  # a damaged record, before hours of work
            opened.append(stack.enter_context(open_predictor(bundle, artifact=name, threads=threads)))
        except DenseportError as err:
            if artifacts or (name == bundle.manifest.source and not isinstance(err, MachineError)):
                raise
            skipped[name] = err.message
    if not opened:
        raise MachineError(f"{bundle.path}: no artifact runs on this machine", "See denseport doctor BUNDLE.")
    return opened, skipped


def _baseline(name: str, other: Predictor[Any], checkpoint: Path | str | None, threads: int | None) -> Predictor[Any]:
    """Found through its entry point, as the runtime knows no torch."""
    try:
        (entry,) = entry_points(group="denseport.baselines", name=name)
        make = entry.load()
    except (ImportError, ValueError) as err:
        raise MachineError(f"--baseline {name}: not installed: {err}", install_command("export")) from err
    session = make(other.manifest, None if checkpoint is None else Path(checkpoint), threads)
    return open_predictor(other.bundle, artifact=name, protocol=other.protocol, session=session, threads=threads)


def _keep(bundle: Bundle, details: dict[str, Any]) -> None:
    for row in details["rows"]:
        if row["artifact"] in bundle.manifest.artifacts:
            bundle.note(row["artifact"], {"speed": {**row, **details["measured"]}})

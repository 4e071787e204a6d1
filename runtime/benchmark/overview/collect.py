"""What is known of every artifact of a bundle, measured side by side: what ``denseport report`` does."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

from denseport.runtime.benchmark.bench import bench
from denseport.runtime.benchmark.overview.page import write_page
from denseport.runtime.benchmark.race import FASTER
from denseport.runtime.benchmark.report import recorded_accuracy
from denseport.runtime.benchmark.speed import Plan
from denseport.runtime.bundle.artifact import Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import BundleError, DatasetError, DenseportError, InputError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.evaluate import judged, open_data
from denseport.runtime.evaluation.gate import Gate, choose_comparison
from denseport.runtime.evaluation.measure import measure_together
from denseport.runtime.evaluation.quality.interval import miou_interval
from denseport.runtime.evaluation.record import float_warnings
from denseport.runtime.evaluation.report import Evaluation, WorstImage, worst_images
from denseport.runtime.evaluation.state import Extras
from denseport.runtime.evaluation.task import Task
from denseport.runtime.media.images import reading
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.arguments import required_path
from denseport.runtime.system.files import refuse_unwritable
from denseport.runtime.system.machine import inspect_machine
from denseport.runtime.system.progress import Progress, Silent
from denseport.runtime.system.text import count

__all__ = ["Overview", "Row", "report"]

WORST = 4  # images that are shown
PLAN = Plan(rounds=5, seconds=1.0, concurrency=(), batches=())


@dataclass(frozen=True)
class Row:
    """One artifact that ran here."""

    name: str
    artifact: Artifact
    bytes: int  # of its files
    found: Evaluation
    interval: tuple[float, float] | None  # 95 % of the mIoU, percent; None for fewer than two images
    own_arithmetic: bool  # it was measured in its own arithmetic; else in FP32
    speed: Mapping[str, Any]  # a row of ``denseport bench``
    source: str  # the FP32 artifact

    @property
    def is_fp32(self) -> bool:
        """Whether it is what the others are compared with."""
        return self.name == self.source

    @property
    def passed(self) -> bool | None:
        """Whether it keeps what its precision must; None of FP32."""
        return None if self.found.gate is None else self.found.gate.passed

    @property
    def no_ratio(self) -> str:
        """Why `times_as_fast` is None."""
        return str(self.speed["no_ratio"].get(self.source, "not measured"))

    @property
    def times_as_fast(self) -> float | None:
        """As FP32, from image to network and back; None where the rounds disagree."""
        ratio = self.speed["times_as_fast_as"].get(self.source)
        return 1.0 if self.is_fp32 else None if ratio is None else float(ratio)

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON."""
        return {
            "artifact": self.name,
            "bytes": self.bytes,
            "interval": self.interval,
            "own_arithmetic": self.own_arithmetic,
            "times_as_fast": self.times_as_fast,
            "evaluation": self.found.to_dict(),
            "speed": dict(self.speed),
        }


@dataclass(frozen=True)
class Overview:
    """What `report` found."""

    bundle: Bundle
    rows: tuple[Row, ...]  # FP32 first, then as in the manifest
    not_run: dict[str, str]  # artifacts that do not run here, and why
    broken: dict[str, str]  # artifacts that would run nowhere, and why
    worst: tuple[WorstImage, ...]  # of `shown`
    bench: Mapping[str, Any]  # of ``denseport bench``
    environment: Mapping[str, str]  # machine and versions
    command: str
    created: datetime

    @property
    def fp32(self) -> Row:
        """What the others are compared with."""
        return self.rows[0]

    @property
    def shown(self) -> Row:
        """Whose worst images are shown: the recommended one or, where that is FP32, the one that differs most."""
        if not self.recommended.is_fp32:
            return self.recommended
        return min(self.rows, key=lambda row: 1.0 if row.found.agreement is None else row.found.agreement)

    @property
    def recommended(self) -> Row:
        """The fastest that is proved here and faster than FP32; FP32 where there is none."""
        fit = [row for row in self.rows if row.passed and row.own_arithmetic and (row.times_as_fast or 0) >= FASTER]
        return max(fit, key=lambda row: row.times_as_fast or 0, default=self.fp32)

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport report --json`` prints."""
        return {
            "bundle": str(self.bundle.path),
            "recommended": self.recommended.name,
            "artifacts": [row.to_dict() for row in self.rows],
            "not_run": self.not_run,
            "broken": self.broken,
            "warnings": list(self.bench["warnings"]),
        }


def report(
    bundle: Path | str | Bundle,
    data: Path | str | Dataset,
    out: Path | str,
    *,
    protocol: str | Protocol = "reference",
    limit: int | None = None,
    threads: int | None = None,
    workers: int = 2,
    plan: Plan = PLAN,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Overview, Path]:
    """Measure every artifact that runs here, and write one page about all of them, ``out/report.html``.

    All artifacts are open at once, and each image runs through all of them. The bundle stays as it is. An artifact that
    is broken is told of, and the others are measured.

    Args:
        data, protocol, limit, threads, workers, options: as of `denseport.runtime.evaluation.evaluate.evaluate`.
        out: folder.
        plan: how the speed is measured, on the first image.

    Raises:
        BundleError: the FP32 artifact is broken.
        DatasetError: no pixel of the masks counts.
        InputError: a bundle of depth; else as of `evaluate` and `denseport.runtime.benchmark.bench.bench`.
    """
    bundle, progress = bundle if isinstance(bundle, Bundle) else Bundle(bundle), progress or Silent()
    out = required_path("out", out)
    if bundle.manifest.task == "depth":
        what = f"{bundle.path}: its network is for depth, and the page tells of segmentation"
        raise InputError(what, "Of one artifact: denseport eval BUNDLE --artifact NAME --data ROOT --report DIR")
    refuse_unwritable(out, "report.html")
    dataset = open_data(bundle, data, limit=limit, **options)
    progress.say(dataset.found)
    with ExitStack() as stack:
        opened, not_run, broken = _open(bundle, dataset, protocol, threads, stack)
        found = _measured(opened, dataset, threads, workers, progress)
    image = dataset.samples[0].image
    speed = bench(bundle, list(found), image=image, plan=plan, threads=threads, record=False, progress=progress)
    rows = _rows(bundle, found, speed.to_dict()["rows"])
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    machine = inspect_machine().summary()
    overview = Overview(bundle, rows, not_run, broken, (), speed.to_dict(), machine, command, datetime.now(UTC))
    progress.say("looking at the worst images")
    overview = replace(overview, worst=_worst(overview, dataset, threads))
    return overview, write_page(out, overview)


def _open(
    bundle: Bundle, dataset: Dataset, protocol: str | Protocol, threads: int | None, stack: ExitStack
) -> tuple[list[Segmenter], dict[str, str], dict[str, str]]:
    """Each artifact that runs here, FP32 first; why others do not; and what others are broken by."""
    source, first = bundle.manifest.source, dataset.samples[0].image
    segmenters, not_run, broken = list[Segmenter](), dict[str, str](), dict[str, str]()
    for name in (source, *(each for each in bundle.manifest.artifacts if each != source)):
        try:
            recorded_accuracy(bundle, name)
            opened = stack.enter_context(Segmenter(bundle, artifact=name, protocol=protocol, threads=threads))
            with reading(first):
                opened.predict(opened.read(first))  # one that opens may still not run
            segmenters.append(opened)
        except DenseportError as err:
            if name == source:
                raise
            (broken if isinstance(err, BundleError) else not_run)[name] = err.message
    return segmenters, not_run, broken


def _measured(
    segmenters: Sequence[Segmenter], dataset: Dataset, threads: int | None, workers: int, progress: Progress
) -> dict[str, Evaluation]:
    """What each is worth: FP32, which is the first, and the others judged against it."""
    fp32, extras, found = segmenters[0], Extras(boundaries=True), dict[str, Evaluation]()
    with progress.phase(f"measuring {count(len(segmenters), 'artifact')}") as told:
        counts = measure_together(dataset, segmenters, fp32, workers=workers, extras=extras, progress=told)
    for segmenter, own in zip(segmenters, counts, strict=True):
        is_fp32 = segmenter is fp32
        comparison = None if is_fp32 else choose_comparison(Gate(fp32.artifact), segmenter, len(dataset))
        task = Task(dataset, segmenter, None if is_fp32 else fp32, comparison, threads, workers, extras)
        found[segmenter.artifact] = judged(task, own, segmenter.description)
        if isnan(found[segmenter.artifact].mIoU):
            what = f"{dataset.found}: there is no mIoU: every pixel of the masks is ignored"
            raise DatasetError(what, "Give masks with labels, or correct --label-map or --ignore-index.")
    return found


def _rows(bundle: Bundle, found: Mapping[str, Evaluation], speeds: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    speed = {each["artifact"]: each for each in speeds}
    rows = list[Row]()
    for name, evaluation in found.items():
        artifact = bundle.artifact(name)
        rows.append(
            Row(
                name=name,
                artifact=artifact,
                bytes=sum((bundle.path / file).stat().st_size for file in artifact.files),
                found=evaluation,
                interval=miou_interval(evaluation.measurement),
                own_arithmetic=not float_warnings(artifact, on_gpu=evaluation.measurement.on_gpu),
                speed=speed[name],
                source=bundle.manifest.source,
            )
        )
    return tuple(rows)


def _worst(overview: Overview, dataset: Dataset, threads: int | None) -> tuple[WorstImage, ...]:
    """The images of `Overview.shown` that differ most from FP32; of FP32 those with the most wrong pixels."""
    row, protocol, bundle = overview.shown, overview.fp32.found.protocol, overview.bundle
    with ExitStack() as stack:
        opened = stack.enter_context(Segmenter(bundle, artifact=row.name, protocol=protocol, threads=threads))
        fp32 = None
        if not row.is_fp32:
            fp32 = stack.enter_context(Segmenter(bundle, artifact=row.source, protocol=protocol, threads=threads))
        return tuple(worst_images(dataset, row.found.measurement, opened, fp32, WORST))

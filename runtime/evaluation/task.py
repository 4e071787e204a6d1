"""One accuracy measurement, opened and checked: made in this process, in shards that are merged, or on Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.gate import Comparison, Gate, choose_comparison
from denseport.runtime.evaluation.measure import measure_images
from denseport.runtime.evaluation.state import MASKS_ONLY, Extras, Measurement, is_state, load_state, merge_states
from denseport.runtime.media.images import reading
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.arguments import optional_path, several, whole
from denseport.runtime.system.cpus import MOST_THREADS
from denseport.runtime.system.files import cache_folder, refuse_unwritable, writing
from denseport.runtime.system.progress import Progress, Silent
from denseport.runtime.system.text import count

__all__ = ["LongRun", "Shard", "Task", "evaluate_shard", "open_task", "refuse_state"]


@dataclass(frozen=True)
class LongRun:
    """How a long measurement is kept, resumed and divided; a path may be given as text."""

    state: Path | None = None  # file with the counts of a run under way; None: one in the user's cache
    resume: bool = False  # go on with an interrupted run of the same measurement
    merge: tuple[Path, ...] = ()  # states of shards (`evaluate_shard`) to add up: nothing is measured
    ray: str | None = None  # address of a Ray cluster to spread over, or "local" for one on this machine

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", optional_path("state", self.state))
        object.__setattr__(self, "merge", tuple(map(Path, several("merge", self.merge))))

    def check(self) -> None:
        """Raises as `refuse_state` for the file that the run would write."""
        if self.state is not None and not self.merge:
            refuse_state(self.state, resume=self.resume)


@dataclass(frozen=True)
class Shard:
    """What `evaluate_shard` counted; nothing is judged."""

    part: tuple[int, int]  # (i, n): every nth image from the ith on
    images: int  # of the shard
    total: int  # of the data set
    state: Path  # the counts, for `LongRun.merge`

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport eval --shard --json`` prints."""
        first, step = self.part
        return {"shard": f"{first}/{step}", "images": self.images, "of": self.total, "state": str(self.state)}


@dataclass(frozen=True)
class Task:
    """A measurement that can begin."""

    dataset: Dataset
    segmenter: Segmenter
    fp32: Segmenter | None  # run beside it for the gate
    comparison: Comparison | None
    threads: int | None
    workers: int
    extras: Extras

    def measure(self, run: LongRun, progress: Progress) -> tuple[Measurement, str]:
        """What was measured of the whole data set, and on which session, in words."""
        if run.merge:
            return merge_states(run.merge, self.key), f"{count(len(run.merge), 'state')} merged"
        file = run.state or cache_folder("eval", otherwise="Name a file with --state FILE.") / f"{self.key[:16]}.npz"
        found, session = self.open_state(file, resume=run.resume), self.segmenter.description
        with progress.phase(f"measuring {self.segmenter.artifact}") as told:
            if run.ray is None:
                measure_images(self.dataset, self.segmenter, found, fp32=self.fp32, workers=self.workers, progress=told)
            else:
                from denseport.runtime.evaluation.shards import measure_on_ray

                session = measure_on_ray(
                    run.ray, self.dataset, self.segmenter, found, self.threads, self.workers, progress=told
                )
        file.unlink(missing_ok=True)
        return found, session

    def open_state(self, file: Path, *, resume: bool) -> Measurement:
        """The counts in ``file`` if they are to be resumed and are of this measurement, else empty ones."""
        if resume and (found := load_state(file, self.key)) is not None:
            return found
        images, classes = len(self.dataset), len(self.segmenter.manifest.classes)
        with_fp32 = self.fp32 is not None
        return Measurement(self.key, images, classes, with_fp32=with_fp32, file=file, extras=self.extras)

    @cached_property
    def key(self) -> str:
        """What is measured, as a hash: a state of anything else is not taken up."""

        def size(file: Path) -> int:
            with reading(file):  # a link to nothing
                return file.stat().st_size

        artifact = self.segmenter.bundle.artifact(self.segmenter.artifact)
        facts = [
            artifact.files,
            [artifact.precision, artifact.float_precision, artifact.target],  # artifacts for OpenVINO share files
            repr(self.segmenter.protocol),
            self.fp32 is not None,
            [self.extras.boundaries, self.segmenter.manifest.temperature if self.extras.scores else None],
            self.dataset.reduce_zero_label,
            self.dataset.ignore_index,
            sorted(self.dataset.label_map.items()),
            [(s.name, size(s.image), size(s.mask)) for s in self.dataset.samples],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextmanager
def open_task(
    bundle: Bundle,
    dataset: Dataset,
    artifact: str | None,
    protocol: str | Protocol,
    gate: Gate | str | float | None,
    threads: int | None,
    workers: int,
    extras: Extras = MASKS_ONLY,
) -> Iterator[Task]:
    """Open the artifact, and FP32 beside it where the gate needs it, for a block.

    Errors are those of `Segmenter` and `choose_comparison`; also InputError where scores are to be judged and the
    network gives none.

    Args:
        extras: what is counted beside what the gate needs.
    """
    workers, source = whole("workers", workers, 1, MOST_THREADS), bundle.manifest.source
    artifact = source if artifact is None else artifact
    gate = gate if gate is None or isinstance(gate, Gate) else Gate(gate)
    extras = _with_limits(extras, gate)
    if extras.scores and not bundle.manifest.scores:
        what = "its network tells the class of a pixel, not how likely it is: there are no scores to judge"
        raise InputError(f"{bundle.path}: {what}", "Leave out --ece and --max-ece.")
    with ExitStack() as stack:
        segmenter = stack.enter_context(Segmenter(bundle, artifact=artifact, protocol=protocol, threads=threads))
        comparison = None if gate is None else choose_comparison(gate, segmenter, len(dataset))
        fp32 = None
        if gate is not None and artifact != source:
            fp32 = stack.enter_context(Segmenter(bundle, artifact=source, protocol=segmenter.protocol, threads=threads))
        yield Task(dataset, segmenter, fp32, comparison, threads, workers, extras)


def _with_limits(extras: Extras, gate: Gate | None) -> Extras:
    """With what a gate's limits need."""
    if gate is None:
        return extras
    boundaries = extras.boundaries or gate.max_boundary_drop is not None
    return Extras(boundaries, extras.scores or gate.max_ece is not None)


def evaluate_shard(
    bundle: Path | str | Bundle,
    dataset: Dataset,
    part: tuple[int, int],
    state: Path | str,
    *,
    artifact: str | None = None,
    protocol: str | Protocol = "reference",
    gate: Gate | str | float | None = None,
    threads: int | None = None,
    workers: int = 2,
    extras: Extras = MASKS_ONLY,
    resume: bool = False,
    progress: Progress | None = None,
) -> Shard:
    """Measure every nth image and keep the counts in a file, for ``evaluate(..., run=LongRun(merge=...))``.

    Args:
        dataset: the whole of it, the same for every shard.
        part: (i, n), with i from 1 to n.
        state: file to write; with ``resume`` it may be there already.
        artifact, protocol, gate, threads, workers, extras: as of `denseport.runtime.evaluation.evaluate.evaluate`.
            The gate is not judged; it says whether FP32 is measured too, as it must be for the merge.

    Raises:
        InputError: a shard without an image, or a state of another one.
        OutputError: ``state`` cannot be written.
    """
    (first, step), state = part, Path(state)
    indices = range(first - 1, len(dataset), step)
    if not indices:
        raise InputError(
            f"--shard {first}/{step}: the data set has only {count(len(dataset), 'image')}", "Make fewer shards."
        )
    refuse_state(state, resume=resume)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    with open_task(bundle, dataset, artifact, protocol, gate, threads, workers, extras) as task:
        found = task.open_state(state, resume=resume)
        if found.done.sum() > found.done[indices].sum():
            raise InputError(f"{state}: holds another shard", "Name another file with --state.")
        progress = progress or Silent()
        progress.say(dataset.found)
        with progress.phase(f"shard {first}/{step}") as told:
            measure_images(
                dataset, task.segmenter, found, images=indices, fp32=task.fp32, workers=workers, progress=told
            )
        found.save()
    return Shard(part, len(indices), len(dataset), state)


def refuse_state(state: Path, *, resume: bool) -> None:
    """Refuse a file that exists: the run would replace it, and remove it at its end.

    Raises:
        InputError: it exists, and ``resume`` was not asked for; or it is no file, or none that a run has written.
        OutputError: it cannot be written.
    """
    refuse_unwritable(state.parent)
    with writing(state):  # of a name that is too long
        if not state.exists():
            return
    if not state.is_file():
        raise InputError(f"--state {state}: is not a file", "Name a file, or one that does not exist yet.")
    if not resume:
        raise InputError(f"--state {state}: exists already", "Continue it with --resume, or name another file.")
    if not is_state(state):
        raise InputError(f"--state {state}: is not a state of a measurement", "Name another file; this one is kept.")

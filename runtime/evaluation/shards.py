"""Many machines: the same work on the same images by Ray Data, an actor for each device.

Only names of files go to the actors and only counts come back, so images, masks and bundle lie where every machine
sees them under the same path. A batch of images is done by one actor, and its result is taken once, when it is
whole: after a lost actor or machine Ray gives its batch to another, and every sum stays exact.

Ray's own ports listen on all interfaces, whatever address it is given, and a cluster runs what it is sent. A cluster
started here asks for a token, as is the default of Ray 2.60; hence the oldest release that setup.cfg takes.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import socket
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from denseport.runtime.errors import DatasetError, DenseportError, MachineError
from denseport.runtime.evaluation.dataset import Dataset, Sample
from denseport.runtime.evaluation.measure import measure_images
from denseport.runtime.evaluation.state import SAVE_SECONDS, Extras, Measurement
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.cpus import usable_cpus
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.progress import StepCallback, no_steps
from denseport.runtime.system.text import count

__all__ = ["Cluster", "Work", "connect", "measure_on_ray", "plan_actors"]

LOCAL = "local"
LOCAL_STORE = 200 * 10**6  # bytes of shared memory for paths and counts; Ray would take a third of the machine
CPU_ACTOR = 4  # cores of an actor without a GPU: a compromise between memory, one model each, and throughput
BATCH = 16  # images at most in one batch, and so the work lost with an actor
RETRIES = 3  # of a batch whose actor died; an image that kills every actor must not go round for ever
KNOCK_SECONDS = 10.0  # for a cluster's machine to answer
MOST_FAILURES = 100  # images; beyond it something else is wrong


Work: TypeAlias = Callable[[int], Callable[[Sequence[Any]], Any]]
"""Opens what an actor holds, such as a session of so many threads: a function of a batch. It travels pickled."""


@dataclass(frozen=True)
class Cluster:
    """A connected Ray cluster, its devices shared out among actors."""

    count: int  # of actors
    cpus: int  # of each; the threads of its network too
    gpus: int  # of each, 0 or 1

    def map(self, work: Work, items: Sequence[Any]) -> Iterator[Any]:
        """Results of ``work`` for batches of ``items``, in the order in which they are ready.

        Raises:
            DenseportError: as an actor raised it.
            MachineError: a batch lost its actor more than `RETRIES` times.
        """
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        size = max(1, min(BATCH, math.ceil(len(items) / (4 * self.count))))
        tasks = [{"task": _pack(items[start : start + size])} for start in range(0, len(items), size)]
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # Ray 2.64 is to name its remote arguments one by one; setup.cfg stays below it.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            rows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
                _Actor,
                fn_constructor_args=(work, self.cpus),
                batch_size=1,  # a row is a batch of ours already
                batch_format="pyarrow",  # numpy's strings would drop zero bytes at the end
                compute=ray.data.ActorPoolStrategy(size=min(self.count, len(tasks))),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
        try:
            for row in rows.iter_rows():
                result = _unpack(row["result"])
                if isinstance(result, DenseportError):
                    raise result
                yield result
        except (ActorDiedError, ActorUnavailableError) as err:
            raise MachineError(
                f"a batch of images lost its actor {RETRIES + 1} times: {err}",
                "Most often memory: give each actor more cores (--threads), so that fewer run on a machine.",
            ) from err


def plan_actors(nodes: Iterable[dict[str, float]], threads: int | None) -> Cluster:
    """An actor for each GPU; in a cluster without any, one for every ``threads`` cores (default `CPU_ACTOR`).

    Args:
        nodes: the resources of each machine, as Ray names them: ``{"CPU": 16.0, "GPU": 1.0}``.

    Raises:
        MachineError: no machine has so many cores.
    """
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    with_gpu = [(cpus, gpus) for cpus, gpus in sizes if gpus]
    if with_gpu:
        share = min(cpus // gpus for cpus, gpus in with_gpu)
        found, cpus = sum(gpus for _, gpus in with_gpu), min(threads or share, share)
        if cpus:
            return Cluster(found, cpus, 1)
        raise MachineError(
            "a machine of the Ray cluster has fewer CPU cores than GPUs", "Start it with more --num-cpus."
        )
    largest = max((cpus for cpus, _ in sizes), default=0)
    cpus = threads or min(CPU_ACTOR, largest)
    actors = sum(found // cpus for found, _ in sizes) if cpus else 0
    if not actors:
        raise MachineError(
            f"no machine of the Ray cluster has {max(cpus, 1)} CPU cores, the largest has {largest}", "Lower --threads."
        )
    return Cluster(actors, cpus, 0)


@contextmanager
def connect(address: str, threads: int | None = None) -> Iterator[Cluster]:
    """A Ray cluster for a block; one that the process is connected to already is used, and left as it was.

    Args:
        address: of a cluster ("auto", "host:6379"), or "local" for one on this machine that ends with the block.
        threads: CPU cores of an actor.

    Raises:
        MachineError: Ray is not installed, no cluster is there, or it has no device.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    try:
        import ray
        import ray.data
    except ImportError as err:
        raise MachineError("--ray needs Ray Data", install_command("ray")) from err
    ours = not ray.is_initialized()
    if ours:
        _start(ray, address)
    try:
        yield plan_actors([node["Resources"] for node in ray.nodes() if node["Alive"]], threads)
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    try:
        if address == LOCAL:
            ray.init(LOCAL, num_cpus=usable_cpus(), object_store_memory=LOCAL_STORE, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as err:
        if address == LOCAL:
            raise MachineError(f"Ray does not start on this machine: {err}", "Its logs are in /tmp/ray.") from err
        raise MachineError(
            f"--ray {address}: no Ray cluster answers: {err}",
            "Start one (ray start --head) and give its HOST:6379; if it asks for a token, set RAY_AUTH_MODE=token. "
            "Or use --ray local for this machine alone.",
        ) from err


def _knock(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS):
            pass


class _Actor:
    """What Ray runs on a device: opened at the first batch, so that an error comes back as a result."""

    def __init__(self, work: Work, threads: int) -> None:
        self._work, self._threads = work, threads
        self._handle: Callable[[Sequence[Any]], Any] | None = None

    def __call__(self, table: Any) -> Any:
        import pyarrow

        (task,) = table.column("task").to_pylist()
        try:
            self._handle = self._handle or self._work(self._threads)
            result = self._handle(_unpack(task))
        except DenseportError as err:
            result = err
        return pyarrow.table({"result": [_pack(result)]})


def _pack(value: object) -> bytes:
    return zlib.compress(pickle.dumps(value), 1)  # counts are mostly zero


def _unpack(data: bytes) -> Any:
    return pickle.loads(zlib.decompress(data))


class _Part(NamedTuple):
    """What an actor measured of one batch."""

    numbers: tuple[int, ...]  # of the images in the data set
    counts: Measurement  # image i is number `numbers[i]`
    failures: dict[int, str]  # by number in the data set
    session: str


def _open_measuring(
    segmenters: Sequence[partial[Segmenter]], dataset: partial[Dataset], workers: int, extras: Extras, threads: int
) -> Callable[[Sequence[tuple[int, Sample]]], _Part]:
    """Measures images; an item is an image's number in the data set and its files."""
    segmenter, *fp32 = [each(threads=threads) for each in segmenters]

    def handle(items: Sequence[tuple[int, Sample]]) -> _Part:
        numbers, samples = zip(*items, strict=True)
        classes = len(segmenter.manifest.classes)
        counts = Measurement("", len(items), classes, with_fp32=bool(fp32), extras=extras)
        failures: dict[int, str] = {}
        measure_images(
            dataset(samples), segmenter, counts, fp32=fp32[0] if fp32 else None, workers=workers, failures=failures
        )
        return _Part(numbers, counts, {numbers[i]: text for i, text in failures.items()}, segmenter.description)

    return handle


def measure_on_ray(
    address: str,
    dataset: Dataset,
    segmenter: Segmenter,
    found: Measurement,
    threads: int | None = None,
    workers: int = 2,
    *,
    progress: StepCallback = no_steps,
) -> str:
    """`denseport.runtime.evaluation.measure.measure_images` on a Ray cluster: the same counts to the last integer.

    An image that fails does not stop the others; all that failed are named at the end.

    Args:
        address, threads: as of `connect`.
        segmenter: which artifact is measured; each actor opens its own.
        found: with or without FP32 beside it.

    Returns:
        The sessions that ran, in words.

    Raises:
        DatasetError: images failed; the counts of the others are saved.
        MachineError: as of `connect` and `Cluster.map`.
    """
    there = partial(Segmenter, segmenter.bundle.path.absolute(), protocol=segmenter.protocol)
    artifacts = [segmenter.artifact] + ([] if found.fp32_confusion is None else [segmenter.manifest.source])
    meant = ("reduce_zero_label", "ignore_index", "label_map")
    labels = partial(Dataset, **{name: getattr(dataset, name) for name in meant})
    networks = [partial(there, artifact=name) for name in artifacts]
    work = partial(_open_measuring, networks, labels, workers, found.extras)
    items = [
        (number, replace(sample, image=sample.image.absolute(), mask=sample.mask.absolute()))
        for number, sample in enumerate(dataset.samples)
        if not found.done[number]
    ]
    failures, sessions = dict[int, str](), set[str]()
    with connect(address, threads) as cluster:
        start = time.perf_counter()
        try:
            for part in cluster.map(work, items) if items else ():
                found.merge(part.counts, np.array(part.numbers))
                found.session_seconds += part.counts.session_seconds / cluster.count
                failures |= part.failures
                sessions.add(part.session)
                if len(failures) >= MOST_FAILURES:
                    break
                progress(int(found.done.sum()), len(dataset), f"mIoU {found.mean_iou():.2f}")
                found.save(every=SAVE_SECONDS)
            if failures:
                raise _failed(failures, len(dataset))
        except BaseException:
            found.save()
            raise
        found.seconds = time.perf_counter() - start
    found.measured = len(items)
    where = " and ".join(sorted(sessions)) or "nothing left to measure"
    return f"{count(cluster.count, 'Ray actor')}: {where}"


def _failed(failures: Mapping[int, str], images: int) -> DatasetError:
    texts = [failures[number].replace("\n", "\n  ") for number in sorted(failures)]
    stopped = f"; stopped after {MOST_FAILURES}" if len(texts) >= MOST_FAILURES else ""
    return DatasetError(
        f"{len(texts)} of {count(images, 'image')} failed{stopped}\n  " + "\n  ".join(texts),
        "The counts of the others are kept. Repair these files and add --resume.",
    )

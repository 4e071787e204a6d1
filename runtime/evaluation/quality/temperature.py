"""A temperature for the scores, fitted on labelled images: Guo et al. (ICML 2017), section 4.2.

The logits of a sample of pixels are divided by the one number that makes the truth most likely (least mean negative
log-likelihood). The class of a pixel does not depend on it. The sample is of every image alike, in memory that does not
grow with the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.bundle import Bundle, refuse_other_task
from denseport.runtime.bundle.manifest import TEMPERATURES
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.evaluate import open_data
from denseport.runtime.evaluation.quality.confidence import bin_counts, calibration_error
from denseport.runtime.media.images import reading
from denseport.runtime.pipeline.reduce import Decision, dense, mean_softmax, reduce_maps
from denseport.runtime.pipeline.resample import LogitMap
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.files import refuse_unwritable
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Fitted", "find_temperature", "fit_temperature"]

Floats = NDArray[np.float32]
_SAMPLE = 2**24  # logits in memory, 64 MiB
_CHUNK = 2**20  # logits that are worked on at once
_CLOSE = 1e-4  # relative change of 1 / temperature at which the search ends; Newton's last step is squared


@dataclass(frozen=True)
class Fitted:
    """A temperature, and what it does on the pixels that it was fitted on."""

    temperature: float
    nll: tuple[float, float]  # mean negative log-likelihood at temperature 1 and at this one
    ece: tuple[float, float]  # expected calibration error, percent, at both
    images: int
    pixels: int  # of the sample
    protocol: str
    date: str  # ISO 8601

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport eval --fit-temperature --json`` prints, and what the record keeps."""
        return asdict(self)


def fit_temperature(
    bundle: Path | str | Bundle,
    data: Path | str | Dataset,
    *,
    artifact: str | None = None,
    protocol: str | Protocol = "reference",
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Fitted:
    """Fit the temperature and keep it in the bundle, for all of its artifacts; it replaces an older one.

    Args:
        data, limit, options: as of `denseport.runtime.evaluation.evaluate.evaluate`.
        artifact: whose logits are looked at; default: the FP32 model.

    Raises:
        InputError: the network gives no scores, or no temperature within `TEMPERATURES` is the likeliest.
        BundleError, MachineError, DatasetError, ImageError, OutputError: as of `evaluate`.
    """
    bundle, progress = bundle if isinstance(bundle, Bundle) else Bundle(bundle), progress or Silent()
    refuse_other_task(bundle, "segmentation")
    refuse_unwritable(bundle.path)
    if not bundle.manifest.scores:
        what = "its network tells the class of a pixel, not how likely it is: there are no scores"
        raise InputError(f"{bundle.path}: {what}", "Leave out --fit-temperature.")
    dataset = open_data(bundle, data, limit=limit, **options)
    name = artifact or bundle.manifest.source
    with Segmenter(bundle, artifact=name, protocol=protocol, threads=threads) as segmenter:
        progress.say(dataset.found)
        with progress.phase("fitting the temperature") as told:
            parts = []
            for index, part in enumerate(_samples(dataset, segmenter)):
                parts.append(part)
                told(index + 1, len(dataset), "")
        logits, truth = (np.concatenate(each) for each in zip(*parts, strict=True))
        protocol_name = segmenter.protocol.name
    if not len(truth):
        raise InputError(f"{dataset.found}: no pixel of the sample is labelled", "Give masks with labels.")
    if not np.isfinite(logits).all():
        what = f"{bundle.path}: the logits of {name} are not all finite: no temperature can be fitted"
        raise InputError(what, "Fit it on another artifact (--artifact), or export the model again.")
    found = _judged(logits, truth, find_temperature(logits, truth))
    found = replace(found, images=len(dataset), protocol=protocol_name)
    bundle.keep_temperature(found.temperature)
    bundle.note(name, {"temperature": found.to_dict()})
    return found


def find_temperature(logits: Floats, truth: NDArray[np.integer[Any]]) -> float:
    """The temperature at which the truth is likeliest.

    The mean negative log-likelihood is convex in 1 / temperature: Newton's steps, halved where they leave the bracket.

    Args:
        logits: (n, C).
        truth: (n,), classes.

    Raises:
        InputError: it lies at the end of `TEMPERATURES`.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    beta, last = 1.0, math.inf
    while abs(beta - last) > _CLOSE * beta:
        _, slope, curvature = _likelihood(logits, truth, beta)
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else math.nan
        last, beta = beta, step if low < step < high else (low + high) / 2
    if min(beta * TEMPERATURES[1] - 1, 1 - beta * TEMPERATURES[0]) < 10 * _CLOSE:
        raise InputError(
            f"no temperature fits: the likeliest is {1 / beta:.3g}, the end of what is looked at",
            "Give more images, on which the network is sometimes right and sometimes wrong.",
        )
    return 1 / beta


def _likelihood(logits: Floats, truth: NDArray[np.integer[Any]], beta: float) -> tuple[float, float, float]:
    """The mean negative log-likelihood at ``beta`` = 1 / temperature, and its first and second derivatives."""
    sums = np.zeros(3)
    rows = max(1, _CHUNK // logits.shape[1])
    for start in range(0, len(logits), rows):
        values = logits[start : start + rows] - logits[start : start + rows].max(1, keepdims=True)
        own = np.take_along_axis(values, truth[start : start + rows, None].astype(np.intp), 1)[:, 0]
        weights = np.exp(np.float32(beta) * values)
        total = weights.sum(1)
        weighted = weights * values
        mean, square = weighted.sum(1) / total, np.einsum("nc,nc->n", weighted, values) / total
        terms = np.log(total) - np.float32(beta) * own, mean - own, square - mean * mean
        sums += [term.sum(dtype=np.float64) for term in terms]
    nll, slope, curvature = (sums / len(logits)).tolist()
    return nll, slope, curvature


def _judged(logits: Floats, truth: NDArray[np.integer[Any]], temperature: float) -> Fitted:
    nll, ece = list[float](), list[float]()
    labels, mask = truth.astype(np.uint16), logits.argmax(1)
    for value in (1.0, temperature):
        nll.append(_likelihood(logits, truth, 1 / value)[0])
        scores = 1 / np.exp((logits - logits.max(1, keepdims=True)) / value).sum(1)
        ece.append(calibration_error(bin_counts(labels, mask, scores.astype(np.float32))))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Fitted(temperature, (nll[0], nll[1]), (ece[0], ece[1]), 0, len(truth), "", date)


def _samples(dataset: Dataset, segmenter: Segmenter) -> Iterator[tuple[Floats, NDArray[np.integer[Any]]]]:
    """Of each image logits (n, C) and classes (n,): random rows crossed with random columns, labelled pixels alone."""
    classes = len(segmenter.manifest.classes)
    side = max(1, math.isqrt(_SAMPLE // classes // len(dataset)))
    for index, sample in enumerate(dataset.samples):
        truth = dataset.read_mask(sample, classes)
        with reading(sample.image):
            views = segmenter.predict(segmenter.read(sample.image))
        random = np.random.default_rng(index)
        rows, cols = (np.sort(random.permutation(length)[:side]) for length in truth.shape)
        values, picked = _at(views, segmenter.decision, rows, cols), truth[np.ix_(rows, cols)]
        labelled = picked != np.iinfo(picked.dtype).max
        yield values[labelled], picked[labelled]


def _at(views: list[list[LogitMap]], decision: Decision, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Floats:
    """The logits of the pixels where some rows and columns cross, (rows, columns, C); of several views log of means."""
    few = [[LogitMap(each.logits, each.rows.only(rows), each.cols.only(cols)) for each in maps] for maps in views]
    found = np.empty((len(rows), len(cols), len(views[0][0].logits)), np.float32)
    if decision.averaged:
        reduce_maps([found], few, lambda patches: [mean_softmax(patches, decision)], 1)
        return np.log(np.maximum(found, np.finfo(np.float32).tiny))
    reduce_maps([found], few, lambda patches: [dense(patches[0])], 1)
    if decision.threshold is not None:
        found[..., 0] = 0
    return found

"""What ``denseport eval`` found: as data, and as a page, ``report.html``.

The images that the artifact gets most wrong are run again for it, and scaled down.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.evaluation.metrics import ClassDrop, ClassScore, ConfusionMatrix, LabelMap, Scores, json_number
from denseport.runtime.evaluation.record import Judged
from denseport.runtime.evaluation.state import Measurement
from denseport.runtime.media.overlay import class_shares, palette_image
from denseport.runtime.media.page import data_uri, render, thumbnail
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.files import write_atomic
from denseport.runtime.system.machine import inspect_machine

__all__ = ["QUALITY", "Evaluation", "Origin", "WorstImage", "gallery", "worst_images", "write_page", "write_report"]

# Keys of `Evaluation.to_dict` that are there only where they were counted, and that are kept in a record.
QUALITY = ("class_drop", "boundary_F", "boundary_drop", "ECE", "temperature")

_TEMPLATE = Path(__file__).with_name("report.html")
_PAIRS = 12
_NAMED = 3  # classes that the text for an image names
# Of the map of differences, BGR; report.html has the same.
_LOST, _GAINED, _CHANGED = (30, 56, 217), (214, 131, 43), (0, 168, 224)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Judged, Scores):
    """What `evaluate` found: mIoU, mAcc, aAcc in percent and ``per_class``, as `Scores` has them, and the verdict."""

    measurement: Measurement  # the counts, image by image
    reduce_zero_label: bool  # masks count classes from 1, and 0 is ignored
    agreement: float | None  # share of pixels with FP32's class, 0..1; None: FP32 was not run beside it
    explanation: dict[str, Any] | None = None  # which step lost what, and as ``lines`` of text; None: not asked for
    label_map: dict[int, int] = field(default_factory=dict)  # that the labels were read with
    ignore_index: int = 255  # the same
    temperature: float = 1.0  # of the scores, where they were counted

    @property
    def boundary_F(self) -> float | None:
        """Mean boundary F-score, percent; None: not counted."""
        return self.measurement.mean_boundary_f()

    @property
    def boundary_drop(self) -> float | None:
        """How much lower it is than FP32's, points; None where either was not counted."""
        return self.measurement.boundary_drop

    @property
    def worst_drop(self) -> ClassDrop | None:
        """The class that lost most IoU against FP32; None where FP32 was not run beside it."""
        return self.measurement.worst_drop

    @property
    def ECE(self) -> float | None:
        """Expected calibration error of the scores, percent; None: not counted."""
        return self.measurement.ece

    @property
    def ignored(self) -> float:
        """Share of all pixels whose label is ignored, 0..1."""
        return self.measurement.ignored

    @property
    def never_in_masks(self) -> list[str]:
        """The classes that occur in no mask."""
        return [row.name for row in self.per_class if not row.pixels]

    @property
    def never_predicted(self) -> list[str]:
        """The classes that occur in no prediction, ignored pixels included."""
        pixels = self.measurement.counts["pixels"].sum(axis=0)
        return [row.name for row, found in zip(self.per_class, pixels, strict=True) if not found]

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport eval --json`` prints."""
        figures = {
            "reduce_zero_label": self.reduce_zero_label,
            "label_map": {str(old): new for old, new in self.label_map.items()},
            "ignore_index": self.ignore_index,
            "ignored": self.ignored,
            "never_in_masks": self.never_in_masks,
            "never_predicted": self.never_predicted,
            **super().to_dict(),
            "agreement": self.agreement,
            **self._quality(),
            **({} if self.explanation is None else {"explanation": self.explanation}),
        }
        return self.with_figures(figures, self.measurement.measured)

    def _quality(self) -> dict[str, Any]:
        """What a mean IoU hides, for JSON, as `QUALITY` names it; without what was not counted."""
        worst, result = self.worst_drop, dict[str, Any]()
        if worst is not None:
            ious = {"IoU": worst.IoU, "fp32_IoU": worst.fp32_IoU}
            result["class_drop"] = {"class": self.per_class[worst.index].name, "points": worst.points, **ious}
        if (scores := self.measurement.boundary_f()) is not None:
            result["boundary_F_per_class"] = [json_number(score) for score in scores.tolist()]
        if self.ECE is not None:
            result["temperature"] = self.temperature
        figures = {"boundary_F": self.boundary_F, "boundary_drop": self.boundary_drop, "ECE": self.ECE}
        return result | {name: json_number(value) for name, value in figures.items() if value is not None}


@dataclass(frozen=True)
class WorstImage:
    """An image that an artifact gets wrong, scaled for the page; its figures are of the full size."""

    name: str
    image: NDArray[np.uint8]  # (h, w, 3) BGR
    truth: LabelMap  # (h, w), the type's largest value is ignored
    mask: NDArray[Any]  # (h, w)
    fp32_mask: NDArray[Any] | None  # (h, w)
    accuracy: float  # percent of the labelled pixels; NaN where there are none
    fp32_accuracy: float | None
    disagreement: float | None  # percent of all pixels with another class than FP32's

    def difference(self) -> NDArray[np.uint8]:
        """(h, w, 3) BGR: the image in pale grey; on it the pixels that changed or, without FP32, that are wrong."""
        truth, mask, fp32 = self.truth, self.mask, self.fp32_mask
        grey = np.asarray(cv2.cvtColor(self.image, cv2.COLOR_BGR2GRAY)) // 3 + 160
        seen: NDArray[np.uint8] = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
        if fp32 is None:
            seen[(mask != truth) & (truth != np.iinfo(truth.dtype).max)] = _LOST
            return seen
        changed = mask != fp32
        seen[changed] = _CHANGED
        seen[changed & (fp32 == truth)] = _LOST
        seen[changed & (mask == truth)] = _GAINED
        return seen


def worst_images(
    dataset: Dataset, evaluation: Measurement, segmenter: Segmenter, fp32: Segmenter | None, count: int = 6
) -> list[WorstImage]:
    """Run the images again that differ most from FP32 or, without it, have the lowest pixel accuracy."""
    share = evaluation.image_agreement
    if share is None:
        right, union = (evaluation.counts[name].sum(axis=1) for name in ("intersect", "union"))
        labelled = (union + right) // 2  # the unions count a labelled pixel once, and one predicted wrong twice
        share = np.where(labelled, right / np.maximum(labelled, 1), np.inf)
    return [_image(dataset, index, segmenter, fp32) for index in np.argsort(share, kind="stable")[:count].tolist()]


def _image(dataset: Dataset, index: int, segmenter: Segmenter, fp32: Segmenter | None) -> WorstImage:
    sample = dataset.samples[index]
    image, truth = segmenter.read(sample.image), dataset.read_mask(sample, len(segmenter.manifest.classes))
    mask = segmenter(image).mask
    fp32_mask = None if fp32 is None else fp32(image).mask
    return WorstImage(
        name=sample.name,
        image=thumbnail(image),
        truth=thumbnail(truth, cv2.INTER_NEAREST),
        mask=thumbnail(mask, cv2.INTER_NEAREST),
        fp32_mask=None if fp32_mask is None else thumbnail(fp32_mask, cv2.INTER_NEAREST),
        accuracy=_accuracy(truth, mask),
        fp32_accuracy=None if fp32_mask is None else _accuracy(truth, fp32_mask),
        disagreement=None if fp32_mask is None else 100 * float((mask != fp32_mask).mean()),
    )


def _accuracy(truth: LabelMap, mask: NDArray[Any]) -> float:
    labelled = int(np.count_nonzero(truth != np.iinfo(truth.dtype).max))
    return 100 * int(np.count_nonzero(truth == mask)) / labelled if labelled else math.nan


@dataclass(frozen=True)
class Origin:
    """How the figures of a page can be got again."""

    environment: Mapping[str, str]  # machine and versions
    command: str  # the command line
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of_this_run(cls, session: str) -> Self:
        """Of this process; ``session``: what ran the network, in words."""
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return cls({"session": session, **inspect_machine().summary()}, command)


def write_report(
    folder: Path,
    found: Evaluation,
    manifest: Manifest,
    images: Sequence[WorstImage],
    origin: Origin,
) -> Path:
    """Write ``folder/report.html``, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    fp32 = found.measurement.fp32_confusion
    fp32_scores = None if fp32 is None else fp32.scores(manifest.classes)
    return write_page(
        folder,
        found,
        manifest,
        origin,
        template=_TEMPLATE,
        fp32_scores=fp32_scores,
        classes=_sorted_classes(found, fp32_scores),
        labelled=max(1, sum(score.pixels for score in found.per_class)),
        pairs=_confused(found.measurement.confusion, fp32),
        articles=gallery(images, found.artifact, manifest),
    )


def write_page(
    folder: Path, found: Judged, manifest: Manifest, origin: Origin, *, template: Path, **values: Any
) -> Path:
    """Write ``folder/report.html`` of an evaluation of either task; arguments and errors as of `write_report`.

    Args:
        template, values: the page, and what it names beside what both tasks have.
    """
    text = render(
        template,
        found=found,
        run=found.measurement,
        model=manifest,
        **vars(origin),
        artifact=manifest.artifacts.get(found.artifact),
        axis=_axis(found.gate),
        **values,
    )
    path = folder / "report.html"
    write_atomic(path, text.encode())
    return path


def _axis(verdict: Verdict | None) -> dict[str, float] | None:
    """Where zero, the budget, the difference and its interval stand on a line, in percent from its left end."""
    if verdict is None or not math.isfinite(verdict.delta):
        return None
    low, high = verdict.interval or (verdict.delta, verdict.delta)
    marks = {"zero": 0.0, "budget": -verdict.budget, "delta": verdict.delta, "low": low, "high": high}
    left, right = min(marks.values()), max(verdict.budget, *marks.values())
    margin = 0.06 * (right - left) or 1
    return {name: 100 * (at - left + margin) / (right - left + 2 * margin) for name, at in marks.items()}


def _sorted_classes(scores: Scores, fp32: Scores | None) -> list[tuple[ClassScore, ClassScore | None]]:
    """Classes that occur, biggest loss first; without FP32 to lose against, lowest IoU first."""
    others = fp32.per_class if fp32 is not None else [None] * len(scores.per_class)
    pairs = list(zip(scores.per_class, others, strict=True))

    def rank(pair: tuple[ClassScore, ClassScore | None]) -> tuple[float, float]:
        own, other = pair
        change = 0.0 if other is None else own.IoU - other.IoU  # NaN where only one of the two has the class
        return (0.0 if math.isnan(change) else change), (-1.0 if math.isnan(own.IoU) else own.IoU)

    found = [pair for pair in pairs if not all(each is None or math.isnan(each.IoU) for each in pair)]
    return sorted(found, key=rank)


def _confused(confusion: ConfusionMatrix, fp32: ConfusionMatrix | None) -> list[dict[str, Any]]:
    """The pairs of true and predicted class with the most pixels; shares are in percent of the true class."""
    wrong = confusion.matrix.copy()
    np.fill_diagonal(wrong, 0)
    percent = 100 / np.maximum(confusion.label, 1)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    return [
        {
            "truth": truth,
            "predicted": predicted,
            "pixels": int(wrong[truth, predicted]),
            "share": percent[truth] * wrong[truth, predicted],
            "fp32_share": None if fp32 is None else percent[truth] * fp32.matrix[truth, predicted],
        }
        for truth, predicted in (divmod(int(flat), confusion.n_classes) for flat in largest)
        if wrong[truth, predicted]
    ]


def gallery(images: Sequence[WorstImage], artifact: str, manifest: Manifest) -> list[dict[str, Any]]:
    """What ``gallery.html`` shows of each image."""
    return [_article(image, artifact, manifest) for image in images]


def _article(image: WorstImage, artifact: str, manifest: Manifest) -> dict[str, Any]:
    """The views of an image as data URIs, and the classes of all its masks, largest first."""
    n_classes, palette = len(manifest.classes), manifest.palette
    largest: dict[int, float] = {}
    masks = []
    for caption, mask in (("Truth", image.truth), ("FP32", image.fp32_mask), (artifact, image.mask)):
        if mask is not None:
            shares = class_shares(mask, n_classes)
            largest |= {index: max(share, largest.get(index, 0)) for index, share in shares}
            masks.append((caption, shares[:_NAMED], data_uri("png", palette_image(mask, palette))))
    return {
        "image": image,
        "photo": data_uri("jpeg", image.image, cv2.IMWRITE_JPEG_QUALITY, 85),
        "masks": masks,
        "difference": data_uri("png", image.difference()),
        "legend": sorted(largest, key=lambda index: -largest[index]),
        "unlabelled": bool((image.truth == np.iinfo(image.truth.dtype).max).any()),
    }

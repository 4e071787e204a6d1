"""The report of ``denseport eval``: what ``report.html`` shows, worked out of an evaluation."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.evaluation.failures import WorstImage
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.evaluation.metrics import ClassScore, ConfusionMatrix, Scores
from denseport.runtime.evaluation.result import Evaluation
from denseport.runtime.media.overlay import class_shares, palette_image
from denseport.runtime.media.page import render
from denseport.runtime.system.files import write_atomic

__all__ = ["write_report"]

_TEMPLATE = Path(__file__).with_name("report.html")
_PAIRS = 12
_NAMED = 3  # classes that the text for an image names


def write_report(
    folder: Path,
    found: Evaluation,
    manifest: Manifest,
    images: Sequence[WorstImage],
    environment: Mapping[str, str],
    command: str,
    created: datetime | None = None,
) -> Path:
    """Write ``folder/report.html``, whole or not at all.

    Args:
        environment: machine and versions.
        command: the command line.
        created: default: now.

    Raises:
        OutputError: the place cannot be written.
    """
    fp32 = found.measurement.fp32_confusion
    fp32_scores = None if fp32 is None else fp32.scores(manifest.classes)
    text = render(
        _TEMPLATE,
        found=found,
        run=found.measurement,
        model=manifest,
        fp32_scores=fp32_scores,
        environment=environment,
        command=command,
        created=created or datetime.now(UTC),
        artifact=manifest.artifacts.get(found.artifact),
        axis=_axis(found.gate),
        classes=_sorted_classes(found, fp32_scores),
        labelled=max(1, sum(score.pixels for score in found.per_class)),
        pairs=_confused(found.measurement.confusion, fp32),
        articles=[_article(image, found.artifact, manifest) for image in images],
    )
    path = folder / "report.html"
    write_atomic(path, text.encode())
    return path


def _axis(verdict: Verdict | None) -> dict[str, float] | None:
    """Where zero, the budget, the difference and its interval stand on a line, in percent from its left end."""
    if verdict is None or math.isnan(verdict.delta):
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


def _article(image: WorstImage, artifact: str, manifest: Manifest) -> dict[str, Any]:
    """The views of an image as data URIs, and the classes of all its masks, largest first."""
    n_classes, palette = len(manifest.classes), manifest.palette
    largest: dict[int, float] = {}
    masks = []
    for caption, mask in (("Truth", image.truth), ("FP32", image.fp32_mask), (artifact, image.mask)):
        if mask is not None:
            shares = class_shares(mask, n_classes)
            largest |= {index: max(share, largest.get(index, 0)) for index, share in shares}
            masks.append((caption, shares[:_NAMED], _data_uri("png", palette_image(mask, palette))))
    return {
        "image": image,
        "photo": _data_uri("jpeg", image.image, cv2.IMWRITE_JPEG_QUALITY, 85),
        "masks": masks,
        "difference": _data_uri("png", image.difference()),
        "legend": sorted(largest, key=lambda index: -largest[index]),
        "unlabelled": bool((image.truth == np.iinfo(image.truth.dtype).max).any()),
    }


def _data_uri(kind: str, image: NDArray[np.uint8], *params: int) -> str:
    data = cv2.imencode(f".{kind}", image, params)[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

"""What ``denseport eval`` found of depths: as data, and as a page, ``report.html``.

The images that the artifact gets most wrong are run again for it, and scaled down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import DepthOutput, Manifest
from denseport.runtime.evaluation.depth.dataset import DepthDataset, DepthReading
from denseport.runtime.evaluation.depth.measure import DepthMeasurement
from denseport.runtime.evaluation.depth.metrics import Floats, in_metres, valid_pixels
from denseport.runtime.evaluation.metrics import json_number
from denseport.runtime.evaluation.record import Judged
from denseport.runtime.evaluation.report import Origin, write_page
from denseport.runtime.media.depth_map import coloured
from denseport.runtime.media.page import data_uri, thumbnail
from denseport.runtime.segmenter.depth import DepthEstimator
from denseport.runtime.system.text import count

__all__ = ["DepthEvaluation", "WorstDepth", "worst_depths", "write_depth_report"]

_TEMPLATE = Path(__file__).with_name("report.html")
_DRAWN, _LISTED = 6, 20  # images
_MOST = 0.25  # the error, as a share of the truth, from which the map has its last colour; d1 ends near it
_RAMP = ((0xE8, 0xEB, 0xEB), (0x00, 0xA8, 0xE0), (0x1E, 0x38, 0xD9), (0x10, 0x08, 0x5A))  # of errors, BGR
_NOTHING = (96, 88, 80)  # BGR, where no pixel counts


@dataclass(frozen=True, kw_only=True)
class DepthEvaluation(Judged):
    """What `evaluate_depth` found."""

    measurement: DepthMeasurement  # image by image
    metrics: dict[str, float]  # by the names of `METRICS`: the means over the images
    fp32: dict[str, float] | None  # FP32's on the same images; None: it was not run
    reading: DepthReading  # limits, crop and scale that were taken
    aligned: bool  # each image's depths were brought to metres by least squares

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport eval --json`` prints."""
        found, reading = self.measurement, self.reading
        runs = [{name: json_number(value) for name, value in run.items()} for run in (self.metrics, self.fp32 or {})]
        figures = {
            "pixels": int(found.pixels.sum()),
            "min_depth": reading.least,
            "max_depth": reading.most,
            "crop": reading.crop,
            "depth_scale": reading.scale,
            "aligned": self.aligned,
            **runs[0],
            "fp32": runs[1] or None,
        }
        return self.with_figures(figures, found.images)


@dataclass(frozen=True)
class WorstDepth:
    """An image that an artifact gets wrong, scaled for the page; depths are metres, NaN where there are none."""

    name: str
    image: NDArray[np.uint8]  # (h, w, 3) BGR
    truth: Floats  # (h, w) of the pixels that count
    depths: tuple[Floats, ...]  # (h, w) the artifact's, then FP32's
    errors: tuple[Floats, ...]  # (h, w) |depth - truth| / truth of each


def worst_depths(
    dataset: DepthDataset, found: DepthMeasurement, estimators: Sequence[DepthEstimator]
) -> list[WorstDepth]:
    """Run the images of `_ranked` again.

    Args:
        dataset: with its limits.
        estimators: of the artifact, then FP32's where it was measured.
    """
    return [_worst(dataset, index, estimators) for index in _ranked(found)[:_DRAWN]]


def _ranked(found: DepthMeasurement) -> list[int]:
    """The images with a pixel that counts, whose AbsRel is most above FP32's or, without it, is largest."""
    loss = found.column("AbsRel") - (found.column("AbsRel", 1) if len(found.values) == 2 else 0)
    loss = np.where(np.isnan(loss), np.inf, loss)  # depths that are not finite
    return [index for index in np.argsort(-loss, kind="stable").tolist() if found.pixels[index]]


def _worst(dataset: DepthDataset, index: int, estimators: Sequence[DepthEstimator]) -> WorstDepth:
    sample, reading = dataset.samples[index], dataset.reading
    image, truth = estimators[0].read(sample.image), dataset.read_depth(sample)
    valid = valid_pixels(truth, *reading.limits, reading.crop)
    truth = np.where(valid, truth, np.float32(np.nan))
    found = [each(image) for each in estimators]
    depths = [in_metres(each.depth, each, truth, valid, reading.limits) for each in found]
    errors = [np.abs(depth - truth) / truth for depth in depths]
    return WorstDepth(
        sample.name, thumbnail(image), _shrunk(truth), tuple(map(_shrunk, depths)), tuple(map(_shrunk, errors))
    )


def _shrunk(values: Floats) -> Floats:
    """Scaled down for the page: the mean over what there is in each pixel of it, of sparse depths too."""
    there = np.isfinite(values)
    share = thumbnail(there.astype(np.float32))
    total = thumbnail(np.where(there, values, np.float32(0)))
    return np.where(share > 0, total / np.where(share > 0, share, 1), np.float32(np.nan)).astype(np.float32)


def write_depth_report(
    folder: Path, found: DepthEvaluation, manifest: Manifest, images: Sequence[WorstDepth], origin: Origin
) -> Path:
    """Write ``folder/report.html``; arguments and errors as of `denseport.runtime.evaluation.report.write_report`."""
    run = found.measurement
    return write_page(
        folder,
        found,
        manifest,
        origin,
        template=_TEMPLATE,
        rows=[_row(name, value, found.fp32) for name, value in found.metrics.items()],
        worst=[_listed(found, index) for index in _ranked(run)[:_LISTED]],
        articles=[_article(image, found.artifact) for image in images],
        checks=_checks(run, manifest.depth),
        ramps={
            "depth": _gradient(_painted(np.linspace(0, 1, 9)[None], (0, 1))),
            "error": _gradient(_errors(np.linspace(0, _MOST, len(_RAMP))[None])),
        },
        most_error=_MOST,
        nothing="rgb({2}, {1}, {0})".format(*_NOTHING),
    )


def _row(name: str, value: float, fp32: Mapping[str, float] | None) -> dict[str, Any]:
    """A metric: its values, and the change as a gain or a loss: percent of an error, points of a share."""
    is_share = name in ("d1", "d2", "d3")
    row = {"name": name, "value": value, "fp32": None, "is_share": is_share, "change": None, "gain": None}
    if fp32 is None or not fp32[name]:
        return row
    change = 100 * (value - fp32[name] if is_share else value / fp32[name] - 1)
    return row | {"fp32": fp32[name], "change": change, "gain": change if is_share else -change}


def _checks(run: DepthMeasurement, output: DepthOutput | None) -> list[tuple[str, str]]:
    """What the collapse detectors of the gate count."""
    runs, images, told = range(len(run.values)), count(run.images, "image"), list[tuple[str, str]]()
    for name, words in (("non_finite", "Depths that are not finite"), ("constant", "Constant depths")):
        told.append((words, "; FP32: ".join(f"{int(run.column(name, each).sum())} of {images}" for each in runs)))
    if output is not None and output.largest is not None:
        shares = (f"{100 * run.column('saturated', each).mean():.2f} % of all pixels" for each in runs)
        told.append(("At the network's limit", "; FP32: ".join(shares)))
    return told


def _listed(found: DepthEvaluation, index: int) -> dict[str, Any]:
    """The figures of one image."""
    run = found.measurement
    own = {name: float(run.column(name)[index]) for name in ("AbsRel", "d1", "RMSE")}
    fp32 = float(run.column("AbsRel", 1)[index]) if found.fp32 is not None else None
    return {"name": run.names[index], **own, "fp32": fp32}


def _article(image: WorstDepth, artifact: str) -> dict[str, Any]:
    """The views of an image as data URIs; its depths and the truth have the same colours."""
    counted = image.truth[np.isfinite(image.truth)]
    span = float(counted.min()), float(counted.max())
    return {
        "name": image.name,
        "photo": data_uri("jpeg", image.image, cv2.IMWRITE_JPEG_QUALITY, 85),
        "span": span,
        "truth": data_uri("png", _painted(image.truth, span)),
        "runs": [
            (name, data_uri("png", _painted(depth, span)), data_uri("png", _errors(error)))
            for name, depth, error in zip((artifact, "FP32"), image.depths, image.errors, strict=False)
        ],
    }


def _painted(depth: NDArray[Any], span: tuple[float, float]) -> NDArray[np.uint8]:
    """(h, w, 3) BGR: metres in colours, near ones bright."""
    there = np.isfinite(depth)
    seen = coloured(np.where(there, depth, span[0]), span, near_is_large=False)
    seen[~there] = _NOTHING
    return seen


def _errors(error: NDArray[Any]) -> NDArray[np.uint8]:
    """(h, w, 3) BGR: errors in the colours of `_RAMP`, what is beyond `_MOST` in its last."""
    stops = np.linspace(0, _MOST, len(_RAMP))
    seen = np.stack([np.interp(error, stops, channel) for channel in zip(*_RAMP, strict=True)], axis=-1)
    seen[~np.isfinite(error)] = _NOTHING
    return np.asarray(np.rint(seen), np.uint8)


def _gradient(colours: NDArray[np.uint8]) -> str:
    """A CSS image of colours (1, n, 3), BGR, at equal distances."""
    stops = colours[0, :, ::-1].tolist()
    return f"linear-gradient(to right, {', '.join('rgb({}, {}, {})'.format(*stop) for stop in stops)})"

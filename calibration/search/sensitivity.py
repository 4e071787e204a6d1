"""What a quantized model loses against FP32 on calibration images, and which group of layers loses it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError
from denseport.calibration.quantize.placement import Group
from denseport.calibration.quantize.qdq import RoundedWeight, quantize
from denseport.export.graph.model import DEPTH, output_of
from denseport.export.graph.probe import Probe
from denseport.runtime.evaluation.metrics import ConfusionMatrix, LabelMap, agreement, mean_iou
from denseport.runtime.system.arrays import read_arrays, write_arrays
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["Loss", "LossFile", "Reference", "sensitivities"]


@dataclass(frozen=True)
class Loss:
    """The difference between a quantized model and FP32 on the same images."""

    error: float  # of the logits or depths: norm of the difference / norm of FP32's, all images together
    agreement: float  # `denseport.runtime.evaluation.metrics.agreement`, 0..1
    miou: float | None = None  # points of mIoU lost on labelled images; below 0: gained


class LossFile(dict[str, Loss]):
    """Losses by group in a file, so that an interrupted search goes on. Each new one is written at once.

    Args:
        path: ``.npz``; read if it is whole and was written for the same ``what``, else overwritten.
        what: names what was measured: the statistics, the method, the images.

    Attributes:
        damaged: there is a file, but not a whole one of ours: everything is measured again.
    """

    def __init__(self, path: Path, *what: str) -> None:
        super().__init__()
        self.path, self.what = path, list(what)
        arrays = read_arrays(path)
        self.damaged = arrays is None and path.exists()
        if arrays is not None and "what" in arrays and arrays["what"].tolist() == self.what:
            columns = (arrays[name].tolist() for name in ("groups", "error", "agreement", "miou"))
            for name, error, agreement, miou in zip(*columns, strict=True):
                super().__setitem__(name, Loss(error, agreement, None if np.isnan(miou) else miou))

    def __setitem__(self, name: str, loss: Loss) -> None:
        """Enter a loss and write all of them; errors as of `write_arrays`."""
        super().__setitem__(name, loss)
        columns = {name: [getattr(each, name) for each in self.values()] for name in ("error", "agreement", "miou")}
        arrays = {name: np.array(column, np.float64) for name, column in columns.items()}  # None becomes NaN
        write_arrays(self.path, {"what": np.array(self.what, str), "groups": np.array(list(self), str), **arrays})


class Reference:
    """FP32's logits on a few images, kept in memory as float16 to compare with; or its depths, as float32.

    Args:
        images: normalised (1, 3, H, W).
        labels: (H, W) class indices of each image at any size; the type's largest value is ignored. mIoU is measured
            at the logits' resolution, which serves to compare two models, not to publish.

    Raises:
        CalibrationError: no images, or not as many labels.
    """

    def __init__(
        self,
        model: ir.Model,
        images: Sequence[NDArray[np.float32]],
        labels: Sequence[LabelMap] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        if not len(images):
            raise CalibrationError("there are no images to measure the loss on")
        if labels is not None and len(labels) != len(images):
            raise CalibrationError(f"{len(images)} images, but labels for {len(labels)}", "Give a mask for each image.")
        self.images, self.labels, self.threads = images, labels, threads
        probe, self.output = Probe(model, threads=threads), output_of(model)
        if labels is not None and self.output == DEPTH:
            raise CalibrationError("depths have no classes to label", "Leave the labels out.")
        kept = np.float32 if self.output == DEPTH else np.float16
        self._logits = [probe.run(image)[0].astype(kept) for image in images]
        self._miou = self._measured([logits.argmax(1) for logits in self._logits])

    def measure(self, model: ir.Model) -> Loss:
        """What ``model`` loses on the images."""
        probe = Probe(model, threads=self.threads)
        squares, difference, same, pixels = 0.0, 0.0, 0.0, 0
        classes = []
        for image, reference in zip(self.images, self._logits, strict=True):
            logits = probe.run(image)[0]
            expected = reference.astype(np.float32)
            difference += _square(logits - expected)
            squares += _square(expected)
            classes.append(logits.argmax(1))
            same += agreement(reference, logits, self.output) * classes[-1].size
            pixels += classes[-1].size
        found = self._measured(classes)
        lost = None if found is None or self._miou is None else self._miou - found
        return Loss(float(np.sqrt(difference / max(squares, 1e-30))), same / pixels, lost)

    def _measured(self, classes: Sequence[NDArray[Any]]) -> float | None:
        """mIoU of class maps (1, h, w), percent."""
        if self.labels is None:
            return None
        confusion = ConfusionMatrix(self._logits[0].shape[1])
        for truth, (found,) in zip(self.labels, classes, strict=True):
            small: Any = cv2.resize(truth, found.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            confusion.update(small, found.astype(np.uint16))
        return float(mean_iou(confusion.intersect, confusion.union))


def sensitivities(
    reference: Reference,
    model: ir.Model,
    thresholds: Mapping[str, float],
    groups: Sequence[Group],
    *,
    kind: str = "int8",
    rounded: Mapping[str, RoundedWeight] | None = None,
    losses: MutableMapping[str, Loss] | None = None,
    progress: StepCallback = no_steps,
) -> dict[str, Loss]:
    """The loss of each candidate group when it alone is quantized, by name.

    Args:
        kind, rounded: as of `qdq.quantize`.
        losses: the known ones; each new one is entered as soon as it is measured.
    """
    names = [group.name for group in groups if group.is_candidate]
    losses = {} if losses is None else losses
    for done, name in enumerate(names, start=1):
        if name not in losses:
            quantized = model.clone()
            quantize(quantized, thresholds, groups, [name], kind=kind, rounded=rounded)
            losses[name] = reference.measure(quantized)
        progress(done, len(names))
    return {name: losses[name] for name in names}


def _square(values: NDArray[np.float32]) -> float:
    flat = values.ravel()
    return float(np.dot(flat, flat))

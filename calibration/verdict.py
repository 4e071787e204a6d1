"""Whether a quantized artifact is worth running here: its speed and accuracy beside FP32's, on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from denseport.calibration.search.search import Budget
from denseport.calibration.search.sensitivity import Loss
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.benchmark.load import LoadMonitor
from denseport.runtime.benchmark.race import FASTER, TIMED, measured_here, race, speed_ratio
from denseport.runtime.bundle.artifact import MADE_FOR, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.comparison import proof_here
from denseport.runtime.bundle.verdict import MachineVerdict
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.evaluation.metrics import agreement_words
from denseport.runtime.pipeline.network_input import evenly_spaced
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.selection import CUDA, select_artifact
from denseport.runtime.system.progress import Progress, StepCallback

__all__ = ["Accuracy", "judge", "measure_accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """An artifact and FP32 on the same labelled images."""

    miou: float  # percent
    fp32_miou: float
    agreement: float  # share of pixels with FP32's class, 0..1
    images: int

    @property
    def loss(self) -> Loss:
        """In the terms of a budget; the logits are not compared."""
        return Loss(0.0, self.agreement, self.fp32_miou - self.miou)


def measure_accuracy(
    bundle: Bundle, name: str, dataset: Dataset, *, threads: int | None, progress: StepCallback
) -> Accuracy:
    """mIoU of an artifact and of FP32, as `denseport eval` measures it."""
    with (
        Segmenter(bundle, artifact=name, threads=threads) as segmenter,
        Segmenter(bundle, artifact=bundle.manifest.source, threads=threads) as fp32,
    ):
        found = measure_dataset(dataset, segmenter, fp32=fp32, progress=progress)
    classes = bundle.manifest.classes
    assert found.fp32_confusion is not None and found.agreement is not None  # FP32 ran
    return Accuracy(
        found.scores(classes).mIoU, found.fp32_confusion.scores(classes).mIoU, found.agreement, len(dataset)
    )


def judge(
    bundle: Bundle,
    name: str,
    images: Sequence[NDArray[np.float32]],
    labelled: Dataset | None,
    budget: Budget,
    loss: Loss,
    *,
    threads: int | None,
    progress: Progress,
) -> MachineVerdict:
    """Measure an artifact of the bundle beside FP32, on a GPU also beside FP16, and keep the verdict in its record.

    Args:
        images: normalised (1, 3, H, W); some of them time the networks.
        labelled: images with labels to measure mIoU on.
        loss: what the search measured; it counts if there are no labelled images.
    """
    accuracy = None
    if labelled is not None:
        with progress.phase("measuring mIoU") as told:
            accuracy = measure_accuracy(bundle, name, labelled, threads=threads, progress=told)
    progress.say(f"timing {name} beside FP32")
    artifact, providers = bundle.artifact(name), select_artifact(bundle, name).providers
    on_gpu = CUDA in providers
    fp16 = bundle.manifest.graph("fp16") if on_gpu else None
    sessions = {
        each: OnnxRuntimeSession(
            bundle.verified(each), target=bundle.artifact(each).target, threads=threads, providers=providers
        )
        for each in (bundle.manifest.source, *([fp16] if fp16 else []), name)
    }
    monitor = LoadMonitor()
    times = race(sessions, evenly_spaced(images, TIMED))
    doubts = monitor.stop().warnings()
    measured = loss if accuracy is None else accuracy.loss
    ratio = speed_ratio(times[bundle.manifest.source], times[name])
    within, accepted, reason = _decide(name, artifact, ratio, measured, budget)
    verdict = MachineVerdict(
        **measured_here(on_gpu=on_gpu),
        session=sessions[name].description,
        seconds={each: statistics.median(taken) for each, taken in times.items()},
        speed_ratio=ratio,
        agreement=measured.agreement,
        miou=accuracy.miou if accuracy else None,
        fp32_miou=accuracy.fp32_miou if accuracy else None,
        labelled=accuracy.images if accuracy else 0,
        within_budget=within,
        accepted=accepted,
        reason="; ".join([reason, *doubts]) if within else reason,
    )
    against = "fp32" if accuracy is None else "labels"
    proof = proof_here(against, "verdict", artifact.float_precision, on_gpu=on_gpu)
    bundle.note(name, {"verdict": asdict(verdict)}, proof)
    return verdict


def _decide(name: str, artifact: Artifact, ratio: float, loss: Loss, budget: Budget) -> tuple[bool, bool, str]:
    """Whether the loss is within the budget, whether the artifact is accepted, and why."""
    if budget.excess(loss) > 1:
        lost = "" if loss.miou is None else f"{loss.miou:.2f} points of mIoU are lost, "
        return False, False, f"{name} is over its budget: {lost}{agreement_words(loss.agreement, artifact.output)}"
    speed = f"{ratio:.2f} times as fast as FP32"
    if ratio < FASTER:
        return True, False, f"{speed}; made for {MADE_FOR[artifact.target]}"
    return True, True, f"{speed}, within its budget"

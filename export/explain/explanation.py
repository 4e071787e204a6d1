"""What `denseport.export.explain.explain` found: plain data, for the terminal and for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from denseport.export.graph.compare.divergence import Divergence
from denseport.runtime.evaluation.metrics import json_number

__all__ = ["Culprit", "Explanation", "Step"]


@dataclass(frozen=True)
class Culprit:
    """What a step's loss comes from: a setting or a layer."""

    name: str  # a setting such as preprocess.std, or a layer such as backbone.layers.3.ln1 (LayerNormalization)
    detail: str
    causes: tuple[str, ...] = ()  # differences of the layer's attributes and weights
    effect: float | None = None  # of a setting: points of mIoU gained when it alone is corrected
    divergence: Divergence | None = None

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON."""
        effect = None if self.effect is None else json_number(self.effect)
        return {**vars(self), "effect": effect, "divergence": self.divergence and self.divergence.to_dict()}


@dataclass(frozen=True)
class Step:
    """One change on the way from the checkpoint to the artifact, and its loss."""

    name: str  # "protocol", "export", "precision" or "engine"
    compared: tuple[str, str]  # what was measured before the change, and after it
    mIoU: tuple[float, float] | None = None  # percent, of both; None: not run, and the notes say why
    agreement: float | None = None  # share of pixels with the same class, 0..1
    failed: bool = False  # lost more than the precision may, or too few pixels agree, or NaN in the logits
    culprits: tuple[Culprit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def lost(self) -> float | None:
        """Points of mIoU; negative for a gain."""
        return None if self.mIoU is None else self.mIoU[0] - self.mIoU[1]

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON."""
        return {
            **vars(self),
            "mIoU": None if self.mIoU is None else [json_number(value) for value in self.mIoU],
            "lost": None if self.lost is None else json_number(self.lost),
            "culprits": [culprit.to_dict() for culprit in self.culprits],
        }

    def lines(self) -> Iterator[str]:
        """The step in words."""
        if self.mIoU is None:
            yield f"{self.name:10} not run: {'; '.join(self.notes)}"
            return
        (before, after), (first, second) = self.compared, self.mIoU
        text = f"{self.name:10} {second - first:+.2f}  {before} {first:.2f} -> {after} {second:.2f}"
        agreement = f", {100 * self.agreement:.2f} % of the pixels agree" if self.agreement is not None else ""
        yield text + agreement + ("" if self.failed or self.culprits else ": no loss")
        for culprit in self.culprits:
            yield f"           {culprit.name}: {culprit.detail}"
            yield from (f"             because {cause}" for cause in culprit.causes)
        yield from (f"           note: {note}" for note in self.notes)


@dataclass(frozen=True)
class Explanation:
    """The chain from the checkpoint to an artifact."""

    artifact: str
    protocol: str
    images: int  # that were measured
    available: int  # in the data set
    steps: tuple[Step, ...]  # in the order of the chain; the losses of those that ran add up

    @property
    def culprits(self) -> tuple[str, ...]:
        """Names of all culprits, in the order of the chain."""
        return tuple(culprit.name for step in self.steps for culprit in step.culprits)

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON."""
        return {**vars(self), "culprits": self.culprits, "steps": [step.to_dict() for step in self.steps]}

    def lines(self) -> list[str]:
        """For the terminal: points of mIoU by step, and the culprits."""
        images = f"{self.images} of {self.available} images"
        head = f"{self.artifact}, protocol {self.protocol}: change of mIoU by step, measured on {images}"
        return [head, *(f"  {line}" for step in self.steps for line in step.lines())]

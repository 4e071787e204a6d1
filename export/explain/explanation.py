"""What `denseport.export.explain.explain` found: plain data, for the terminal and for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from denseport.export.graph.divergence import Divergence
from denseport.runtime.evaluation.metrics import json_number

__all__ = ["Culprit", "Explanation", "Step"]


@dataclass(frozen=True)
class Culprit:
    """What a step's loss comes from."""

    name: str  # a setting such as preprocess.std, or a layer such as backbone.layers.3.ln1 (LayerNormalization)
    detail: str
    causes: tuple[str, ...] = ()  # what the layer has otherwise than it should
    effect: float | None = None  # points of mIoU lost by a setting: gained when it alone is corrected
    divergence: Divergence | None = None

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON."""
        return {
            "name": self.name,
            "detail": self.detail,
            "causes": list(self.causes),
            "effect": None if self.effect is None else json_number(self.effect),
            "divergence": self.divergence.to_dict() if self.divergence else None,
        }


@dataclass(frozen=True)
class Step:
    """One change on the way from the checkpoint to the artifact, and what it cost."""

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
            "name": self.name,
            "compared": list(self.compared),
            "mIoU": None if self.mIoU is None else [json_number(value) for value in self.mIoU],
            "lost": None if self.lost is None else json_number(self.lost),
            "agreement": self.agreement,
            "failed": self.failed,
            "culprits": [culprit.to_dict() for culprit in self.culprits],
            "notes": list(self.notes),
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
        """Names of everything that is to blame, in the order of the chain."""
        return tuple(culprit.name for step in self.steps for culprit in step.culprits)

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON."""
        return {
            "artifact": self.artifact,
            "protocol": self.protocol,
            "images": self.images,
            "available": self.available,
            "culprits": list(self.culprits),
            "steps": [step.to_dict() for step in self.steps],
        }

    def lines(self) -> list[str]:
        """For the terminal: points of mIoU by step, and whom to blame."""
        head = f"{self.artifact}, protocol {self.protocol}: where the points went, on {self.images} of "
        head += f"{self.available} images"
        return [head, *(f"  {line}" for step in self.steps for line in step.lines())]

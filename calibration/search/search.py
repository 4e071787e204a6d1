"""Choose which layers compute in 8 bits, INT8 or FP8: the greatest saving whose measured loss keeps a budget.

Every candidate starts in 8 bits. The result is measured as a whole, since losses of single layers do not add up. While
it is over budget, the layer that loses most for what it saves goes back to float, and the rest is measured again. Only
then are single layers measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from denseport.calibration.errors import CalibrationError
from denseport.calibration.quantize.placement import Group
from denseport.calibration.quantize.qdq import Quantization, RoundedWeight, quantize
from denseport.calibration.search.sensitivity import Loss, Reference

__all__ = ["Budget", "Search", "Step", "search"]

SMALL_STEPS = 4  # from then on each step is twice the last: a network of which little stays is found in ten, not fifty


@dataclass(frozen=True)
class Budget:
    """How much may be lost against FP32; a limit of None is not asked for."""

    miou: float | None = None  # points, on labelled images
    agreement: float | None = None  # smallest share of pixels that get FP32's class, 0..1

    def __post_init__(self) -> None:
        if self.miou is None and self.agreement is None:
            raise CalibrationError("a budget needs a limit", "Give points of mIoU or an agreement.")
        if self.miou is not None and not 0 <= self.miou <= 100:
            raise CalibrationError(f"a budget of {self.miou:g} is not in 0..100 points of mIoU")
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise CalibrationError(f"an agreement of {self.agreement:g} is not in 0..1", "0.98 is 98 % of the pixels.")

    def excess(self, loss: Loss) -> float:
        """How many times the tightest limit ``loss`` is; at most 1 when the budget holds.

        Raises:
            CalibrationError: a limit on mIoU, and no labelled images.
        """
        over = []
        if self.miou is not None:
            if loss.miou is None:
                raise CalibrationError("a budget on mIoU needs labelled images", "Name them with --data.")
            over.append(_ratio(loss.miou, self.miou))
        if self.agreement is not None:
            over.append(_ratio(1 - loss.agreement, 1 - self.agreement))
        return max(over)


@dataclass(frozen=True)
class Step:
    """One set of layers that was measured as a whole."""

    share: float  # of the multiply-adds in 8 bits, 0..1
    loss: Loss
    within: bool  # the budget
    dropped: tuple[str, ...]  # groups that went back to float since the last step


@dataclass(frozen=True)
class Search:
    """What was chosen and why."""

    chosen: tuple[str, ...]  # groups in 8 bits
    quantization: Quantization
    loss: Loss  # of the chosen set
    within: bool  # False: not even the smallest set that was tried keeps the budget
    steps: tuple[Step, ...]
    sensitivities: Mapping[str, Loss]  # of each candidate alone; empty: all together kept the budget

    def rows(self) -> list[dict[str, Any]]:
        """A table for the report, one row a group."""
        kind, total = self.quantization.kind, max(1, self.quantization.macs)
        narrow = [(group, kind, None) for group in self.quantization.narrow]
        floats = [(group, "float", reason) for group, reason in self.quantization.floats]
        return [
            {
                "group": group.name,
                "kind": group.kind,
                "share": group.macs / total,
                "precision": precision,
                "reason": reason,
                "alone": asdict(self.sensitivities[group.name]) if group.name in self.sensitivities else None,
            }
            for group, precision, reason in (*narrow, *floats)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, for the record."""
        quantization = self.quantization
        return {
            "precision": quantization.kind,
            "narrow_multiply_adds": quantization.narrow_macs,
            "multiply_adds": quantization.macs,
            "share": quantization.share,
            "narrow": [group.name for group in quantization.narrow],
            "float": {group.name: reason for group, reason in quantization.floats},
            "loss": asdict(self.loss),
            "within_budget": self.within,
            "steps": [asdict(step) for step in self.steps],
            "groups": self.rows(),
        }


def search(
    reference: Reference,
    model: ir.Model,
    thresholds: Mapping[str, float],
    groups: Sequence[Group],
    budget: Budget,
    alone: Callable[[], Mapping[str, Loss]],
    *,
    kind: str = "int8",
    rounded: Mapping[str, RoundedWeight] | None = None,
    batch: float = 0.02,
    told: Callable[[Step], None] = lambda step: None,
) -> tuple[ir.Model, Search]:
    """Quantize as many multiply-adds as the budget allows; the model, and how it was found.

    Args:
        alone: measures the loss of each candidate alone, as `sensitivities` does; asked once, and only if all
            candidates together are over budget.
        kind, rounded: as of `qdq.quantize`.
        batch: largest share of the multiply-adds that goes back to float between two measurements; always one group.
            It doubles from step to step after `SMALL_STEPS`.
        told: is given each set as soon as it is measured.
    """
    candidates = [group for group in groups if group.is_candidate]
    total = sum(group.macs for group in groups)
    chosen, losses = list(candidates), dict[str, Loss]()
    steps: list[Step] = []
    reasons: dict[str, str] = {}
    dropped: list[Group] = []
    while True:
        names = [group.name for group in chosen]
        quantized = model.clone()
        record = quantize(quantized, thresholds, groups, names, reasons=reasons, kind=kind, rounded=rounded)
        loss = reference.measure(quantized)
        excess = budget.excess(loss)
        steps.append(Step(record.share, loss, excess <= 1, tuple(g.name for g in dropped)))
        told(steps[-1])
        if excess <= 1 or not chosen:
            return quantized, Search(tuple(names), record, loss, excess <= 1, tuple(steps), losses)
        if not losses:
            losses = dict(alone())
            # Squared errors of independent layers add up, so they are what a layer costs.
            chosen.sort(key=lambda group: losses[group.name].error ** 2 / max(group.macs, 1))
        dropped = _worst(chosen, batch * total * 2 ** max(0, len(steps) - SMALL_STEPS))
        chosen = chosen[: -len(dropped)]
        for group in dropped:
            reasons[group.name] = f"over budget: alone it changes the logits by {100 * losses[group.name].error:.2g} %"


def _worst(ordered: Sequence[Group], macs: float) -> list[Group]:
    """The last groups, with at most ``macs`` multiply-adds, but at least one group."""
    taken = [ordered[-1]]
    for group in reversed(ordered[:-1]):
        if sum(g.macs for g in taken) + group.macs > macs:
            break
        taken.append(group)
    return taken


def _ratio(loss: float, limit: float) -> float:
    if loss <= 0:
        return 0.0
    return loss / limit if limit else float("inf")

"""What a calibration is asked for, and how much work it may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denseport.calibration.observe.observers import METHODS, Method
from denseport.calibration.quantize.qdq import KINDS
from denseport.calibration.search.search import Budget
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.gate import AGREEMENTS, BUDGETS
from denseport.runtime.system.arguments import optional_path, several

__all__ = ["AGREEMENT", "EFFORTS", "CalibrationOptions", "Effort", "EffortName", "budget_of"]

EffortName = Literal["low", "medium", "high"]

# Smallest share of the logits' pixels that keep FP32's class if no labels say what a change costs. At 0.97 the
# sample DPT DeiT-S lost 0.36 points of mIoU in the portable variant and 0.53 in the CPU's (docs/int8.md).
AGREEMENT = 0.98


@dataclass(frozen=True)
class Effort:
    """How thoroughly the search looks."""

    single: int  # images on which each group of layers is measured alone
    whole: int  # images on which a set of groups is measured
    batch: float  # share of the multiply-adds that goes back to float at most between two measurements


EFFORTS: dict[EffortName, Effort] = {
    "low": Effort(1, 8, 0.05),
    "medium": Effort(2, 24, 0.02),
    "high": Effort(16, 96, 0.01),
}


@dataclass(frozen=True)
class CalibrationOptions:
    """How a model is calibrated."""

    precision: str = "int8"  # of `qdq.KINDS`
    budget: float | None = None  # points of mIoU that may be lost; needs labelled images; None: with them the gate's
    agreement: float | None = None  # smallest share of pixels that get FP32's class, 0..1; None: see `budget_of`
    method: Method = "minmax"
    effort: EffortName = "medium"
    smoothquant: bool = True  # migrate outliers of what linear layers read into their weights
    float_layers: tuple[str, ...] = ()  # layers, with all below them, that stay float
    attention_float: bool = True  # attention's products stay float; else the search decides
    work: Path | None = None  # folder for statistics, kept; None: one in the user's cache until the run is done
    resume: bool = False  # go on with an interrupted run on the same images
    threads: int | None = None  # default: the CPUs this process may use

    def __post_init__(self) -> None:
        object.__setattr__(self, "float_layers", several("float_layers", self.float_layers))
        object.__setattr__(self, "work", optional_path("work", self.work))
        for name, known in (("precision", KINDS), ("method", METHODS), ("effort", EFFORTS)):
            if getattr(self, name) not in known:
                raise InputError(f"no {name} {getattr(self, name)!r}", f"Choose one of {', '.join(known)}.")


def budget_of(options: CalibrationOptions, *, labelled: bool) -> Budget:
    """The budget of the search: points of mIoU if there are labels, and a least agreement with FP32.

    What the options leave out is the gate's if there are labels, else `AGREEMENT`.

    Raises:
        InputError: points without labels, or numbers out of range.
    """
    points, agreement = options.budget, options.agreement
    if points is not None and not labelled:
        raise InputError(
            f"a budget of {points:g} points of mIoU needs labelled images",
            "Name them with --data, or give a budget that needs none: --agreement 0.98.",
        )
    if not labelled:
        return Budget(agreement=AGREEMENT if agreement is None else agreement)
    return Budget(
        miou=BUDGETS[options.precision] if points is None else points,
        agreement=AGREEMENTS[options.precision] if agreement is None else agreement,
    )

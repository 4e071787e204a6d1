"""The gate of depth: does AbsRel grow, or d1 fall, by more than a precision may cost? Collapse detectors fail either.

The comparison is with FP32 on the same images, where a paired bootstrap over images says how sure the difference is; or
with an AbsRel that is given, such as a published one of the same data set, crop and limits.
"""

from __future__ import annotations

import numpy as np

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.depth.measure import DepthMeasurement
from denseport.runtime.evaluation.gate import Gate, Verdict, threshold
from denseport.runtime.system.text import count

__all__ = ["BUDGETS", "D1_BUDGETS", "check_gate", "collapses", "judge"]

# Percent by which AbsRel may grow, and points of d1 that may be lost. Chosen, not measured: 2 % is the goal for INT8,
# and d1's are those of mIoU.
BUDGETS = {"fp32": 0.1, "fp16": 0.5, "bf16": 1.0, "int8": 2.0, "fp8": 2.0}
D1_BUDGETS = {"fp32": 0.05, "fp16": 0.1, "bf16": 0.2, "int8": 0.5, "fp8": 0.5}
AT_LIMIT = 0.5  # share of all pixels at the network's limit from which a map says nothing, where FP32 has half as many
RESAMPLES = 1000


def check_gate(gate: Gate, manifest: Manifest, artifact: str) -> None:
    """Raises InputError for a comparison that depth does not have."""
    for name, value in (("agreement", gate.agreement), ("strict", gate.strict or None)):
        if value is not None:
            raise InputError(f"--{name} applies to segmentation: depths have no classes", "Leave it out.")
    source = manifest.source
    if gate.against == artifact:
        raise InputError(f"--gate {artifact}: an artifact cannot be compared with itself", "Name another --artifact.")
    if not isinstance(gate.against, float) and gate.against != source:
        what = f"--gate {gate.against}: depths are compared with FP32, or with an AbsRel"
        raise InputError(what, f"Give --gate {source}, or the AbsRel itself (--gate 0.078).")


def judge(gate: Gate, found: DepthMeasurement, manifest: Manifest, precision: str) -> Verdict:
    """The verdict; its delta and budget are percent of AbsRel, a loss negative.

    Raises:
        InputError: no budget for the precision.
    """
    budget = threshold(BUDGETS, precision, gate.budget if gate.budget is not None else manifest.budgets.get(precision))
    own, reasons, notes, interval = found.means(), list[str](), list[str](), None
    if isinstance(gate.against, float):
        other, name = gate.against, f"the given AbsRel, {gate.against:g}"
    else:
        fp32, may = found.means(1), D1_BUDGETS[precision]
        other, name = fp32["AbsRel"], f"FP32 on the same {count(found.images, 'image')}, AbsRel {fp32['AbsRel']:.4f}"
        interval, lost = _bootstrap(found), 100 * (fp32["d1"] - own["d1"])
        if lost > may:
            reasons.append(f"d1 {own['d1']:.4f} is {lost:.2f} points below FP32's; {may:g} may be lost")
    grown = 100 * (own["AbsRel"] / other - 1) if other else np.inf
    if np.isnan(grown):
        reasons = ["there is no AbsRel: no pixel counts, or depths are not finite"]
    elif grown > budget:
        reasons.insert(0, f"AbsRel {own['AbsRel']:.4f} is {grown:.2f} % above {name}; the budget is {budget:g} %")
    elif interval is not None and interval[0] < -budget:
        notes = [f"{found.images} images are too few to be sure: the 95 % interval reaches beyond the budget"]
    reasons += collapses(found)
    return Verdict(not reasons, tuple(reasons), name, -float(grown), budget, interval, tuple(notes))


def collapses(found: DepthMeasurement) -> list[str]:
    """What no metric excuses: depths that are not finite, constant where FP32's are not, or at the network's limit."""
    told, beside = list[str](), len(found.values) == 2
    if bad := int(found.column("non_finite").sum()):
        told.append(f"the depths of {bad} of {found.images} images are not finite")
    flat = int((found.column("constant") > (found.column("constant", 1) if beside else 0)).sum())
    if flat:
        where = ", where FP32's are not" if beside else ""
        told.append(f"the depths of {flat} of {found.images} images are constant{where}")
    share, other = found.column("saturated").mean(), found.column("saturated", 1).mean() if beside else 0.0
    if share > max(AT_LIMIT, 2 * other):
        told.append(f"{100 * share:.1f} % of all pixels are at the network's limit (FP32: {100 * other:.1f} %)")
    return told


def _bootstrap(found: DepthMeasurement) -> tuple[float, float] | None:
    """The 95 % interval of the change of AbsRel, percent, a loss negative; None for fewer than two images."""
    pairs = np.stack([found.column("AbsRel", run)[found.pixels > 0] for run in (0, 1)], 1)
    n = len(pairs)
    if n < 2 or not np.isfinite(pairs).all():
        return None
    sums = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) @ pairs
    low, high = np.percentile(-100 * (sums[:, 0] / sums[:, 1] - 1), [2.5, 97.5])
    return float(low), float(high)

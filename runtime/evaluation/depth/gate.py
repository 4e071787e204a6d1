"""The gate of depth: does AbsRel grow, or d1 fall, by more than a precision may cost? Collapse detectors fail either.

The comparison is with FP32 on the same images, where a paired bootstrap over images says how sure the difference is;
with the published AbsRel and d1, where the images and the limits are those of their test set; or with an AbsRel that is
given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.depth.dataset import DepthDataset
from denseport.runtime.evaluation.depth.measure import DepthMeasurement
from denseport.runtime.evaluation.gate import Gate, Verdict, threshold
from denseport.runtime.evaluation.quality.interval import interval, resampled
from denseport.runtime.system.text import count

__all__ = ["BUDGETS", "D1_BUDGETS", "Yardstick", "choose_yardstick", "collapses", "judge"]

# Percent by which AbsRel may grow, and points of d1 that may be lost. Chosen: 2 % is the goal for INT8, and d1's
# are those of mIoU; docs/evaluation.md has what was measured beside them.
BUDGETS = {"fp32": 0.1, "fp16": 0.5, "bf16": 1.0, "int8": 2.0, "fp8": 2.0}
D1_BUDGETS = {"fp32": 0.05, "fp16": 0.1, "bf16": 0.2, "int8": 0.5, "fp8": 0.5}
AT_LIMIT = 0.5  # share of all pixels at the network's limit from which a map says nothing, where FP32 has half as many

# Images and metres of the test sets that figures were published on: NYUv2's, and KITTI's of Eigen's split.
TEST_SETS = {"NYUv2": (654, 10.0), "KITTI": (697, 80.0)}
ROUNDED = 0.0005  # half of a published figure's last digit


@dataclass(frozen=True)
class Yardstick:
    """What an artifact is compared with, and how much may be lost."""

    name: str  # in words
    budget: float  # percent by which AbsRel may grow
    d1_budget: float  # points
    abs_rel: float | None = None  # None: FP32's on the same images
    d1: float | None = None  # None: FP32's, or not compared
    rounded: float = 0.0  # by which both may be rounded
    notes: tuple[str, ...] = ()


def choose_yardstick(
    gate: Gate, manifest: Manifest, artifact: str, data: DepthDataset, protocol: str = "reference"
) -> Yardstick:
    """The comparison that a gate asks for, before the work.

    Args:
        artifact: its full name.
        data: with its limits.
        protocol: the name of the one that is followed.

    Raises:
        InputError: a comparison that depth does not have or that cannot be made with these images, or no budget for the
            artifact's precision.
    """
    for name in ("agreement", "strict", "max_boundary_drop", "max_class_drop", "max_ece"):
        if getattr(gate, name) is not None and getattr(gate, name) is not False:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} applies to segmentation: depths have no classes", "Leave it out.")
    precision = manifest.artifacts[artifact].precision
    given = manifest.budgets.get(precision) if gate.budget is None else gate.budget
    budgets = threshold(BUDGETS, precision, given), threshold(D1_BUDGETS, precision)
    fp32 = Yardstick(f"FP32 on the same {count(len(data), 'image')}", *budgets)
    if isinstance(gate.against, float):
        return replace(fp32, name=f"the given AbsRel, {gate.against:g}", abs_rel=gate.against)
    if gate.against == "reference":
        return _published(manifest, artifact, data, protocol, fp32)
    if gate.against == artifact:
        raise InputError(f"--gate {artifact}: an artifact cannot be compared with itself", "Name another --artifact.")
    if gate.against != manifest.source:
        what = f"--gate {gate.against}: depths are compared with FP32, with a published AbsRel, or with a given one"
        remedy = f"Give --gate {manifest.source}, --gate reference, or the AbsRel itself (--gate 0.078)."
        raise InputError(what, remedy)
    return fp32


def _published(manifest: Manifest, artifact: str, data: DepthDataset, protocol: str, fp32: Yardstick) -> Yardstick:
    """The published figures or, where this measurement is not comparable with them, FP32 with a note."""
    figures, reading = manifest.reference.figures if manifest.reference is not None else {}, data.reading
    found = next((name for name, test in TEST_SETS.items() if test == (len(data), reading.most)), None)
    if manifest.reference is None:
        obstacle = "the bundle is not recognised as a published model"
    elif not figures:
        obstacle = f"no AbsRel on NYUv2 or KITTI was published with {manifest.reference.preset}"
    elif protocol != "reference":
        obstacle = f"no AbsRel was published for protocol {protocol}"
    elif found not in figures:
        sets = " and ".join(f"{name}'s {images} images up to {most:g} m" for name, (images, most) in TEST_SETS.items())
        obstacle = f"figures are of {sets}; {len(data)} up to {reading.most:g} m are measured"
    else:
        abs_rel, d1 = figures[found]
        note = f"it is not known which crop the figure was measured with; here {reading.crop or 'none'}"
        name = f"{manifest.reference.preset}'s published AbsRel on {found}, {abs_rel:g}"
        return replace(fp32, name=name, abs_rel=abs_rel, d1=d1, rounded=ROUNDED, notes=(note,))
    if artifact == manifest.source:
        remedy = "Measure a whole test set, or give the AbsRel itself (--gate 0.078)."
        raise InputError(f"--gate reference: {obstacle}", remedy)
    return replace(fp32, notes=(f"compared with FP32 instead: {obstacle}",))


def judge(yardstick: Yardstick, found: DepthMeasurement) -> Verdict:
    """The verdict; its delta and budget are percent of AbsRel, a loss negative."""
    budget, may = yardstick.budget, yardstick.d1_budget
    own, reasons, notes, sure = found.means(), list[str](), list(yardstick.notes), None
    other, d1, name, rounded = yardstick.abs_rel, yardstick.d1, yardstick.name, yardstick.rounded
    if other is None:
        fp32 = found.means(1)
        other, d1, sure = fp32["AbsRel"], fp32["d1"], _bootstrap(found)
        name += f", AbsRel {other:.4f}"
    if d1 is not None and 100 * (d1 - rounded - own["d1"]) > may:
        whose = "FP32's" if yardstick.abs_rel is None else f"the published {d1:g}"
        reasons.append(f"d1 {own['d1']:.4f} is {100 * (d1 - own['d1']):.2f} points below {whose}; {may:g} may be lost")
    grown = 100 * (own["AbsRel"] / other - 1) if other else np.inf
    if np.isnan(grown):
        reasons = ["there is no AbsRel: no pixel counts, or depths are not finite"]
    elif grown > budget and own["AbsRel"] > (1 + budget / 100) * (other + rounded):
        reasons.insert(0, f"AbsRel {own['AbsRel']:.4f} is {grown:.2f} % above {name}; the budget is {budget:g} %")
    elif sure is not None and sure[0] < -budget:
        notes.append(f"{found.images} images are too few to be sure: the 95 % interval reaches beyond the budget")
    reasons += collapses(found)
    return Verdict(not reasons, tuple(reasons), name, -float(grown), budget, sure, tuple(notes))


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
    if len(pairs) < 2 or not np.isfinite(pairs).all():
        return None
    own, fp32 = resampled(pairs).T
    return interval(-100 * (own / fp32 - 1))

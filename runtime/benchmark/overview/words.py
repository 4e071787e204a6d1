"""What the figures mean, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from denseport.runtime.benchmark.race import FASTER
from denseport.runtime.bundle.artifact import MADE_FOR
from denseport.runtime.system.text import count, signed

if TYPE_CHECKING:
    from denseport.runtime.benchmark.overview.collect import Overview, Row

__all__ = ["Standing", "Summary", "megabytes", "standing", "summary"]


@dataclass(frozen=True)
class Summary:
    """The page in a few sentences."""

    kind: str  # "pass" or "none", as of a verdict on a page
    title: str
    sentences: tuple[str, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """What becomes of one artifact."""

    kind: str  # its colour: "gain", "loss" or "same"
    word: str
    reason: str


def summary(overview: Overview) -> Summary:
    """What to do, why, and what to be careful about."""
    best, fp32 = overview.recommended, overview.fp32
    cautions = tuple(_cautions(overview))
    if best.is_fp32:
        others = len(overview.rows) - 1
        first = "No other artifact is both faster on this machine and as accurate as it must be."
        if unknown := [row for row in overview.rows if row.passed and row.times_as_fast is None]:
            told = "; ".join(f"{row.name} ({row.no_ratio})" for row in unknown)
            first = f"Whether artifacts that are accurate enough are faster could not be told: {told}."
        if not others:
            first = "No other artifact of the bundle could be measured on this machine."
        return Summary("none", f"Keep {best.name}, the original network (FP32)", (first, _accuracy(fp32)), cautions)
    faster = f"{best.name} is {best.times_as_fast:.1f} times as fast as the original network (FP32) on this machine"
    smaller = f"takes {megabytes(best.bytes)} on disk, the original {megabytes(fp32.bytes)}"
    sentences = (f"{faster}, and {smaller}.", _accuracy(best), _change(best))
    return Summary("pass", f"Use {best.name} on machines like this one", sentences, cautions)


def _accuracy(row: Row) -> str:
    images = count(row.found.measurement.images, "labelled image")
    text = f"Its mIoU is {row.found.mIoU:.2f} % on {images}"
    gate = row.found.gate
    if gate is None:
        interval = row.interval
        between = "" if interval is None else f"; with 95 % confidence {interval[0]:.2f} to {interval[1]:.2f} %"
        return f"{text}{between}."
    text += f", {signed(gate.delta)} points against the original's {row.found.mIoU - gate.delta:.2f} %."
    if gate.interval is None:
        return text
    low, high = (signed(value) for value in gate.interval)
    return (
        f"{text} The difference lies between {low} and {high} points with 95 % confidence; {gate.budget:g} may be lost."
    )


def _change(row: Row) -> str:
    agreement, worst = row.found.agreement or 0.0, row.found.worst_drop
    text = f"{100 * agreement:.2f} % of all pixels get the class that the original gives."
    if worst is None or worst.points < 0.005:
        return f"{text} No class lost IoU."
    name = row.found.per_class[worst.index].name
    return f"{text} The class that lost most is {name}: {worst.points:.2f} points of IoU, from {worst.fp32_IoU:.2f} %."


def _cautions(overview: Overview) -> list[str]:
    fp32, told = overview.fp32.found, list[str]()
    if fp32.measurement.images < 100:
        images = count(fp32.measurement.images, "image")
        told.append(f"Measured on {images} only: the intervals of this page may change with other images.")
    best, gate = overview.recommended.name, overview.recommended.found.gate
    if gate is not None and gate.interval is not None and gate.interval[0] < -gate.budget:
        told.append(
            f"These images are too few to be sure of {best}: it may lose {-gate.interval[0]:.2f} points, more than the "
            f"{gate.budget:g} that may be lost."
        )
    told += [f"{name} is broken: {reason}." for name, reason in overview.broken.items()]
    foreign = [row for row in overview.rows if not row.own_arithmetic]
    if foreign:
        names = ", ".join(row.name for row in foreign)
        told.append(
            f"This processor computes the 16-bit numbers of {names} in FP32. How accurate they are on a GPU is not "
            "known from this page."
        )
    if fp32.never_in_masks:
        total = count(len(fp32.per_class), "class", "es")
        told.append(f"Nothing is known of {len(fp32.never_in_masks)} of {total}: no mask holds them.")
    if fp32.ignored > 0.1:
        told.append(f"{100 * fp32.ignored:.1f} % of the labels are ignored: nothing is known there.")
    speed = list(overview.bench["warnings"])
    told += speed[:1]
    if len(speed) > 1:
        told.append(f"{count(len(speed) - 1, 'more warning')} of the kind: measure the speed again.")
    return told


def standing(row: Row) -> Standing:
    """Whether an artifact may be used, and why."""
    ratio, gate = row.times_as_fast, row.found.gate
    if gate is None:
        return Standing("same", "Original", "what all others are made of and compared with")
    if not gate.passed:
        return Standing("loss", "Do not use", "; ".join(gate.reasons))
    if not row.own_arithmetic:
        floats = row.artifact.float_precision.upper()
        return Standing(
            "none", "Not proved here", f"computed in FP32, not in {floats}: the accuracy of a GPU is another"
        )
    if ratio is None:
        return Standing("none", "Accurate", f"its speed is unknown: {row.no_ratio}")
    if ratio < FASTER:
        made_for = MADE_FOR.get(row.artifact.target, row.artifact.target)
        return Standing("same", "Accurate", f"not faster than the original here; made for {made_for}")
    return Standing("gain", "Ready", "accurate enough, and faster here")


def megabytes(size: int) -> str:
    """A size on disk in MB of 10^6 bytes."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"

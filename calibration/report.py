"""What a calibration found, for people: a summary for the terminal and a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from denseport.calibration.calibrate import CalibrationRecord
from denseport.calibration.search.search import Step
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.quantization import QuantizationVerdict
from denseport.runtime.media.page import render
from denseport.runtime.media.plot import Axis, Series, chart
from denseport.runtime.system.files import write_atomic
from denseport.runtime.system.text import count

__all__ = ["summary", "write_report"]

_TEMPLATE = Path(__file__).with_name("report.html")
_NAMED = 4  # layers of one reason that the summary names


def summary(record: CalibrationRecord) -> list[str]:
    """Lines for the terminal: what is in 8 bits, by kind of layer, and why the others stay float."""
    rows = record.search.rows()
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    name = _name(record)
    width = max(len(kind) for kind in kinds)
    lines = [f"{'kind':{width}}  {name:>9}  {'share':>8}  {'in ' + name:>8}"]
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind]
        quantized = [row for row in own if row["precision"] != "float"]
        share, total = (100 * sum(row["share"] for row in some) for some in (quantized, own))
        lines.append(f"{kind:{width}}  {len(quantized):>3} of {len(own):>2}  {total:6.1f} %  {share:6.1f} %")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["precision"] == "float":
            reasons.setdefault(_general(row["reason"]), []).append(row["group"])
    lines += ["", "stay float:"] if reasons else []
    for reason, names in reasons.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"  {', '.join(names[:_NAMED])}{more}: {reason}")
    return lines


def write_report(
    path: Path, manifest: Manifest, record: CalibrationRecord, verdicts: Mapping[str, QuantizationVerdict]
) -> Path:
    """Write the page, whole or not at all.

    Args:
        verdicts: by artifact.

    Raises:
        OutputError: the place cannot be written.
    """
    text = render(
        _TEMPLATE,
        manifest=manifest,
        record=record,
        verdicts=verdicts,
        precision=_name(record),
        plot=_plot(record),
        created=datetime.now(UTC),
    )
    write_atomic(path, text.encode())
    return path


def _plot(record: CalibrationRecord) -> str:
    """Steps of the search; the words in the table and the summary say the same."""
    budget, steps = record.options.budget, record.search.steps
    if budget.miou is not None:
        unit, limit = "points of mIoU lost", budget.miou
    elif budget.agreement is not None:
        unit, limit = "% of the pixels change class", 100 * (1 - budget.agreement)
    else:
        unit, limit = "% by which the logits differ", 100 * (budget.error or 0)
    name = _name(record)
    points = [(100 * step.share, _loss(step, unit)) for step in steps]
    return chart(
        f"{unit} against the share of the multiply-adds in {name}, {count(len(steps), 'step')}",
        Axis(f"% of the multiply-adds in {name}", zero=True),
        Axis(unit),
        [Series("sets of layers", points), Series("budget", [(0, limit), (100, limit)])],
    )


def _loss(step: Step, unit: str) -> float:
    if unit.startswith("points"):
        return step.loss.miou or 0.0
    return 100 * (1 - step.loss.agreement) if "class" in unit else 100 * step.loss.error


def _name(record: CalibrationRecord) -> str:
    return record.options.precision.upper()


def _general(reason: str) -> str:
    """The reason without the layer's own figure, so that layers can share it."""
    if "nothing to gain" in reason:
        return "nothing to gain: next to no multiply-adds"
    return "over budget" if reason.startswith("over budget") else reason

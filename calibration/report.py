"""What a calibration found, for people: a summary for the terminal and a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from denseport.calibration.steps import CalibrationRecord
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.verdict import MachineVerdict
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
    name, width = record.options.precision.upper(), max(map(len, kinds))
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
    path: Path, manifest: Manifest, record: CalibrationRecord, verdicts: Mapping[str, MachineVerdict]
) -> Path:
    """Write the page, whole or not at all.

    Args:
        verdicts: by artifact.

    Raises:
        OutputError: the place cannot be written.
    """
    name = record.options.precision.upper()
    values = {"manifest": manifest, "record": record, "verdicts": verdicts, "precision": name}
    write_atomic(
        path, render(_TEMPLATE, **values, plot=_plot(record, name, manifest.output), created=datetime.now(UTC)).encode()
    )
    return path


def _plot(record: CalibrationRecord, name: str, output: str) -> str:
    """The steps of the search."""
    budget, steps = record.budget, record.search.steps
    if budget.miou is not None:
        unit, limit, losses = "points of mIoU lost", budget.miou, [step.loss.miou or 0.0 for step in steps]
    else:
        unit = "change of the depths, % of their mean" if output == "depth" else "% of the pixels change class"
        limit = 100 * (1 - (budget.agreement or 0))
        losses = [100 * (1 - step.loss.agreement) for step in steps]
    points = [(100 * step.share, loss) for step, loss in zip(steps, losses, strict=True)]
    return chart(
        f"{unit} against the share of the multiply-adds in {name}, {count(len(steps), 'step')}",
        Axis(f"% of the multiply-adds in {name}", zero=True),
        Axis(unit),
        [Series("sets of layers", points), Series("budget", [(0, limit), (100, limit)])],
    )


def _general(reason: str) -> str:
    """The reason without the layer's own figure, so that layers can share it."""
    if "nothing to gain" in reason:
        return "hardly any multiply-adds: nothing to gain"
    return "over budget" if reason.startswith("over budget") else reason

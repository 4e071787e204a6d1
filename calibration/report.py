"""What a calibration found, for people: a summary for the terminal and a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from denseport.calibration.search.search import Step
from denseport.calibration.steps import CalibrationRecord
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.quantization import QuantizationVerdict
from denseport.runtime.media.page import count, fact_list, page, section
from denseport.runtime.media.plot import Axis, Series, chart
from denseport.runtime.system.files import write_atomic

__all__ = ["summary", "write_report"]

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
    created = datetime.now(UTC)
    share = 100 * record.search.quantization.share
    names = escape(", ".join(record.losses) or "nothing")
    parts = (
        _verdicts(record, verdicts),
        _tiles(record, verdicts),
        section("search", f"Loss against share in {_name(record)}", _hint(record), _plot(record)),
        _layers(record),
        _smoothing(record),
        _facts(record, verdicts),
    )
    text = page(
        title=f"{_name(record)}: {manifest.name}",
        header=(
            '<p class="eyebrow">Denseport calibration report</p>\n'
            f"<h1>{escape(manifest.name)}</h1>\n"
            f'<p class="lead">{names}: {share:.1f} % of the multiply-adds in {_name(record)}, calibrated on '
            f"{count(record.images, 'image')}, "
            f'<time datetime="{created.isoformat()}">{created:%Y-%m-%d}</time></p>'
        ),
        main="\n".join(part for part in parts if part),
        footer=f"<p>Written by <code>denseport calibrate</code> on {created:%Y-%m-%d %H:%M %Z}.</p>",
    )
    write_atomic(path, text.encode())
    return path


def _verdicts(record: CalibrationRecord, verdicts: Mapping[str, QuantizationVerdict]) -> str:
    parts = [_verdict(name, verdict) for name, verdict in verdicts.items()]
    if not verdicts:
        parts.append(
            _box("fail", "Nothing was written", "nothing", f"No set of layers in {_name(record)} keeps the budget.")
        )
    parts += [
        f'<p class="warning" role="note"><strong>Warning:</strong> {escape(text)}</p>' for text in record.warnings
    ]
    return "\n".join(parts)


def _verdict(name: str, verdict: QuantizationVerdict) -> str:
    reason = f"{verdict.reason}. Measured on {verdict.machine}."
    if not verdict.accepted:
        reason += f" It runs only when it is asked for: --artifact {name}."
    kind, word = ("pass", "ACCEPTED") if verdict.accepted else ("fail", "REFUSED")
    return _box(kind, word, name, reason)


def _box(kind: str, word: str, name: str, reason: str) -> str:
    anchor = escape(f"verdict-{name}")
    return (
        f'<section class="verdict {kind}" aria-labelledby="{anchor}">\n<h2 id="{anchor}">{word}</h2>\n'
        f"<p>{escape(reason)}</p></section>"
    )


def _tiles(record: CalibrationRecord, verdicts: Mapping[str, QuantizationVerdict]) -> str:
    """The figures of the fastest artifact."""
    tiles = [(f"In {_name(record)}, % of the multiply-adds", f"{100 * record.search.quantization.share:.1f}", "")]
    for verdict in sorted(verdicts.values(), key=lambda verdict: -verdict.speed_ratio)[:1]:
        seconds = ", ".join(f"{name} {1000 * each:.0f} ms" for name, each in verdict.seconds.items())
        tiles.append(("Times as fast as FP32", f"{verdict.speed_ratio:.2f}", escape(seconds)))
        if verdict.miou is not None and verdict.fp32_miou is not None:
            tiles.append(("mIoU, %", f"{verdict.miou:.2f}", f"FP32 {verdict.fp32_miou:.2f}"))
        else:
            tiles.append(("Pixels with FP32's class, %", f"{100 * verdict.agreement:.2f}", ""))
    items = "".join(
        f'<div><dt>{name}</dt><dd class="figure">{figure}</dd><dd class="than">{note}</dd></div>'
        for name, figure, note in tiles
    )
    return f'<dl class="tiles">\n{items}\n</dl>'


def _hint(record: CalibrationRecord) -> str:
    where = count(record.labelled, "labelled image") if record.labelled else "calibration images"
    return (
        f"Each dot is a set of layers that was measured as a whole on {where}, from every candidate in "
        f"{_name(record)} down to the set that was chosen."
    )


def _plot(record: CalibrationRecord) -> str:
    """Steps of the search; the words in the table and the summary say the same."""
    budget, steps = record.budget, record.search.steps
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


def _layers(record: CalibrationRecord) -> str:
    rows = [_row(row) for row in sorted(record.search.rows(), key=lambda row: row["precision"] != "float")]
    head = "".join(
        f'<th scope="col"{kind}>{title}</th>'
        for title, kind in (
            ("Layer", ' class="text"'),
            ("Kind", ' class="text"'),
            ("Share, %", ""),
            ("Logits differ, %", ""),
            ("Classes change, %", ""),
            ("Computes in", ' class="text" style="min-width:24ch"'),
        )
    )
    body = f'<table class="pairs"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    hint = (
        "What stays float comes first. Share of the multiply-adds; what changes against FP32 when this layer alone is "
        "in 8 bits."
    )
    return section("layers", "Layers", hint, f'<div class="scroll" tabindex="0">{body}</div>')


def _row(row: Mapping[str, Any]) -> str:
    alone = row["alone"]
    error = f"{100 * alone['error']:.3f}" if alone else "–"
    change = f"{100 * (1 - alone['agreement']):.2f}" if alone else "–"
    where = f"float: {row['reason']}" if row["precision"] == "float" else row["precision"]
    return (
        f'<tr><th scope="row">{escape(row["group"])}</th><td class="text">{row["kind"]}</td>'
        f"<td>{100 * row['share']:.2f}</td><td>{error}</td><td>{change}</td>"
        f'<td class="text">{escape(where)}</td></tr>'
    )


def _smoothing(record: CalibrationRecord) -> str:
    if not record.smoothing:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(each.norm)}</th><td>{each.strength:g}</td>'
        f"<td>{100 * each.error_before:.2f}</td><td>{100 * each.error:.2f}</td></tr>"
        for each in record.smoothing
    )
    head = '<th scope="col" class="text">LayerNorm</th><th scope="col">Strength</th>'
    head += '<th scope="col">Error before, %</th><th scope="col">Error, %</th>'
    table = f'<table class="pairs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    body = f'<div class="scroll" tabindex="0">{table}</div>'
    hint = "How much of each LayerNorm's outliers was migrated into the next weights, and the error of their outputs."
    title = f"<summary>{count(len(record.smoothing), 'layer')}</summary>"
    return section("smoothing", "Smoothing", hint, f"<details>{title}{body}</details>")


def _facts(record: CalibrationRecord, verdicts: Mapping[str, QuantizationVerdict]) -> str:
    budget = record.budget
    limits = {"points of mIoU": budget.miou, "least agreement": budget.agreement, "error of the logits": budget.error}
    facts = {
        "Method": record.options.method,
        "Budget": ", ".join(f"{value:g} {name}" for name, value in limits.items() if value is not None),
        "Images": f'{record.images}<br><span class="hash">sha256 of the list {record.images_sha256}</span>',
        "Effort": f"{record.options.effort}, {record.seconds:.0f} s",
        "Packages": escape(record.versions),
    }
    for name, verdict in verdicts.items():
        facts[escape(name)] = escape(f"measured on {verdict.machine}, {verdict.cpus} CPUs, {verdict.session}")
    return section("facts", "How it was made", "", fact_list(facts))


def _name(record: CalibrationRecord) -> str:
    return record.options.precision.upper()


def _general(reason: str) -> str:
    """The reason without the layer's own figure, so that layers can share it."""
    if "nothing to gain" in reason:
        return "nothing to gain: next to no multiply-adds"
    return "over budget" if reason.startswith("over budget") else reason

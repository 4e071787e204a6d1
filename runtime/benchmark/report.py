"""The figures of ``denseport bench``: as data, as a table, as a page with the image of speed against accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.benchmark.load import Conditions
from denseport.runtime.benchmark.speed import FEWEST_ROUNDS, Latency, Result
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.decode import reading_record
from denseport.runtime.media.page import render
from denseport.runtime.media.plot import Axis, Series, chart
from denseport.runtime.system.files import write_atomic
from denseport.runtime.system.machine import inspect_machine
from denseport.runtime.system.text import number

__all__ = ["REPORTS", "as_dict", "recorded_accuracy", "speed_against_accuracy", "table", "write_report"]

REPORTS = ("bench.json", "bench.html")  # files that `write_report` writes
_TEMPLATE = Path(__file__).with_name("report.html")
# The figure of each task that a record has, and the least that the plot's axis spans, so that a hundredth of a point
# looks as little as it is.
_FIGURES = {"segmentation": ("mIoU", 2.0), "depth": ("AbsRel", 0.01)}


def as_dict(
    bundle: Bundle,
    results: Sequence[Result],
    starts: Mapping[str, Mapping[str, float]],
    image: NDArray[np.uint8],
    tensor: NDArray[np.float32],
    conditions: Conditions,
    warnings: Sequence[str],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    sessions = {each.name: each.session for each in results}
    return {
        "bundle": str(bundle.path),
        "model": bundle.manifest.name,
        "task": bundle.manifest.task,
        "measured": {
            "image": [image.shape[0], image.shape[1]],
            "network_input": list(tensor.shape),
            "rounds": len(results[0].session.rounds),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": inspect_machine().summary(),
        },
        "conditions": asdict(conditions),
        "warnings": list(warnings),
        "not_measured": dict(skipped),
        "rows": [_row(bundle, each, sessions, starts.get(each.name)) for each in results],
    }


def _row(
    bundle: Bundle, result: Result, sessions: Mapping[str, Latency], start: Mapping[str, float] | None
) -> dict[str, Any]:
    ratios = {name: result.session.times_as_fast_as(other) for name, other in sessions.items() if name != result.name}
    return {
        "artifact": result.name,
        "session": result.description,
        "session_ms": _percentiles(result.session),
        "whole_ms": _percentiles(result.whole),
        "samples": result.session.samples,
        "times_as_fast_as": {name: None if ratio.doubt else round(ratio.median, 3) for name, ratio in ratios.items()},
        "no_ratio": {name: ratio.doubt for name, ratio in ratios.items() if ratio.doubt},
        "images_per_second": {str(callers): round(rate, 3) for callers, rate in result.throughput.items()},
        "batch_images_per_second": {str(size): round(rate, 3) for size, rate in result.batches.items()},
        "start": {key: round(value, 1) for key, value in start.items()} if start else None,
        **recorded_accuracy(bundle, result.name),
    }


def recorded_accuracy(bundle: Bundle, name: str) -> dict[str, float | None]:
    """An artifact's mIoU, percent, or AbsRel by its name; None where it was not measured.

    Raises:
        BundleError: a damaged record.
    """
    artifact, figure = bundle.manifest.artifacts.get(name), _FIGURES[bundle.manifest.task][0]
    with reading_record(f"{bundle.path}: {name}"):
        value = artifact.record.get("accuracy", {}).get(figure) if artifact else None
        return {figure: None if value is None else float(value)}


def _percentiles(latency: Latency) -> dict[str, float | None]:
    found = {"p50": latency.median, "p90": latency.percentile(90), "p99": latency.percentile(99)}
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def table(report: Mapping[str, Any]) -> str:
    """For the terminal."""
    measured = report["measured"]
    height, width = measured["image"]
    rows = [_head(report), *(_cells(row, report) for row in report["rows"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    shape = " x ".join(map(str, measured["network_input"]))
    lines = [
        f"{report['model']}, image {width} x {height}, network input {shape}",
        *(f"{name:10} {text}" for name, text in measured["machine"].items()),
        "",
    ]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *cells)))
    lines.append("")
    for row in report["rows"]:
        lines.append(f"{row['artifact']}: {row['session']}; {row['samples']} runs of the session")
        ratios = row["times_as_fast_as"].items()
        lines += [f"  {value:.2f} times as fast as {name}" for name, value in ratios if value is not None]
        if measured["rounds"] >= FEWEST_ROUNDS:  # else a warning says it once
            lines += [f"  no ratio to {name}: {reason}" for name, reason in row["no_ratio"].items()]
        lines += _rates("images/s with this many callers at once:", row["images_per_second"])
        lines += _rates("images/s of the session in batches of", row["batch_images_per_second"])
    lines += [f"{name}: not measured: {reason}" for name, reason in report["not_measured"].items()]
    joules = report["conditions"]["energy_joules"]
    if joules is not None:
        lines.append(f"energy of GPU 0 over the whole measurement: {joules:.0f} J")
    lines += [f"warning: {text}" for text in report["warnings"]]
    return "\n".join(lines)


def _head(report: Mapping[str, Any]) -> tuple[str, ...]:
    times = ("session p50", "p90", "p99 ms", "whole p50", "p90", "p99 ms", "start ms", "memory MiB")
    return ("artifact", *times, _FIGURES[report["task"]][0])


def _cells(row: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, ...]:
    figure = _FIGURES[report["task"]][0]
    session, whole, start = row["session_ms"], row["whole_ms"], row["start"]
    return (
        row["artifact"],
        *(number(value, 1) for value in (*session.values(), *whole.values())),
        number(start and sum(start[name] for name in ("import_ms", "open_ms", "first_ms")), 0),
        number(start and start.get("peak_mib"), 0),
        number(row[figure], 4 if figure == "AbsRel" else 2),
    )


def _rates(words: str, rates: Mapping[str, float]) -> list[str]:
    return [f"  {words} " + ", ".join(f"{n}: {rate:.2f}" for n, rate in rates.items())] if rates else []


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write ``bench.json`` and ``bench.html``, and return the page's path.

    Raises:
        OutputError: the place cannot be written.
    """
    write_atomic(folder / "bench.json", (json.dumps(report, indent=1) + "\n").encode())
    rows, (figure, least) = report["rows"], _FIGURES[report["task"]]
    drawn = [row for row in rows if row[figure] is not None]
    page = render(
        _TEMPLATE,
        report=report,
        plot=speed_against_accuracy(drawn, figure, least),
        unknown=[row["artifact"] for row in rows if row not in drawn],
        head=_head(report),
        rows=[_cells(row, report) for row in rows],
        printed=table(report),
    )
    write_atomic(folder / "bench.html", page.encode())
    return folder / "bench.html"


def speed_against_accuracy(rows: Sequence[Mapping[str, Any]], figure: str = "mIoU", least: float = 2.0) -> str:
    """Speed against accuracy as an SVG, each artifact a point; "" without one.

    Args:
        rows: as of `as_dict`, none without the figure.
        figure: "mIoU" or "AbsRel".
        least: what its axis spans at least, so that a hundredth of a point looks as little as it is.
    """
    if not rows:
        return ""
    is_miou = figure == "mIoU"
    points = [(1000 / row["whole_ms"]["p50"], float(row[figure])) for row in rows]
    shown = [f"{y:.2f} %" if is_miou else f"{y:.4f}" for _, y in points]
    names = [str(row["artifact"]) for row in rows]
    told = zip(names, shown, points, strict=True)
    words = "; ".join(f"{name}, {text} {figure}, {x:.2f} images/s" for name, text, (x, _) in told)
    return chart(
        f"Speed against accuracy. {words}",
        Axis(f"images/s, one caller, image to {'mask' if is_miou else 'depth'}", zero=True),
        Axis("mIoU, %" if is_miou else "AbsRel, less is better", least=least),
        [Series("", points, names, line=False)],
    )

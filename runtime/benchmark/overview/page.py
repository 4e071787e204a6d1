"""The page of a report, ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.benchmark.overview.words import megabytes, standing, summary
from denseport.runtime.benchmark.report import speed_against_accuracy
from denseport.runtime.bundle.comparison import comparing_command, proof_here
from denseport.runtime.evaluation.report import gallery
from denseport.runtime.media.page import render
from denseport.runtime.system.files import write_atomic
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.benchmark.overview.collect import Overview, Row

__all__ = ["write_page"]

_TEMPLATE = Path(__file__).with_name("page.html")
_LOST = 3  # classes that are named for each artifact


def write_page(folder: Path, overview: Overview) -> Path:
    """Write ``folder/report.html``, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    manifest = overview.bundle.manifest
    drawn = [{**row.speed, "mIoU": row.found.mIoU} for row in overview.rows]
    text = render(
        _TEMPLATE,
        overview=overview,
        model=manifest,
        summary=summary(overview),
        plot=speed_against_accuracy(drawn),
        rows=[{"row": row, "standing": standing(row), "size": megabytes(row.bytes)} for row in overview.rows],
        losses={row.name: _losses(row) for row in overview.rows if not row.is_fp32},
        proofs={row.name: _proofs(row, overview) for row in overview.rows},
        articles=[*gallery(overview.worst, overview.shown.name, manifest)],
    )
    path = folder / "report.html"
    write_atomic(path, text.encode())
    return path


def _losses(row: Row) -> list[dict[str, Any]]:
    """The classes that lost most IoU, the largest loss first."""
    fp32 = row.found.measurement.fp32_confusion
    if fp32 is None:
        return []
    names = tuple(score.name for score in row.found.per_class)
    pairs = zip(fp32.scores(names).per_class, row.found.per_class, strict=True)
    losses = [(old.IoU - new.IoU, old, new) for old, new in pairs]
    lost = [each for each in losses if each[0] >= 0.005]  # NaN, of a class in neither, is not
    lost.sort(key=lambda each: -each[0])
    return [
        {"name": old.name, "before": old.IoU, "after": new.IoU, "points": points} for points, old, new in lost[:_LOST]
    ]


def _proofs(row: Row, overview: Overview) -> list[str]:
    """What the artifact was compared with, before and today, and on which arithmetic."""
    artifact, found = row.artifact, row.found
    on_gpu, floats = found.measurement.on_gpu, artifact.float_precision
    today = proof_here("labels", "accuracy", floats, on_gpu=on_gpu, target=artifact.target)
    images = f"{count(found.measurement.images, 'image')}, on this page"
    told = [f"labels of {images}: {today.arithmetic.upper()}"]
    against = {"torch": "the checkpoint in PyTorch", "onnx": "the imported file", "fp32": "FP32", "labels": "labels"}
    for each in artifact.proof:
        where = {"emulated": ", emulated on a CPU", today.machine: ""}.get(each.machine, f", on {each.machine}")
        told.append(f"{against[each.against]}, {each.date[:10]}: {each.arithmetic.upper()}{where}")
    if not (artifact.is_compared or row.own_arithmetic):
        command = comparing_command(row.name, overview.bundle.manifest)
        told.append(f"never compared in {floats.upper()}; this does it: {command}")
    return list(dict.fromkeys(told))  # an audit and a verdict may say the same

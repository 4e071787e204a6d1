"""The report of ``denseport eval``, made of the pieces of `denseport.runtime.media.page`.

Whatever comes from a file or a person is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.evaluation.failures import WorstImage
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.evaluation.measure import Measurement
from denseport.runtime.evaluation.metrics import ClassScore, Scores
from denseport.runtime.media.overlay import class_shares, palette_image
from denseport.runtime.media.page import count, fact_list, number, page, section, signed
from denseport.runtime.system.files import write_atomic

__all__ = ["ReportInput", "write_report"]

_ROWS = 20  # of a table before the rest is folded away
_PAIRS = 12
_NAMED = 3  # classes that the text for an image names


@dataclass(frozen=True)
class ReportInput:
    """What the page shows."""

    manifest: Manifest
    artifact: str
    evaluation: Measurement
    scores: Scores
    fp32_scores: Scores | None  # of FP32 on the same images
    verdict: Verdict | None  # None: measured without a gate
    protocol: str  # in words
    warnings: Sequence[str]  # such as another protocol than the published number's
    command: str  # the command line
    environment: Mapping[str, str]  # machine and versions
    images: Sequence[WorstImage]
    explanation: Sequence[str] = ()  # lines of --explain
    created: datetime = field(default_factory=lambda: datetime.now(UTC))


def write_report(folder: Path, data: ReportInput) -> Path:
    """Write ``folder/report.html``, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    parts = (_verdict, _tiles, _explanation, _classes, _pairs, _gallery, _running, _provenance)
    word = {None: "Report", True: "PASS", False: "FAIL"}[data.verdict.passed if data.verdict else None]
    text = page(
        title=f"{word}: {data.artifact} of {data.manifest.name}",
        header=_header(data),
        main="\n".join(part(data) for part in parts),
        footer=f"<p>Written by <code>denseport eval</code> on {data.created:%Y-%m-%d %H:%M %Z}.</p>",
    )
    path = folder / "report.html"
    write_atomic(path, text.encode())
    return path


# The sections, from the top of the page to its end


def _header(data: ReportInput) -> str:
    manifest, images = data.manifest, len(data.evaluation.names)
    artifact = manifest.artifacts.get(data.artifact)
    precision = f" ({escape(artifact.precision.upper())})" if artifact else ""
    return (
        '<p class="eyebrow">Denseport accuracy report</p>\n'
        f"<h1>{escape(manifest.name)}</h1>\n"
        f'<p class="lead">{escape(data.artifact)}{precision}, measured on {count(images, "image")}, '
        f'<time datetime="{data.created.isoformat()}">{data.created:%Y-%m-%d}</time></p>'
    )


def _verdict(data: ReportInput) -> str:
    verdict = data.verdict
    if verdict is None:
        kind, word, body = "none", "Not judged", "<p>Measured without a gate; <code>--gate</code> sets one.</p>"
    else:
        kind, word = ("pass", "PASS") if verdict.passed else ("fail", "FAIL")
        body = _list(verdict.reasons, "reasons") + _comparison(verdict) + _list(verdict.notes, "notes")
    warnings = "".join(
        f'<p class="warning" role="note"><strong>Warning:</strong> {escape(text)}</p>\n' for text in data.warnings
    )
    return (
        f'<section class="verdict {kind}" aria-labelledby="verdict">\n<h2 id="verdict">{word}</h2>\n{body}</section>\n'
        f"{warnings}"
    )


def _comparison(verdict: Verdict) -> str:
    words = f"<p>Compared with {escape(verdict.compared_with)}: "
    if math.isnan(verdict.delta):
        return words + "no difference can be given.</p>\n"
    words += f"<strong>{signed(verdict.delta, 3)} points</strong> of mIoU, at most {verdict.budget:g} may be lost."
    if verdict.interval is not None:
        low, high = verdict.interval
        words += f" 95 % interval: {signed(low, 3)} to {signed(high, 3)}."
    return f"{words}</p>\n{_axis(verdict)}"


def _axis(verdict: Verdict) -> str:
    """The difference, its interval and the budget on one line; the words beside it say the same."""
    delta, (low, high) = verdict.delta, verdict.interval or (verdict.delta, verdict.delta)
    left, right = min(delta, low, -verdict.budget), max(delta, high, verdict.budget, 0)
    margin = 0.06 * (right - left) or 1

    def at(value: float) -> str:
        return f"{100 * (value - left + margin) / (right - left + 2 * margin):.2f}%"

    side = "left" if delta - left < margin else "right" if right - delta < margin else ""
    return (
        '<div class="axis" aria-hidden="true"><span class="line"></span>'
        f'<span class="room" style="left:{at(-verdict.budget)}"></span>'
        f'<span class="zero" style="left:{at(0)}"></span>'
        f'<span class="interval" style="left:{at(low)};right:calc(100% - {at(high)})"></span>'
        f'<span class="dot" style="left:{at(delta)}"></span>'
        f'<span class="label above {side}" style="left:{at(delta)}">{signed(delta)}</span>'
        f'<span class="label below" style="left:{at(0)}">0</span></div>\n'
    )


def _tiles(data: ReportInput) -> str:
    names = {"mIoU": "mean IoU", "mAcc": "mean accuracy of the classes", "aAcc": "accuracy of all pixels"}
    tiles = []
    for key, meaning in names.items():
        value = getattr(data.scores, key)
        than = ""
        if data.fp32_scores is not None:
            other = getattr(data.fp32_scores, key)
            than = f'<dd class="than">FP32 {number(other)} {_delta(value - other)}</dd>'
        elif key == "mIoU" and data.verdict is not None:
            than = f'<dd class="than">{_delta(data.verdict.delta)} against the figure above</dd>'
        tiles.append(
            f'<div><dt><abbr title="{meaning}">{key}</abbr>, %</dt><dd class="figure">{number(value)}</dd>{than}</div>'
        )
    return f'<dl class="tiles">\n{"".join(tiles)}\n</dl>'


def _explanation(data: ReportInput) -> str:
    if not data.explanation:
        return ""
    lines = "\n".join(escape(line) for line in data.explanation)
    return section("explanation", "Where the points went", "", f"<pre>{lines}</pre>")


def _classes(data: ReportInput) -> str:
    with_fp32 = data.fp32_scores is not None
    pairs = _sorted_classes(data.scores, data.fp32_scores)
    absent = len(data.scores.per_class) - len(pairs)
    hint = "The classes that lost most against FP32 come first; the mark on a bar is FP32's IoU."
    if not with_fp32:
        hint = "The lowest come first."
    if absent:
        hint += f" Left out, as in no truth and no prediction: {count(absent, 'class', 'es')}."
    total = max(1, sum(score.pixels for score in data.scores.per_class))
    rows = [_class_row(own, fp32, total) for own, fp32 in pairs]
    head = '<tr><th scope="col" class="text">Class</th><th scope="col">IoU, %</th>'
    head += '<th scope="col">FP32, %</th><th scope="col">Change</th>' if with_fp32 else '<th scope="col">Acc, %</th>'
    head += '<th scope="col" class="wide">Share of truth</th></tr>'
    table = f'<table class="classes"><thead>{head}</thead><tbody>\n{{}}\n</tbody></table>'
    text = table.format("\n".join(rows[:_ROWS]))
    if len(rows) > _ROWS:
        rest = table.format("\n".join(rows[_ROWS:]))
        text += f"\n<details><summary>{count(len(rows) - _ROWS, 'more class', 'es')}</summary>\n{rest}\n</details>"
    return section("classes", "IoU of each class", hint, text)


def _sorted_classes(scores: Scores, fp32: Scores | None) -> list[tuple[ClassScore, ClassScore | None]]:
    """Classes that occur, biggest loss first; without FP32 to lose against, lowest IoU first."""
    if fp32 is None:
        found = [row for row in scores.per_class if not math.isnan(row.IoU)]
        return [(row, None) for row in sorted(found, key=lambda row: row.IoU)]

    def rank(pair: tuple[ClassScore, ClassScore]) -> tuple[float, float]:
        change = pair[0].IoU - pair[1].IoU  # NaN where only one of the two has the class
        return (0.0 if math.isnan(change) else change), (-1.0 if math.isnan(pair[0].IoU) else pair[0].IoU)

    both = [
        pair
        for pair in zip(scores.per_class, fp32.per_class, strict=True)
        if not (math.isnan(pair[0].IoU) and math.isnan(pair[1].IoU))
    ]
    return [*sorted(both, key=rank)]


def _class_row(own: ClassScore, fp32: ClassScore | None, total: int) -> str:
    bar = "" if math.isnan(own.IoU) else f'<i style="width:{own.IoU:.2f}%"></i>'
    if fp32 is not None and not math.isnan(fp32.IoU):
        bar += f'<b style="left:{fp32.IoU:.2f}%"></b>'
    cells = f"<td>{number(own.IoU)}</td>"
    if fp32 is None:
        cells += f"<td>{number(own.Acc)}</td>"
    else:
        cells += f"<td>{number(fp32.IoU)}</td><td>{_delta(own.IoU - fp32.IoU)}</td>"
    share = f"{100 * own.pixels / total:.2f} %" if own.pixels else "none"
    share = "&lt;0.01 %" if share == "0.00 %" else share
    return (
        f'<tr><th scope="row"><div class="class"><span>{escape(own.name)}</span>'
        f'<span class="bar" aria-hidden="true">{bar}</span></div></th>{cells}<td class="wide">{share}</td></tr>'
    )


def _pairs(data: ReportInput) -> str:
    confusion, fp32 = data.evaluation.confusion, data.evaluation.fp32_confusion
    wrong = confusion.matrix.copy()
    np.fill_diagonal(wrong, 0)
    label = np.maximum(confusion.label, 1)
    rows = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]:
        truth, predicted = divmod(int(flat), confusion.n_classes)
        pixels = int(wrong[truth, predicted])
        if not pixels:
            break
        cells = f"<td>{pixels:,}</td><td>{100 * pixels / label[truth]:.1f} %</td>"
        if fp32 is not None:
            cells += f"<td>{100 * fp32.matrix[truth, predicted] / label[truth]:.1f} %</td>"
        rows.append(
            f'<tr><th scope="row">{_named(data.manifest, truth)}</th>'
            f'<td class="text">{_named(data.manifest, predicted)}</td>{cells}</tr>'
        )
    if not rows:
        return section("pairs", "Worst confusions", "No pixel was given a wrong class.", "")
    head = '<th scope="col" class="text">Truth</th><th scope="col" class="text">Predicted</th>'
    head += '<th scope="col">Pixels</th><th scope="col">Of the truth</th>'
    head += '<th scope="col">FP32</th>' if fp32 is not None else ""
    body = f'<table class="pairs"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    hint = "The pairs with the most pixels, and the share of the true class that they take."
    return section("pairs", "Worst confusions", hint, f'<div class="scroll" tabindex="0">{body}</div>')


def _gallery(data: ReportInput) -> str:
    if not data.images:
        return ""
    with_fp32 = any(image.fp32_mask is not None for image in data.images)
    if with_fp32:
        hint = "Those that differ most from FP32. In the last view:"
        key = {"lost": "right in FP32, wrong here", "gained": "wrong in FP32, right here"}
        key["changed"] = "another class, right in neither"
    else:
        hint, key = "Those with the lowest pixel accuracy. In the last view:", {"lost": "wrong"}
    items = "".join(f"<li>{_swatch(f'var(--{name})', words)}</li>" for name, words in key.items())
    articles = "\n".join(_article(image, data) for image in data.images)
    return section("images", "Worst images", hint, f'<ul class="key">{items}</ul>\n{articles}')


def _article(image: WorstImage, data: ReportInput) -> str:
    facts = f"{number(image.accuracy, 1)} % of the pixels right"
    if image.fp32_accuracy is not None:
        facts += f"; FP32 {number(image.fp32_accuracy, 1)} %"
    if image.disagreement is not None:
        facts += f"; {image.disagreement:.1f} % differ from FP32"
    masks = [("Truth", image.truth), ("FP32", image.fp32_mask), (data.artifact, image.mask)]
    views = [_figure("Image", image.name, _jpeg(image.image))]
    for caption, mask in masks:
        if mask is not None:
            views.append(_figure(caption, _words(caption, mask, data.manifest), _mask_png(mask, data.manifest)))
    views.append(_figure("Difference", f"Where {facts}", _png(image.difference())))
    legend = "".join(f"<li>{item}</li>" for item in _legend(image, data.manifest))
    return (
        f'<article><h3>{escape(image.name)}</h3><p class="facts">{facts}</p>\n'
        f'<div class="views" style="--views:{len(views)}">{"".join(views)}</div>\n'
        f'<ul class="key" aria-label="Classes in this image">{legend}</ul></article>'
    )


def _legend(image: WorstImage, manifest: Manifest) -> Iterator[str]:
    """The classes of all the masks of an image, largest first."""
    masks = [mask for mask in (image.truth, image.fp32_mask, image.mask) if mask is not None]
    shares: dict[int, float] = {}
    for mask in masks:
        for index, share in class_shares(mask, len(manifest.classes)):
            shares[index] = max(share, shares.get(index, 0))
    for index in sorted(shares, key=lambda index: -shares[index]):
        yield _named(manifest, index)
    if (image.truth == np.iinfo(image.truth.dtype).max).any():
        yield _swatch("#000", "not labelled")


def _running(data: ReportInput) -> str:
    run, reference = data.evaluation, data.manifest.reference
    facts = {"Protocol": escape(data.protocol)}
    if reference is not None:
        published = [(reference.mIoU, "single scale"), (reference.mIoU_ms_flip, "multi-scale and flip")]
        figures = ", ".join(f"{value:.2f} % ({how})" for value, how in published if value is not None)
        facts["Published mIoU"] = escape(f"{figures or 'none'}: {reference.preset} on {reference.dataset}")
        facts["Published protocol"] = escape(reference.protocol)
    if run.measured and run.seconds > 0:
        facts["Speed"] = f"{run.measured / run.seconds:.2f} images/s"
        milliseconds = 1000 * run.session_seconds / run.measured
        share = 100 * run.session_seconds / run.seconds
        facts["In the session"] = f"{milliseconds:.1f} ms an image, {share:.0f} % of the time"
    resumed = len(run.names) - run.measured
    if resumed:
        facts["Resumed"] = f"{count(resumed, 'image')} measured by an earlier run; their time is not counted"
    return section("running", "Protocol and speed", "", fact_list(facts))


def _provenance(data: ReportInput) -> str:
    source, artifact = data.manifest.provenance, data.manifest.artifacts.get(data.artifact)
    facts = {"Command": f"<code>{escape(data.command)}</code>", "Date": f"{data.created:%Y-%m-%d %H:%M:%S %Z}"}
    for name, digest in (artifact.files if artifact else {}).items():
        facts[escape(name)] = f'<span class="hash">sha256 {escape(digest)}</span>'
    if "checkpoint" in source:
        digest = escape(str(source.get("sha256", "unknown")))
        facts["Checkpoint"] = f'{escape(str(source["checkpoint"]))}<br><span class="hash">sha256 {digest}</span>'
    exporters = [f"{name} {source[name]}" for name in ("denseport", "torch", "onnx") if name in source]
    if exporters:
        facts["Exported with"] = escape(", ".join(exporters))
    facts |= {escape(name[:1].upper() + name[1:]): escape(text) for name, text in data.environment.items()}
    return section("provenance", "How to get this again", "", fact_list(facts))


# Pieces of HTML; those that take text from outside escape it


def _list(items: Sequence[str], kind: str) -> str:
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="{kind}">{lines}</ul>\n' if lines else ""


def _named(manifest: Manifest, index: int) -> str:
    """A class with its colour."""
    red, green, blue = manifest.palette[index]
    colour = f"#{red:02x}{green:02x}{blue:02x}"
    return _swatch(colour, escape(manifest.classes[index]))


def _swatch(colour: str, text: str) -> str:
    return f'<span class="named"><span class="swatch" style="background:{colour}"></span>{text}</span>'


def _figure(caption: str, words: str, source: str) -> str:
    return f'<figure><img src="{source}" alt="{escape(words)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _words(caption: str, mask: NDArray[Any], manifest: Manifest) -> str:
    """What a mask shows, for those who do not see it."""
    shares = class_shares(mask, len(manifest.classes))[:_NAMED]
    return f"{caption}: " + ", ".join(
        f"{manifest.classes[index].strip()} {100 * share:.0f} %" for index, share in shares
    )


def _mask_png(mask: NDArray[Any], manifest: Manifest) -> str:
    return _png(palette_image(mask, manifest.palette))


def _png(image: NDArray[np.uint8]) -> str:
    return _data_uri("png", cv2.imencode(".png", image)[1])


def _jpeg(image: NDArray[np.uint8]) -> str:
    return _data_uri("jpeg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def _data_uri(kind: str, data: Any) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _delta(value: float) -> str:
    """A change, coloured by its direction."""
    if math.isnan(value):
        return "–"
    text = signed(value)
    kind = {"−": "loss", "+": "gain"}.get(text[0], "same")
    return f'<span class="{kind}">{text}</span>'

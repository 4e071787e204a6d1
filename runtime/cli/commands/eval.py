"""``denseport eval``: the accuracy of an artifact, and whether it may ship."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import path, real, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.evaluation.comparison import Gate
    from denseport.runtime.evaluation.evaluate import Evaluation
    from denseport.runtime.evaluation.gate import Verdict

HELP = "measure accuracy on labelled images, and pass or fail the artifact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    parser.add_argument("--artifact", metavar="NAME", help="what is measured; default: the FP32 one")
    parser.add_argument(
        "--protocol",
        default="reference",
        metavar="NAME",
        help="reference (as the checkpoint was tested), ms-flip, ms-flip:1.x, slide, slide:CROP:STRIDE, fixed:WxH",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="ROOT", type=path, required=True, help="ADE20K folder, or one of images")
    data.add_argument("--masks", metavar="DIR", type=path, help="folder of masks; --data is then the images'")
    data.add_argument("--list", metavar="FILE", type=path, help="names or pairs to take, one a line, below --data")
    data.add_argument("--split", default="validation", help="of the ADE20K layout; default: %(default)s")
    data.add_argument(
        "--reduce-zero-label",
        action=argparse.BooleanOptionalAction,
        help="masks count classes from 1 and 0 is ignored; default: as the bundle's data set does",
    )
    data.add_argument(
        "--ignore-index", type=whole(0), default=255, metavar="N", help="ignored label; default: %(default)s"
    )
    data.add_argument("--limit", type=whole(1), metavar="N", help="only the first N images")
    _add_gate(parser.add_argument_group("gate"))
    work = parser.add_argument_group("running")
    work.add_argument("--workers", type=whole(1), default=2, metavar="N", help="threads beside the network; default: 2")
    work.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads of the network; default: all")
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same measurement")
    work.add_argument("--state", metavar="FILE", type=path, help="where a run under way is kept; default: a cache")
    way = work.add_mutually_exclusive_group()
    way.add_argument("--shard", type=_part, metavar="I/N", help="only every Nth image from the Ith, kept in --state")
    way.add_argument("--merge", nargs="+", type=path, metavar="STATE", help="measure nothing: add up shards' states")
    way.add_argument("--ray", metavar="ADDRESS", help="spread over a Ray cluster, or 'local' for one on this machine")
    result = parser.add_argument_group("result")
    result.add_argument("--report", metavar="DIR", type=path, help="write a self-contained HTML page there")
    result.add_argument("--explain", action="store_true", help="say which step lost what, and name the culprit")
    result.add_argument("--checkpoint", metavar="FILE", type=path, help="the bundle's checkpoint, for --explain")
    result.add_argument("--record", action="store_true", help="keep the result in the bundle's manifest")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_gate(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gate",
        metavar="WITH",
        help="compare with: reference (the published mIoU), the FP32 artifact (model.onnx), or a mIoU in percent",
    )
    group.add_argument(
        "--budget", type=real(0, 100), metavar="POINTS", help="mIoU that may be lost; default: by precision"
    )
    group.add_argument(
        "--agreement", type=real(0, 1), metavar="SHARE", help="least share of pixels with FP32's class, 0 to 1"
    )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 2/8")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.evaluation.comparison import Gate
    from denseport.runtime.evaluation.evaluate import evaluate
    from denseport.runtime.evaluation.task import LongRun
    from denseport.runtime.system.progress import Terminal

    _check(arguments)
    gate = None
    if arguments.gate is not None:
        gate = Gate(arguments.gate, arguments.budget, arguments.agreement)
    if arguments.shard is not None:
        return _shard(arguments, gate)
    found = evaluate(
        arguments.bundle,
        arguments.data,
        artifact=arguments.artifact,
        protocol=arguments.protocol,
        gate=gate,
        **_data(arguments),
        limit=arguments.limit,
        threads=arguments.threads,
        workers=arguments.workers,
        run=LongRun(arguments.state, arguments.resume, tuple(arguments.merge or ()), arguments.ray),
        checkpoint=arguments.checkpoint,
        report=arguments.report,
        record=arguments.record,
        progress=Terminal(),
    )
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else _table(found))
    return 0 if found.gate is None or found.gate.passed else 1


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    from denseport.runtime.errors import InputError

    if arguments.explain and arguments.checkpoint is None:
        raise InputError("--explain compares with the checkpoint", "Name it with --checkpoint FILE.")
    if arguments.checkpoint is not None and not arguments.explain:
        raise InputError("--checkpoint is for an explanation", "Add --explain.")
    for name in ("budget", "agreement"):
        if arguments.gate is None and getattr(arguments, name) is not None:  # else exit code 0 would read as a pass
            raise InputError(f"--{name} is a gate's: without one nothing is judged", "Add --gate.")
    if arguments.shard is None:
        return
    if arguments.state is None:
        raise InputError("--shard keeps its counts for the merge", "Name their file with --state FILE.")
    for name in ("report", "explain", "record"):
        if getattr(arguments, name):
            raise InputError(f"--{name} needs all images, not a shard", f"Give --{name} with --merge.")


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "masks": arguments.masks,
        "list_file": arguments.list,
        "split": arguments.split,
        "reduce_zero_label": arguments.reduce_zero_label,
        "ignore_index": arguments.ignore_index,
    }


def _shard(arguments: argparse.Namespace, gate: Gate | None) -> int:
    from dataclasses import replace

    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.evaluation.dataset import open_dataset
    from denseport.runtime.evaluation.task import evaluate_shard, refuse_state
    from denseport.runtime.system.progress import Terminal

    refuse_state(arguments.state, resume=arguments.resume)
    bundle, options = Bundle(arguments.bundle), _data(arguments)
    if options["reduce_zero_label"] is None:
        options["reduce_zero_label"] = bundle.manifest.reduce_zero_label
    dataset = open_dataset(arguments.data, **options)
    found = evaluate_shard(
        bundle,
        replace(dataset, samples=dataset.samples[: arguments.limit]),
        arguments.shard,
        arguments.state,
        artifact=arguments.artifact,
        protocol=arguments.protocol,
        gate=gate,
        threads=arguments.threads,
        workers=arguments.workers,
        resume=arguments.resume,
        progress=Terminal(),
    ).to_dict()
    text = "shard {shard}: {images} of {of} images, kept in {state}; add the shards up with --merge"
    print(json.dumps(found, indent=1) if arguments.json else text.format(**found))
    return 0


def _table(found: Evaluation) -> str:
    rows = [row for row in found.per_class if row.IoU == row.IoU]  # NaN: in neither map
    width = max([len(row.name) for row in rows] + [5])
    lines = [f"{'class':{width}}  {'IoU':>6}  {'Acc':>6}  {'pixels':>12}"]
    for row in rows:
        accuracy = f"{row.Acc:6.2f}" if row.Acc == row.Acc else f"{'-':>6}"
        lines.append(f"{row.name:{width}}  {row.IoU:6.2f}  {accuracy}  {row.pixels:12,}")
    absent = len(found.per_class) - len(rows)
    if absent:
        lines.append(
            f"(left out, as neither the masks nor the predictions hold any of it: {count(absent, 'class', 'es')})"
        )
    images = count(len(found.measurement.names), "image")
    lines += ["", f"{found.artifact}: {found.session}"]
    lines.append(f"protocol {found.protocol.name} ({found.protocol.description}), {images}")
    if found.reduce_zero_label:
        lines.append("masks: classes count from 1, 0 is ignored")
    lines.append(f"mIoU {found.mIoU:.2f}   mAcc {found.mAcc:.2f}   aAcc {found.aAcc:.2f}")
    result = found.to_dict()
    if result["seconds"]:
        share = 100 * result["session_share"]
        lines.append(f"{result['images_per_second']:.2f} images/s, {share:.0f} % of it in the network")
    lines += [f"warning: {text}" for text in found.warnings]
    lines += (found.explanation or {}).get("lines", [])
    if found.report is not None:
        lines.append(f"report: {found.report}")
    return "\n".join(lines + ([] if found.gate is None else _verdict_lines(found.gate)))


def _verdict_lines(verdict: Verdict) -> list[str]:
    delta = "" if verdict.delta != verdict.delta else f", {verdict.delta:+.3f} points"
    lines = [f"{'PASS' if verdict.passed else 'FAIL'}: against {verdict.compared_with}{delta}"]
    if verdict.interval is not None:
        low, high = verdict.interval
        lines.append(f"  95 % confidence: {low:+.3f} to {high:+.3f} points; budget {verdict.budget:g}")
    return lines + [f"  {text}" for text in (*verdict.reasons, *verdict.notes)]

"""``denseport eval``: the accuracy of an artifact, and whether it may ship."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING

from denseport.runtime.cli.arguments import add_bundle, open_bundle, path, real, refuse_given, whole
from denseport.runtime.cli.data_options import add_data_options, data_options
from denseport.runtime.cli.eval_depth import add_depth_options, check_task, evaluate_depths, workers
from denseport.runtime.cli.eval_temperature import fit_and_print
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.evaluation.gate import Verdict
    from denseport.runtime.evaluation.report import Evaluation

_OF_GATE = ("budget", "agreement", "strict", "max_boundary_drop", "max_class_drop", "max_ece")
HELP = "measure accuracy on labelled images or measured depths, and pass or fail the artifact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--artifact", metavar="NAME", help="what is measured; default: the FP32 artifact")
    parser.add_argument(
        "--protocol",
        default="reference",
        metavar="NAME",
        help="reference (as the checkpoint was tested), ms-flip, ms-flip:1.x, slide, slide:CROP:STRIDE, fixed:WxH",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="ROOT", type=path, required=True, help="data set, or folder of images")
    add_data_options(data)
    add_depth_options(parser.add_argument_group("data of a depth network"))
    _add_gate(parser.add_argument_group("gate"))
    work = parser.add_argument_group("running")
    work.add_argument("--workers", type=whole(1), metavar="N", help="threads beside the network; default: 2")
    work.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads of the network; default: all")
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same measurement")
    work.add_argument(
        "--state",
        metavar="FILE",
        type=path,
        help="counts of an unfinished run; default: in the cache",
    )
    way = work.add_mutually_exclusive_group()
    way.add_argument("--shard", type=_part, metavar="I/N", help="measure every Nth image from the Ith, into --state")
    way.add_argument("--merge", nargs="+", type=path, metavar="STATE", help="add up the states of shards")
    way.add_argument("--ray", metavar="ADDRESS", help="spread over a Ray cluster, or 'local' for one on this machine")
    result = parser.add_argument_group("result")
    result.add_argument("--boundaries", action="store_true", help="also the boundary F-score (2 pixels)")
    result.add_argument("--ece", action="store_true", help="also the expected calibration error of the scores")
    words = "fit the temperature of the scores on these images, keep it in the bundle, and measure nothing else"
    result.add_argument("--fit-temperature", action="store_true", help=words)
    result.add_argument("--report", metavar="DIR", type=path, help="write a self-contained HTML page there")
    result.add_argument("--explain", action="store_true", help="say which step lost how much accuracy")
    result.add_argument("--checkpoint", metavar="FILE", type=path, help="the bundle's checkpoint, for --explain")
    result.add_argument("--record", action="store_true", help="write the result into the bundle's manifest")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_gate(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gate",
        metavar="WITH",
        help="compare with reference (the published mIoU), the FP32 artifact (model.onnx), or a mIoU in percent; of "
        "depth with the FP32 artifact or an AbsRel",
    )
    group.add_argument(
        "--budget",
        type=real(0, 100),
        metavar="POINTS",
        help="mIoU that may be lost, or percent by which AbsRel may grow; default: by precision",
    )
    group.add_argument(
        "--agreement",
        type=real(0, 1),
        metavar="SHARE",
        help="smallest share of pixels (0 to 1) that get the class that FP32 gives",
    )
    limits = (
        ("--max-boundary-drop", "POINTS", "boundary F-score that may be lost against FP32; default: any"),
        ("--max-class-drop", "POINTS", "IoU that any one class may lose against FP32; default: any"),
        ("--max-ece", "PERCENT", "largest expected calibration error of the scores; default: any"),
    )
    for option, unit, words in limits:
        group.add_argument(option, type=real(0, 100), metavar=unit, help=words)
    words = "fail where a class of the model is in no mask, or more than a tenth of the labels is ignored"
    group.add_argument("--strict", action="store_true", help=words)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 2/8")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.evaluation.evaluate import evaluate, open_data
    from denseport.runtime.evaluation.gate import Gate
    from denseport.runtime.evaluation.state import Extras
    from denseport.runtime.evaluation.task import LongRun, evaluate_shard, refuse_state
    from denseport.runtime.system.progress import Terminal

    _check(arguments)
    bundle = open_bundle(arguments)
    check_task(arguments, bundle.manifest.task)
    if bundle.manifest.task == "depth":
        return evaluate_depths(arguments, bundle)
    gate = None
    if arguments.gate is not None:
        gate = Gate(arguments.gate, **{name: getattr(arguments, name) for name in _OF_GATE})
    data = data_options(arguments)
    if arguments.fit_temperature:
        return fit_and_print(arguments, bundle, data)
    work = {name: getattr(arguments, name) for name in ("artifact", "protocol", "threads")} | workers(arguments)
    work |= {"gate": gate, "extras": Extras(arguments.boundaries, arguments.ece), "progress": Terminal()}
    if arguments.shard is not None:
        refuse_state(arguments.state, resume=arguments.resume)
        dataset = open_data(bundle, arguments.data, **data)
        shard = evaluate_shard(bundle, dataset, arguments.shard, arguments.state, resume=arguments.resume, **work)
        text = "shard {shard}: {images} of {of} images, kept in {state}; add the shards up with --merge"
        print(json.dumps(shard.to_dict(), indent=1) if arguments.json else text.format(**shard.to_dict()))
        return 0
    found = evaluate(
        bundle,
        arguments.data,
        **data,
        **work,
        run=LongRun(arguments.state, arguments.resume, tuple(arguments.merge or ()), arguments.ray),
        checkpoint=arguments.checkpoint,
        report=arguments.report,
        record=arguments.record,
    )
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else _table(found))
    return 0 if found.gate is None or found.gate.passed else 1


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    from denseport.runtime.errors import InputError

    if arguments.explain and arguments.checkpoint is None:
        raise InputError("--explain needs the checkpoint to compare with", "Name it with --checkpoint FILE.")
    if arguments.checkpoint is not None and not arguments.explain:
        raise InputError("--checkpoint is used by --explain only", "Add --explain.")
    if arguments.gate is None:  # else code 0 would read as a pass
        refuse_given(arguments, _OF_GATE, "{} is used by --gate only; without a gate nothing is judged", "Add --gate.")
    if arguments.trust is not None and arguments.ray is not None:
        what = "--trust does not go with --ray: each machine of a cluster opens the bundle by itself"
        raise InputError(what, "Leave one of them out; denseport verify checks the bundle beforehand.")
    if arguments.shard is None:
        return
    if arguments.state is None:
        raise InputError("--shard needs a file for its counts", "Name it with --state FILE.")
    names = ("report", "explain", "record")
    refuse_given(arguments, names, "{} needs all images, not a shard", "Give it with --merge.")


def _table(found: Evaluation) -> str:
    from denseport.runtime.evaluation.dataset import words_of_map
    from denseport.runtime.evaluation.layouts import some

    rows = [row for row in found.per_class if row.IoU == row.IoU]  # NaN: in neither map
    width = max([len(row.name) for row in rows] + [5])
    lines = [f"{'class':{width}}  {'IoU':>6}  {'Acc':>6}  {'pixels':>12}"]
    for row in rows:
        accuracy = f"{row.Acc:6.2f}" if row.Acc == row.Acc else f"{'-':>6}"
        lines.append(f"{row.name:{width}}  {row.IoU:6.2f}  {accuracy}  {row.pixels:12,}")
    absent = len(found.per_class) - len(rows)
    if absent:
        lines.append(f"(left out: {count(absent, 'class', 'es')} that no counted pixel of masks or predictions has)")
    images = count(found.measurement.images, "image")
    lines += ["", found.session]
    lines.append(f"protocol {found.protocol.name} ({found.protocol.description}), {images}")
    if found.data:
        lines.append(f"data: {found.data}")
    if found.reduce_zero_label:
        lines.append("masks: classes count from 1, 0 is ignored")
    if found.label_map:
        lines.append(f"masks: label map {words_of_map(found.label_map)}")
    as_stored = not (found.reduce_zero_label or found.label_map) and found.ignored
    label = f", which are {found.ignore_index}" if as_stored else ""
    lines.append(f"ignored: {100 * found.ignored:.2f} % of the labels{label}")
    for words, names in (("in the masks", found.never_in_masks), ("predicted", found.never_predicted)):
        if names:
            lines.append(f"never {words}: {len(names)} of {count(len(found.per_class), 'class', 'es')} ({some(names)})")
    lines.append(f"mIoU {found.mIoU:.2f}   mAcc {found.mAcc:.2f}   aAcc {found.aAcc:.2f}")
    lines += _quality_lines(found)
    result = found.to_dict()
    if result["seconds"]:
        share = 100 * result["session_share"]
        lines.append(f"{result['images_per_second']:.1f} images/s; the network takes {share:.0f} % of the time")
    lines += [f"warning: {text}" for text in found.warnings]
    lines += (found.explanation or {}).get("lines", [])
    if found.report is not None:
        lines.append(f"report: {found.report}")
    return "\n".join(lines + ([] if found.gate is None else _verdict_lines(found.gate)))


def _quality_lines(found: Evaluation) -> list[str]:
    """What a mean IoU hides."""
    lines = []
    if found.boundary_F is not None:
        drop = "" if found.boundary_drop is None else f", {-found.boundary_drop:+.2f} points against FP32"
        lines.append(f"boundary F-score {found.boundary_F:.2f} (2 pixels){drop}")
    if (worst := found.worst_drop) is not None:
        name, before = found.per_class[worst.index].name, worst.fp32_IoU
        change = f"{name}, IoU {-worst.points:+.2f} points, from {before:.2f} to {worst.IoU:.2f}"
        lines.append(f"worst class against FP32: {change if worst.points >= 0.005 else 'none lost IoU'}")
    if found.ECE is not None:
        lines.append(f"calibration error of the scores (ECE) {found.ECE:.2f} %, temperature {found.temperature:g}")
    return lines


def _verdict_lines(verdict: Verdict) -> list[str]:
    delta = "" if verdict.delta != verdict.delta else f", {verdict.delta:+.3f} points"
    lines = [f"{'PASS' if verdict.passed else 'FAIL'}: against {verdict.compared_with}{delta}"]
    if verdict.interval is not None:
        low, high = verdict.interval
        lines.append(f"  95 % confidence: {low:+.3f} to {high:+.3f} points; budget {verdict.budget:g}")
    return lines + [f"  {text}" for text in (*verdict.reasons, *verdict.notes)]

"""``denseport eval``: the accuracy of an artifact, and whether it may ship."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.bundle.manifest import FP32
from denseport.runtime.cli import eval_gate
from denseport.runtime.cli import eval_shards as spread
from denseport.runtime.cli.arguments import path, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.evaluation.dataset import Dataset
    from denseport.runtime.evaluation.evaluate import Evaluation
    from denseport.runtime.evaluation.gate import Verdict
    from denseport.runtime.evaluation.metrics import Scores
    from denseport.runtime.segmenter import Segmenter

HELP = "measure accuracy on labelled images, and pass or fail the artifact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    parser.add_argument("--artifact", metavar="NAME", default=FP32, help="what is measured; default: %(default)s")
    parser.add_argument(
        "--protocol",
        default="reference",
        metavar="NAME",
        help="reference (as the checkpoint was tested), ms-flip, ms-flip:1.x, slide, slide:CROP:STRIDE, fixed:HxW",
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
    eval_gate.add_arguments(parser.add_argument_group("gate"))
    work = parser.add_argument_group("running")
    work.add_argument("--workers", type=whole(1), default=2, metavar="N", help="threads beside the network; default: 2")
    work.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads of the network; default: all")
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same measurement")
    work.add_argument("--state", metavar="FILE", type=path, help="where a run under way is kept; default: a cache")
    spread.add_arguments(work)
    result = parser.add_argument_group("result")
    result.add_argument("--report", metavar="DIR", type=path, help="write a self-contained HTML page there")
    result.add_argument("--explain", action="store_true", help="say which step lost what, and name the culprit")
    result.add_argument("--checkpoint", metavar="FILE", type=path, help="the bundle's checkpoint, for --explain")
    result.add_argument("--record", action="store_true", help="keep the result in the bundle's manifest")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.segmenter import Segmenter
    from denseport.runtime.system.files import refuse_unwritable

    _check(arguments)
    spread.check(arguments)
    bundle = Bundle(arguments.bundle)
    if arguments.record:
        refuse_unwritable(bundle.path)
    dataset = _dataset(arguments, bundle.manifest.reduce_zero_label)
    segmenter = Segmenter(bundle, artifact=arguments.artifact, protocol=arguments.protocol, threads=arguments.threads)
    gate = eval_gate.choose_gate(arguments, segmenter, len(dataset))
    fp32 = None
    if gate is not None and arguments.artifact != FP32:
        fp32 = Segmenter(bundle, artifact=FP32, protocol=segmenter.protocol, threads=arguments.threads)
    key = _key(segmenter, dataset, with_fp32=fp32 is not None)
    with _Progress(len(dataset)) as progress:
        work = spread.Work(dataset, segmenter, fp32, key, arguments.state or _kept_state(key), progress)
        if arguments.shard is not None:
            return work.shard(arguments)
        evaluation, session = work.measure(arguments)
    scores = evaluation.scores(segmenter.manifest.classes)
    verdict = gate.judge(evaluation, segmenter.manifest.classes) if gate is not None else None
    result = {**_result(segmenter, dataset, evaluation, scores, verdict), "session": session}
    if arguments.explain:
        result["explanation"] = _explain(arguments, bundle, dataset, segmenter)
    if arguments.report is not None:
        result["report"] = _report(arguments.report, dataset, segmenter, fp32, evaluation, verdict, result)
    if arguments.record:
        _record(bundle, arguments.artifact, result)
        if evaluation.fp32_confusion is not None and "accuracy" not in bundle.artifact(FP32).record:
            scores_fp32 = evaluation.fp32_confusion.scores(segmenter.manifest.classes)
            _record(bundle, FP32, {**result, **scores_fp32.to_dict(), "agreement": None, "gate": None})
    print(json.dumps(result, indent=1) if arguments.json else _table(result, scores))
    return 0 if verdict is None or verdict.passed else 1


def _check(arguments: argparse.Namespace) -> None:
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.files import refuse_unwritable

    if arguments.report is not None:
        refuse_unwritable(arguments.report)
    if arguments.explain and arguments.checkpoint is None:
        raise InputError("--explain compares with the checkpoint", "Name it with --checkpoint FILE.")
    if arguments.checkpoint is not None and not arguments.explain:
        raise InputError("--checkpoint is for an explanation", "Add --explain.")
    for name in ("budget", "agreement"):
        if arguments.gate is None and getattr(arguments, name) is not None:  # else exit code 0 would read as a pass
            raise InputError(f"--{name} is a gate's: without one nothing is judged", "Add --gate.")


def _dataset(arguments: argparse.Namespace, reduce_zero_label: bool) -> Dataset:
    from dataclasses import replace

    from denseport.runtime.evaluation.dataset import open_dataset

    dataset = open_dataset(
        arguments.data,
        masks=arguments.masks,
        list_file=arguments.list,
        split=arguments.split,
        reduce_zero_label=reduce_zero_label if arguments.reduce_zero_label is None else arguments.reduce_zero_label,
        ignore_index=arguments.ignore_index,
    )
    return replace(dataset, samples=dataset.samples[: arguments.limit])


def _result(
    segmenter: Segmenter, dataset: Dataset, evaluation: Evaluation, scores: Scores, verdict: Verdict | None
) -> dict[str, Any]:
    reference = segmenter.manifest.reference
    warnings = []
    if reference is not None and eval_gate.published_miou(segmenter) is None:
        warnings.append(
            f"the published mIoU {reference.mIoU} was measured with another protocol ({reference.protocol}) than this "
            f"({segmenter.protocol.description})"
        )
    if scores.mIoU != scores.mIoU:
        warnings.append("there is no mIoU: every pixel of the masks is ignored")
    precision = segmenter.bundle.artifact(segmenter.artifact).precision
    if precision in ("fp16", "bf16") and "CPUExecutionProvider" in segmenter.description:
        warnings.append(
            f"ONNX Runtime computes {precision} in FP32 on a CPU and skips most of its rounding: this is not the "
            "accuracy of an engine. denseport build audits with the rounding emulated"
        )
    seconds = max(evaluation.seconds, 1e-9)  # 0 where nothing was left to measure
    return {
        "artifact": segmenter.artifact,
        "session": segmenter.description,
        "protocol": {"name": segmenter.protocol.name, "description": segmenter.protocol.description},
        "images": len(dataset),
        "reduce_zero_label": dataset.reduce_zero_label,
        **scores.to_dict(),
        "agreement": evaluation.predictions.agreement,
        "gate": verdict.to_dict() if verdict is not None else None,
        "warnings": warnings,
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(evaluation.measured / seconds, 3),
        "session_share": round(evaluation.session_seconds / seconds, 4),
    }


def _table(result: dict[str, Any], scores: Scores) -> str:
    rows = [row for row in scores.per_class if row.IoU == row.IoU]  # NaN: in neither map
    width = max([len(row.name) for row in rows] + [5])
    lines = [f"{'class':{width}}  {'IoU':>6}  {'Acc':>6}  {'pixels':>12}"]
    for row in rows:
        accuracy = f"{row.Acc:6.2f}" if row.Acc == row.Acc else f"{'-':>6}"
        lines.append(f"{row.name:{width}}  {row.IoU:6.2f}  {accuracy}  {row.pixels:12,}")
    absent = len(scores.per_class) - len(rows)
    if absent:
        lines.append(
            f"(left out, as neither the masks nor the predictions hold any of it: {count(absent, 'class', 'es')})"
        )
    lines += ["", f"{result['artifact']}: {result['session']}"]
    lines.append(
        f"protocol {result['protocol']['name']} ({result['protocol']['description']}), "
        f"{count(result['images'], 'image')}"
    )
    if result["reduce_zero_label"]:
        lines.append("masks: classes count from 1, 0 is ignored")
    lines.append(f"mIoU {scores.mIoU:.2f}   mAcc {scores.mAcc:.2f}   aAcc {scores.aAcc:.2f}")
    if result["seconds"]:
        share = 100 * result["session_share"]
        lines.append(f"{result['images_per_second']:.2f} images/s, {share:.0f} % of it in the network")
    lines += [f"warning: {text}" for text in result["warnings"]]
    lines += result.get("explanation", {}).get("lines", [])
    if "report" in result:
        lines.append(f"report: {result['report']}")
    verdict = result["gate"]
    if verdict is not None:
        delta = "" if verdict["delta"] is None else f", {verdict['delta']:+.3f} points"
        lines.append(f"{'PASS' if verdict['passed'] else 'FAIL'}: against {verdict['compared_with']}{delta}")
        if verdict["interval"] is not None:
            low, high = verdict["interval"]
            lines.append(f"  95 % confidence: {low:+.3f} to {high:+.3f} points; budget {verdict['budget']:g}")
        lines += [f"  {text}" for text in (*verdict["reasons"], *verdict["notes"])]
    return "\n".join(lines)


def _explain(arguments: argparse.Namespace, bundle: Bundle, dataset: Dataset, segmenter: Segmenter) -> dict[str, Any]:
    """What `denseport.export.explain.explain` says; found through its entry point, as the runtime knows no export."""
    from importlib.metadata import entry_points

    from denseport.runtime.errors import MachineError

    try:
        (entry,) = entry_points(group="denseport.explain")
        explain = entry.load()
    except (ValueError, ImportError) as err:
        raise MachineError("--explain needs torch", "pip install 'denseport[export,onnxruntime]'") from err
    explanation = explain(bundle, arguments.artifact, arguments.checkpoint, dataset, segmenter.protocol)
    return {**explanation.to_dict(), "lines": explanation.lines()}


def _report(
    folder: Path,
    dataset: Dataset,
    segmenter: Segmenter,
    fp32: Segmenter | None,
    evaluation: Evaluation,
    verdict: Verdict | None,
    result: dict[str, Any],
) -> str:
    import shlex

    from denseport.runtime.evaluation.failures import worst_images
    from denseport.runtime.evaluation.report import ReportInput, write_report
    from denseport.runtime.system.machine import inspect_machine

    classes, fp32_confusion = segmenter.manifest.classes, evaluation.fp32_confusion
    data = ReportInput(
        manifest=segmenter.manifest,
        artifact=segmenter.artifact,
        evaluation=evaluation,
        scores=evaluation.scores(classes),
        fp32_scores=fp32_confusion.scores(classes) if fp32_confusion is not None else None,
        verdict=verdict,
        protocol=segmenter.protocol.description,
        warnings=result["warnings"],
        explanation=result.get("explanation", {}).get("lines", ()),
        command=shlex.join(["denseport", *sys.argv[1:]]),
        environment={"session": segmenter.description, **inspect_machine().summary()},
        images=worst_images(dataset, evaluation, segmenter, fp32),
    )
    return str(write_report(folder, data))


def _record(bundle: Bundle, name: str, result: dict[str, Any]) -> None:
    from datetime import UTC, datetime

    kept = {key: result[key] for key in ("mIoU", "mAcc", "aAcc", "images", "protocol", "agreement", "gate")}
    kept["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    bundle.note(name, {"accuracy": kept})


def _key(segmenter: Segmenter, dataset: Dataset, *, with_fp32: bool) -> str:
    """What is measured, as a hash: a state of anything else is not taken up."""
    import hashlib

    from denseport.runtime.media.images import reading

    def size(file: Path) -> int:
        with reading(file):  # a link to nothing
            return file.stat().st_size

    facts = [
        segmenter.bundle.artifact(segmenter.artifact).files,
        repr(segmenter.protocol),
        with_fp32,
        dataset.reduce_zero_label,
        dataset.ignore_index,
        [(s.name, size(s.image), size(s.mask)) for s in dataset.samples],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _kept_state(key: str) -> Path:
    """Where a run under way is kept unless ``--state`` says otherwise."""
    from denseport.runtime.system.files import cache_folder

    return cache_folder("eval", otherwise="Name a file with --state FILE.") / f"{key[:16]}.npz"


class _Progress:
    """A progress bar with the speed and the mIoU so far; silent where nobody watches."""

    def __init__(self, images: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=images, unit="image", file=sys.stderr, disable=None)

    def __call__(self, done: int, miou: float) -> None:
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix_str(f"mIoU {miou:.2f}", refresh=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

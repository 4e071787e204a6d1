"""``denseport calibrate``: INT8 or FP8 artifacts within an accuracy budget, and whether they are worth it here."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import add_bundle, add_values, open_bundle, path, real, refuse_given, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.calibration.calibrate import Calibration
    from denseport.runtime.bundle.verdict import MachineVerdict

NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # missing ones are reported before the long work
HELP = "quantize to INT8 or FP8 within a budget, and measure whether that is worth it here"
_DATA = "data set, or folder of images, to measure mIoU on; never the set that the artifact is gated with"
_LIMIT = "images to take, spread evenly; default: %(default)s"
# Options that say how an artifact is made, or where that is kept: --measure makes none.
OF_CALIBRATION = ("precision", "method", "effort", "attention", "smoothquant", "keep_float", "work", "resume", "report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    images = parser.add_argument_group("images")
    words = "images like the application's, without labels: folders, files or globs"
    images.add_argument("--images", metavar="DIR", nargs="+", required=True, help=words)
    add_values(images, ("--limit", whole(1), 32, "N", _LIMIT))
    add_values(
        parser.add_argument_group("labelled images"),
        ("--data", path, None, "ROOT", _DATA),
        ("--masks", path, None, "DIR", "folder of masks; --data is then the images' folder"),
        ("--split", str, None, "NAME", "of the layout; default: training or train"),
        ("--data-limit", whole(1), 64, "N", _LIMIT),
    )
    _add_quantization(parser.add_argument_group("quantization"))
    work = parser.add_argument_group("running")
    words = "keep statistics there for further runs; default: the user's cache, until the run is done"
    add_values(
        work,
        ("--threads", whole(1), None, "N", "CPU threads of the network; default: all"),
        ("--work", path, None, "DIR", words),
        ("--measure", str, None, "NAME", "only measure this artifact here, for a verdict on another machine"),
    )
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run on the same images")
    result = parser.add_argument_group("result")
    result.add_argument("--report", metavar="FILE", type=path, help="write a self-contained HTML page")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_quantization(how: argparse._ArgumentGroup) -> None:
    for option, choices, words in (
        ("--precision", ("int8", "fp8"), "8-bit type; fp8 (e4m3) is for GPUs from sm_89 on"),
        ("--method", ("minmax", "percentile", "entropy", "mse"), "how the range of a tensor is chosen"),
        ("--effort", ("medium", "low", "high"), "how thoroughly the search looks"),
        ("--attention", ("float", "search"), "whether the search may put attention's products into 8 bits"),
        (
            "--smoothquant",
            ("auto", "off"),
            "whether outliers of what linear layers read are migrated into their weights",
        ),
    ):
        how.add_argument(option, choices=choices, default=choices[0], help=f"{words}; default: %(default)s")
    share = "smallest share of pixels that get the class that FP32 gives; for depth: 1 minus the mean "
    share += "change of FP32's depths, as a share of their mean; default: 0.98, with --data 0.9"
    points = "points of mIoU that may be lost; needs --data; default with it: 0.5"
    add_values(
        how,
        ("--budget", real(0, 100), None, "POINTS", points),
        ("--agreement", real(0, 1), None, "SHARE", share),
    )
    words = "layers, with all below them, that stay float"
    how.add_argument("--keep-float", metavar="LAYER", nargs="+", default=[], help=words)


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.system.machine import require

    require(NEEDED, "calibration")
    from denseport.calibration.calibrate import calibrate
    from denseport.calibration.options import CalibrationOptions
    from denseport.runtime.system.progress import Terminal

    if arguments.measure is not None:
        return _measure(arguments)
    same = ("precision", "budget", "agreement", "method", "effort", "work", "resume", "threads")
    options = CalibrationOptions(
        **{name: getattr(arguments, name) for name in same},
        smoothquant=arguments.smoothquant == "auto",
        float_layers=tuple(arguments.keep_float),
        attention_float=arguments.attention == "float",
    )
    more = {**_data(arguments), "report": arguments.report, "progress": Terminal()}
    found = calibrate(open_bundle(arguments), arguments.images, options, **more)
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else "\n".join(_lines(found)))
    return 0 if found.within_budget else 1


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("limit", "data", "masks", "split", "data_limit")}


def _measure(arguments: argparse.Namespace) -> int:
    """Measure an artifact that is there already, on this machine."""
    from dataclasses import asdict

    from denseport.calibration.calibrate import judge_again
    from denseport.runtime.system.progress import Terminal

    what = "{} does not go with --measure"
    refuse_given(arguments, ("budget", "agreement"), what, "The artifact keeps the budget that it was calibrated for.")
    refuse_given(arguments, OF_CALIBRATION, what, "The artifact stays as it was calibrated: leave it out.")
    bundle, name, threads = open_bundle(arguments), arguments.measure, arguments.threads
    verdict = judge_again(bundle, name, arguments.images, **_data(arguments), threads=threads, progress=Terminal())
    result = {"bundle": str(arguments.bundle), "verdicts": {name: asdict(verdict)}}
    lines = _verdict_lines(name, verdict, bundle.manifest.output)
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(lines))
    return 0 if verdict.within_budget else 1


def _lines(result: Calibration) -> list[str]:
    from denseport.calibration.report import summary
    from denseport.runtime.bundle.bundle import Bundle

    record, found = result.record, result.record.search
    lines, kind = [*summary(record), ""], record.options.precision.upper()
    if not result.verdicts:
        lines.append(f"nothing was written: no set of layers in {kind} keeps the budget")
    else:
        lines.append(
            f"{', '.join(result.verdicts)}: {count(len(found.chosen), 'group')} of layers in {kind}, "
            f"{100 * found.quantization.share:.1f} % of the multiply-adds; "
            f"on {count(record.images, 'image')} by {record.options.method}, {record.seconds:.0f} s"
        )
        lines += [f"warning: {text}" for text in record.warnings]
        for name, verdict in result.verdicts.items():
            lines += _verdict_lines(name, verdict, Bundle(result.bundle).manifest.output)
        lines += _untried(result)
    return lines + ([] if result.report is None else [f"report: {result.report}"])


def _untried(result: Calibration) -> list[str]:
    """That OpenVINO may be faster, where it computes INT8."""
    from denseport.runtime.system.machine import inspect_machine

    machine = inspect_machine(look_for_gpus=None)
    if result.record.options.precision != "int8" or not machine.vnni or machine.gpus:
        return []
    command = f"denseport build {result.bundle} --for-this-machine --images IMAGES"
    return [f"OpenVINO may run it faster on this processor; to find out: {command}"]


def _verdict_lines(name: str, verdict: MachineVerdict, output: str) -> list[str]:
    from denseport.runtime.evaluation.metrics import agreement_words

    lines = [f"{name}: {verdict.words}"]
    if verdict.miou is not None and verdict.fp32_miou is not None:
        lines.append(
            f"  mIoU {verdict.miou:.2f}, FP32 {verdict.fp32_miou:.2f}, on {count(verdict.labelled, 'labelled image')}"
        )
    lines.append(f"  {agreement_words(verdict.agreement, output)}")
    if not verdict.accepted:
        lines.append(f"  it runs here with --artifact {name}")
    return lines

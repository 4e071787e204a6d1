"""``denseport calibrate``: INT8 or FP8 artifacts within an accuracy budget, and whether they are worth it here."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import path, real, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.calibration.calibrate import Calibration
    from denseport.runtime.bundle.quantization import QuantizationVerdict

NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # missing ones are reported before the long work
HELP = "quantize to INT8 or FP8 within a budget, and measure whether that is worth it here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    images = parser.add_argument_group("images")
    words = "images like the application's, without labels: folders, files or globs"
    images.add_argument("--images", metavar="DIR", nargs="+", required=True, help=words)
    _add_limit(images, "--limit", 32)
    _add_data(parser.add_argument_group("labelled images"))
    _add_quantization(parser.add_argument_group("quantization"))
    work = parser.add_argument_group("running")
    work.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads of the network; default: all")
    words = "keep statistics there for further runs; default: the user's cache, until the run is done"
    work.add_argument("--work", metavar="DIR", type=path, help=words)
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run on the same images")
    words = "only measure this artifact here, for a verdict on another machine"
    work.add_argument("--measure", metavar="NAME", help=words)
    result = parser.add_argument_group("result")
    result.add_argument("--report", metavar="FILE", type=path, help="write a self-contained HTML page")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_limit(group: argparse._ArgumentGroup, name: str, default: int) -> None:
    words = "images to take, spread evenly; default: %(default)s"
    group.add_argument(name, type=whole(1), default=default, metavar="N", help=words)


def _add_data(data: argparse._ArgumentGroup) -> None:
    words = "data set, or folder of images, to measure mIoU on; never the set that the artifact is gated with"
    data.add_argument("--data", metavar="ROOT", type=path, help=words)
    data.add_argument("--masks", metavar="DIR", type=path, help="folder of masks; --data is then the images' folder")
    data.add_argument("--split", metavar="NAME", help="of the layout; default: training or train")
    _add_limit(data, "--data-limit", 64)


def _add_quantization(how: argparse._ArgumentGroup) -> None:
    for option, choices, words in (
        ("--precision", ("int8", "fp8"), "8-bit type; fp8 (e4m3) is for GPUs from sm_89 on"),
        ("--method", ("minmax", "percentile", "entropy", "mse"), "how the range of a tensor is chosen"),
        ("--effort", ("medium", "low", "high"), "how thoroughly the search looks"),
        ("--attention", ("float", "search"), "whether the search may put attention's products into 8 bits"),
        ("--smoothquant", ("auto", "off"), "whether outliers of LayerNorms are migrated into the next weights"),
    ):
        how.add_argument(option, choices=choices, default=choices[0], help=f"{words}; default: %(default)s")
    words = "points of mIoU that may be lost; needs --data; default with it: 0.5"
    how.add_argument("--budget", type=real(0, 100), metavar="POINTS", help=words)
    words = "smallest share of pixels that get the class that FP32 gives; default: 0.98, with --data 0.9"
    how.add_argument("--agreement", type=real(0, 1), metavar="SHARE", help=words)
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
    found = calibrate(
        arguments.bundle, arguments.images, options, **_data(arguments), report=arguments.report, progress=Terminal()
    )
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else "\n".join(_lines(found)))
    return 0 if found.within_budget else 1


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("limit", "data", "masks", "split", "data_limit")}


def _measure(arguments: argparse.Namespace) -> int:
    """Measure an artifact that is there already, on this machine."""
    from dataclasses import asdict

    from denseport.calibration.calibrate import judge_again
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.progress import Terminal

    for option in ("budget", "agreement", "report"):
        if getattr(arguments, option) is not None:
            remedy = "The artifact keeps the budget that it was calibrated for."
            raise InputError(f"--{option} does not go with --measure", remedy)
    name, threads = arguments.measure, arguments.threads
    verdict = judge_again(
        arguments.bundle, name, arguments.images, **_data(arguments), threads=threads, progress=Terminal()
    )
    result = {"bundle": str(arguments.bundle), "verdicts": {name: asdict(verdict)}}
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(_verdict_lines(name, verdict)))
    return 0 if verdict.within_budget else 1


def _lines(result: Calibration) -> list[str]:
    from denseport.calibration.report import summary

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
            lines += _verdict_lines(name, verdict)
    return lines + ([] if result.report is None else [f"report: {result.report}"])


def _verdict_lines(name: str, verdict: QuantizationVerdict) -> list[str]:
    lines = []
    if verdict.miou is not None and verdict.fp32_miou is not None:
        lines.append(
            f"mIoU {verdict.miou:.2f}, FP32 {verdict.fp32_miou:.2f}, on {count(verdict.labelled, 'labelled image')}"
        )
    lines.append(f"{100 * verdict.agreement:.2f} % of the pixels get the class that FP32 gives")
    lines.append(f"{name}: {verdict.words}")
    if not verdict.accepted:
        lines.append(f"  it runs here with --artifact {name}")
    return lines

"""``denseport import``: an ONNX file that Denseport did not make, to a bundle."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import add_values, path, real, refuse_given, size, whole

if TYPE_CHECKING:
    from denseport.runtime.bundle.manifest import DepthOutput

NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # checked before the work starts
HELP = "make a bundle of any ONNX file that gives a class or a depth for each pixel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "an FP32 network with an image as its only input"
    parser.add_argument("model", metavar="MODEL.onnx", type=path, help=words)
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=path, required=True, help="the folder to make")
    add_values(
        parser,
        ("--classes", str, None, "NAMES", "names with commas between, a file with one a line, or how many there are"),
        ("--palette", path, None, "FILE", "a colour a line: R G B, or #rrggbb"),
        ("--name", str, None, "NAME", "what the model is called; default: as the file"),
    )
    _add_depth(parser.add_argument_group("a network that estimates depth"))
    _add_images(parser.add_argument_group("how images are prepared"))
    ends = parser.add_argument_group("what the network takes and gives, where it is not found by running it")
    ends.add_argument("--layout", choices=("NCHW", "NHWC"), help="of the input")
    ends.add_argument("--output-name", metavar="NAME", help="of several outputs the one to take")
    ends.add_argument("--gives", choices=("logits", "probabilities", "classes"), help="what the output holds")
    words = "of one channel: the second class is above it (0.5)"
    ends.add_argument("--threshold", type=real(above=0, below=1), metavar="P", help=words)
    parser.add_argument("--force", action="store_true", help="replace an existing bundle, once the new one is whole")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_depth(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--task", choices=("segmentation", "depth"), help="default: segmentation, or as --like")
    group.add_argument("--unit", choices=("metres", "relative"), help="relative: up to a scale and a shift")
    group.add_argument("--larger-is", choices=("farther", "nearer"), help="what larger numbers mean; metres: farther")
    group.add_argument("--largest", type=real(above=0), metavar="X", help="the network's own limit (max_depth)")
    words = "how depths are resized to the image; default: bilinear"
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"), help=words)
    words = "their corners lie on the image's corners; default: no"
    group.add_argument("--align-corners", action=argparse.BooleanOptionalAction, help=words)


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mean", nargs="+", type=real(), metavar="R", help="of each channel, in the network's order")
    group.add_argument("--std", nargs="+", type=real(above=0), metavar="R", help="of each channel")
    group.add_argument("--bgr", action="store_true", default=None, help="the network takes blue, green, red")
    words = "limits of the longer and the shorter side, pixels; the ratio is kept"
    group.add_argument("--scale", metavar=("LONG", "SHORT"), nargs=2, type=whole(1), help=words)
    add_values(
        group,
        ("--range", whole(1, 255), None, "255|1", "mean and std are of levels up to this; default: 255"),
        ("--size", size(2**15), None, "WxH", "every image becomes this wide and high"),
        ("--like", path, None, "BUNDLE", "a bundle whose classes and preparation hold here"),
        ("--from-json", path, None, "FILE", "the same as fields of a manifest (JSON)"),
    )


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.system.machine import require

    require(NEEDED, "calibration")
    from denseport.export.checkpoint.labels import read_classes, read_palette
    from denseport.export.commands.made import say_made
    from denseport.export.entrance.declared import Declared
    from denseport.export.entrance.foreign import import_bundle
    from denseport.runtime.system.progress import Terminal

    classes = arguments.classes
    if classes is not None:
        classes = int(classes) if re.fullmatch(r"\d{1,9}", classes, re.ASCII) else read_classes(classes)
    declared = Declared(
        task=arguments.task,
        depth=_depth(arguments),
        align_corners=arguments.align_corners,
        classes=classes,
        palette=None if arguments.palette is None else read_palette(arguments.palette),
        mean=arguments.mean,
        std=arguments.std,
        value_range=arguments.range,
        bgr=arguments.bgr,
        scale=tuple(arguments.scale) if arguments.scale else None,
        size=arguments.size and arguments.size[::-1],
        threshold=arguments.threshold,
        like=arguments.like,
        from_json=arguments.from_json,
    )
    bundle = import_bundle(
        arguments.model,
        arguments.output,
        declared,
        layout=arguments.layout,
        output_name=arguments.output_name,
        gives=arguments.gives,
        name=arguments.name,
        replace=arguments.force,
        progress=Terminal(),
    )
    record = say_made(bundle, as_json=arguments.json)
    if record is None:
        return 0
    for line in _found(record):
        print(f"  {line}")
    return 0


def _depth(arguments: argparse.Namespace) -> DepthOutput | None:
    """What the options say of a depth network's numbers; None: nothing."""
    from denseport.runtime.bundle.manifest import DepthOutput
    from denseport.runtime.errors import InputError

    if arguments.unit is None:
        names = ("larger_is", "largest", "interpolation")
        refuse_given(arguments, names, "{} goes with --unit", "Give --task depth --unit UNIT too.")
        return None
    larger_is = arguments.larger_is or ("farther" if arguments.unit == "metres" else "")
    if not larger_is:
        what = "--unit relative: nothing says what larger numbers mean"
        raise InputError(what, "Give --larger-is nearer or --larger-is farther.")
    try:
        return DepthOutput(arguments.unit, larger_is, arguments.largest, arguments.interpolation or "bilinear")
    except ValueError as err:
        raise InputError(f"--unit {arguments.unit} --larger-is {larger_is}: {err}", "Correct the options.") from err


def _found(record: dict[str, Any]) -> Iterator[str]:
    """What was found of the network, changed in its graph, and compared, for people."""
    from denseport.runtime.system.text import count

    ends, adapted = record["interface"], record["adapted"]
    batch, channels, height, width = (size or "any" for size in ends["shape"])
    sizes = f"batch {batch}, {channels} channels, width {width}, height {height}"
    yield f"takes {ends['layout']}: {sizes}; gives {ends['gives']}"
    if adapted["cut"]:
        yield f"cut off at the end, since the runtime does it: {', '.join(adapted['cut'])}"
    if adapted["added"]:
        yield f"added at the ends: {', '.join(adapted['added'])}"
    agree = f"values differ by {record['max_difference']:.1e} at most"
    if ends["gives"] != "depth":
        same = min(check["agreement"] for check in record["checks"])
        agree += f", {100 * same:.3f} % of the pixels get the same class"
    yield f"compared with the file on {count(len(record['checks']), 'size')}: {agree}"
    yield "not shown: that the file computes what its network did in training"

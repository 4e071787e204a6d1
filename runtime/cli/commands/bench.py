"""``denseport bench``: how fast each artifact is on this machine, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import path, real, size, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from denseport.runtime.benchmark.speed import Contender, Plan
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.segmenter import Segmenter

HELP = "measure speed, memory and start-up of each artifact on this machine, side by side"
BASELINES = "denseport.baselines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    parser.add_argument("--artifact", metavar="NAME", nargs="+", help="default: all that run on this machine")
    image = parser.add_mutually_exclusive_group()
    image.add_argument(
        "--size", type=size(20_000), metavar="HxW", default="512x512", help="of a made-up image; default: %(default)s"
    )
    image.add_argument("--image", metavar="IMAGE", type=path, help="an image like the application's")
    parser.add_argument("--baseline", choices=("torch",), help="compare with PyTorch eager, upstream's way")
    parser.add_argument("--checkpoint", metavar="FILE", type=path, help="weights for the baseline; default: random")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads; default: all this process may use")
    parser.add_argument("--rounds", type=whole(1), default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=real(above=0),
        default=4.0,
        metavar="S",
        help="for each measurement in a round; default: %(default)s",
    )
    parser.add_argument(
        "--concurrency", type=whole(1), nargs="*", default=[1, 2, 4], metavar="N", help="callers at once"
    )
    parser.add_argument("--batches", type=whole(1), nargs="*", default=[1, 2, 4], metavar="N", help="sizes of batches")
    parser.add_argument("--report", metavar="DIR", type=path, help="write bench.html and bench.json there")
    parser.add_argument("--no-record", action="store_true", help="do not write the figures into the bundle")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.benchmark.load import LoadMonitor
    from denseport.runtime.benchmark.report import as_dict, table, write_report
    from denseport.runtime.benchmark.speed import run_bench, speed_warnings
    from denseport.runtime.bundle.bundle import Bundle

    plan, bundle = _plan(arguments), Bundle(arguments.bundle)
    if not arguments.no_record:
        _refuse_unwritable(bundle)
    image = _image(arguments)
    segmenters, skipped = _open(bundle, arguments)
    tensor = _as_network_sees(segmenters[0], image)
    contenders = _contenders(segmenters, bundle, arguments)
    watch = LoadMonitor()
    results = run_bench(contenders, image, tensor, plan, _say)
    conditions = watch.stop()
    starts = _starts(bundle, segmenters, image, arguments.threads)
    warnings = [*conditions.warnings(), *speed_warnings(results)]
    report = as_dict(bundle, results, starts, image, tensor, conditions, warnings, skipped)
    if not arguments.no_record:
        for row in report["rows"]:
            if row["artifact"] in bundle.manifest.artifacts:
                bundle.note(row["artifact"], {"speed": {**row, **report["measured"]}})
    if arguments.report is not None:
        _say(f"written to {write_report(arguments.report, report)}")
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0


def _refuse_unwritable(bundle: Bundle) -> None:
    from denseport.runtime.errors import OutputError
    from denseport.runtime.system.files import refuse_unwritable

    try:
        refuse_unwritable(bundle.path)
    except OutputError as err:
        raise OutputError(err.message, "Measure without keeping the figures in the bundle: --no-record.") from err


def _plan(arguments: argparse.Namespace) -> Plan:
    from denseport.runtime.benchmark.speed import Plan
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.files import refuse_unwritable

    if arguments.report is not None:
        refuse_unwritable(arguments.report)
    if arguments.checkpoint is not None and arguments.baseline is None:
        raise InputError("--checkpoint is for a baseline", "Add --baseline torch.")
    return Plan(arguments.rounds, arguments.seconds, tuple(arguments.concurrency), tuple(arguments.batches))


def _image(arguments: argparse.Namespace) -> NDArray[np.uint8]:
    from denseport.runtime.benchmark.speed import synthetic_image
    from denseport.runtime.media.images import read_image

    if arguments.image is not None:
        return read_image(arguments.image)
    return synthetic_image(*arguments.size)


def _open(bundle: Bundle, arguments: argparse.Namespace) -> tuple[list[Segmenter], dict[str, str]]:
    """A segmenter for each artifact that runs here, and why the others do not."""
    from denseport.runtime.bundle.manifest import FP32
    from denseport.runtime.errors import DenseportError, MachineError
    from denseport.runtime.segmenter import Segmenter

    opened, skipped = [], {}
    for name in arguments.artifact or bundle.manifest.artifacts:
        try:
            _say(f"opening {name}")
            opened.append(Segmenter(bundle, artifact=name, threads=arguments.threads))
        except MachineError as err:
            if arguments.artifact:
                raise
            skipped[name] = err.message
        except DenseportError as err:
            if arguments.artifact or name == FP32:
                raise
            skipped[name] = err.message
    if not opened:
        raise MachineError(f"{bundle.path}: no artifact runs on this machine", "See denseport doctor BUNDLE.")
    return opened, skipped


def _as_network_sees(segmenter: Segmenter, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    from denseport.runtime.pipeline.preprocess import normalise, resize
    from denseport.runtime.pipeline.views import single_view

    preprocess = segmenter.protocol.preprocess
    view = single_view((image.shape[0], image.shape[1]), preprocess, segmenter.manifest.patch_size)
    return normalise(resize(image, view.size), preprocess)


def _contenders(segmenters: list[Segmenter], bundle: Bundle, arguments: argparse.Namespace) -> list[Contender]:
    from denseport.runtime.benchmark.speed import Contender
    from denseport.runtime.segmenter import Segmenter

    found = [Contender(each.artifact, each.session, each) for each in segmenters]
    if arguments.baseline is not None:
        session = _baseline(arguments.baseline)(bundle.manifest, arguments.checkpoint, arguments.threads)
        protocol = segmenters[0].protocol
        segmenter = Segmenter(
            bundle, artifact=arguments.baseline, protocol=protocol, session=session, threads=arguments.threads
        )
        found.append(Contender(arguments.baseline, session, segmenter))
    return found


def _baseline(name: str) -> Any:
    from importlib.metadata import entry_points

    from denseport.runtime.errors import MachineError

    try:
        (entry,) = entry_points(group=BASELINES, name=name)
        return entry.load()
    except (ImportError, ValueError) as err:
        raise MachineError(f"--baseline {name}: not installed: {err}", "pip install 'denseport[export]'") from err


def _starts(
    bundle: Bundle, segmenters: list[Segmenter], image: NDArray[np.uint8], threads: int | None
) -> dict[str, dict[str, float]]:
    from denseport.runtime.benchmark.startup import measure_startup

    starts = {}
    for segmenter in segmenters:
        _say(f"starting {segmenter.artifact} in a process of its own")
        size = (image.shape[0], image.shape[1])
        starts[segmenter.artifact] = measure_startup(bundle.path, segmenter.artifact, size, threads)
    return starts


def _say(text: str) -> None:
    print(text, file=sys.stderr)

"""``denseport bench``: how fast each artifact is on this machine, side by side."""

from __future__ import annotations

import argparse
import json

from denseport.runtime.cli.arguments import add_bundle, add_values, open_bundle, path, real, size, whole

HELP = "measure speed, memory and start-up of each artifact on this machine, side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument(
        "--artifact", metavar="NAME", nargs="+", default=[], help="default: all that run on this machine"
    )
    add_values(
        parser.add_mutually_exclusive_group(),
        ("--size", size(20_000), "512x512", "WxH", "of a made-up image; default: %(default)s"),
        ("--image", path, None, "IMAGE", "an image of the application instead"),
    )
    parser.add_argument("--baseline", choices=("torch",), help="compare with the network in PyTorch")
    add_values(
        parser,
        ("--checkpoint", path, None, "FILE", "weights of the baseline; default: random"),
        ("--threads", whole(1), None, "N", "CPU threads; default: all this process may use"),
        ("--rounds", whole(1), 5, "N", "default: %(default)s"),
        ("--seconds", real(above=0), 4.0, "S", "duration of each measurement in a round; default: %(default)s"),
        ("--report", path, None, "DIR", "write bench.html and bench.json there"),
    )
    for option, words in (("--concurrency", "numbers of callers at once"), ("--batches", "sizes of batches")):
        parser.add_argument(option, type=whole(1), nargs="*", default=[1, 2, 4], metavar="N", help=words)
    parser.add_argument("--no-record", action="store_true", help="do not write the figures into the bundle's manifest")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.benchmark.bench import bench
    from denseport.runtime.benchmark.report import table
    from denseport.runtime.benchmark.speed import Plan, synthetic_image
    from denseport.runtime.system.progress import Terminal

    progress = Terminal()
    found = bench(
        open_bundle(arguments),
        arguments.artifact,
        image=arguments.image or synthetic_image(*arguments.size),
        plan=Plan(arguments.rounds, arguments.seconds, tuple(arguments.concurrency), tuple(arguments.batches)),
        threads=arguments.threads,
        baseline=arguments.baseline,
        checkpoint=arguments.checkpoint,
        report=arguments.report,
        record=not arguments.no_record,
        progress=progress,
    )
    if found.report is not None:
        progress.say(f"written to {found.report}")
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else table(found.to_dict()))
    return 0

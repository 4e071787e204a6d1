"""``denseport report``: one page about all artifacts of a bundle, for those who decide."""

from __future__ import annotations

import argparse
import json

from denseport.runtime.cli.arguments import path, real, whole
from denseport.runtime.cli.data_options import add_data_options, data_options

HELP = "write one page about all artifacts: accuracy, size, speed here, what is proved"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder, for segmentation")
    parser.add_argument("-o", "--out", metavar="DIR", type=path, required=True, help="folder for report.html")
    parser.add_argument(
        "--protocol", default="reference", metavar="NAME", help="as of denseport eval; default: reference"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="ROOT", type=path, required=True, help="data set, or folder of images")
    add_data_options(data)
    work = parser.add_argument_group("running")
    work.add_argument("--workers", type=whole(1), default=2, metavar="N", help="threads beside the network; default: 2")
    work.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads of the network; default: all")
    work.add_argument("--rounds", type=whole(1), default=5, metavar="N", help="of the speed; default: %(default)s")
    words = "of the speed, for each artifact in a round; default: %(default)s"
    work.add_argument("--seconds", type=real(above=0), default=1.0, metavar="S", help=words)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.benchmark.overview.collect import report
    from denseport.runtime.benchmark.overview.words import summary
    from denseport.runtime.benchmark.speed import Plan
    from denseport.runtime.system.progress import Terminal

    work = {name: getattr(arguments, name) for name in ("protocol", "threads", "workers")}
    plan = Plan(arguments.rounds, arguments.seconds, concurrency=(), batches=())
    progress = Terminal()
    found, page = report(
        arguments.bundle,
        arguments.data,
        arguments.out,
        plan=plan,
        progress=progress,
        **work,
        **data_options(arguments),
    )
    progress.say(f"written to {page}")
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    words = summary(found)
    print("\n".join((words.title, *words.sentences, *(f"be careful: {text}" for text in words.cautions))))
    return 0

"""``denseport report``: one page about all artifacts of a bundle, for those who decide."""

from __future__ import annotations

import argparse
import json

from denseport.runtime.cli.arguments import add_bundle, open_bundle, path, real, whole
from denseport.runtime.cli.data_options import add_data_options, data_options

HELP = "write one page about all artifacts: accuracy, size, speed here, what is proved"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "a bundle's folder, for segmentation")
    parser.add_argument("-o", "--output", metavar="DIR", type=path, required=True, help="folder for report.html")
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
    from denseport.runtime.errors import BundleError
    from denseport.runtime.system.progress import Terminal
    from denseport.runtime.system.text import count

    work = {name: getattr(arguments, name) for name in ("protocol", "threads", "workers")}
    plan = Plan(arguments.rounds, arguments.seconds, concurrency=(), batches=())
    progress = Terminal()
    found, page = report(
        open_bundle(arguments),
        arguments.data,
        arguments.output,
        plan=plan,
        progress=progress,
        **work,
        **data_options(arguments),
    )
    progress.say(f"written to {page}")
    words = summary(found)
    lines = (words.title, *words.sentences, *(f"be careful: {text}" for text in words.cautions))
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else "\n".join(lines))
    if found.broken:
        names = f"{count(len(found.broken), 'broken artifact')}: {', '.join(found.broken)}"
        raise BundleError(
            f"{arguments.bundle}: {names}", "The page says why. Make them again, or copy the bundle again."
        )
    return 0

"""``denseport serve``: a small HTTP API, and a page to drop images on."""

from __future__ import annotations

import argparse
import sys

from denseport.runtime.cli.arguments import path, real, whole

HELP = "serve a bundle over HTTP, with a page to drop images on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; default: %(default)s, this machine",
    )
    parser.add_argument(
        "--port", type=whole(0, 65_535), default=8000, metavar="N", help="0 takes a free one; default: %(default)s"
    )
    parser.add_argument("--artifact", metavar="NAME", help="the default artifact; default: the best for this machine")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads; default: all this process may use")
    parser.add_argument(
        "--concurrency", type=whole(1), default=2, metavar="N", help="images segmented at once; default: %(default)s"
    )
    parser.add_argument(
        "--queue", type=whole(0), default=16, metavar="N", help="most requests that wait; default: %(default)s"
    )
    parser.add_argument(
        "--max-bytes", type=whole(1), default=32 << 20, metavar="N", help="largest request; default: 32 MiB"
    )
    parser.add_argument(
        "--max-pixels",
        type=whole(1),
        default=40_000_000,
        metavar="N",
        help="most pixels of an image; default: 40 million",
    )
    parser.add_argument(
        "--timeout",
        type=real(above=0),
        default=60.0,
        metavar="SECONDS",
        help="longest time for an answer; default: %(default)g",
    )


def run(arguments: argparse.Namespace) -> int:
    import os

    # OpenCV reads it when it is loaded: a second guard, behind the check of the header.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(arguments.max_pixels))

    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.serving.http.limits import Limits
    from denseport.runtime.serving.http.server import serve

    given = arguments
    limits = Limits(given.max_bytes, given.max_pixels, given.concurrency, given.queue, given.timeout)
    accepted = serve(
        Bundle(given.bundle), limits, given.host, given.port, artifact=given.artifact, threads=given.threads
    )
    print(f"stopped; requests accepted: {accepted}", file=sys.stderr)
    return 0

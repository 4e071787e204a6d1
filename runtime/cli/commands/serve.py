"""``denseport serve``: a small HTTP API, and a page to drop images on."""

from __future__ import annotations

import argparse
import sys

from denseport.runtime.cli.arguments import add_bundle, add_values, open_bundle, real, whole

HELP = "serve a bundle over HTTP, with a page to drop images on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    add_values(
        parser,
        ("--host", str, "127.0.0.1", "ADDRESS", "address to listen on; default: %(default)s, this machine"),
        ("--port", whole(0, 65_535), 8000, "N", "0 takes a free one; default: %(default)s"),
        ("--artifact", str, None, "NAME", "the default artifact; default: the best for this machine"),
        ("--threads", whole(1), None, "N", "CPU threads; default: all this process may use"),
        ("--concurrency", whole(1), 2, "N", "images worked on at once; default: %(default)s"),
        ("--queue", whole(0), 16, "N", "limit on waiting requests; default: %(default)s"),
        ("--max-bytes", whole(1), 32 << 20, "N", "limit on the size of a request; default: 32 MiB"),
        ("--max-pixels", whole(1), 40_000_000, "N", "limit on the pixels of a request in all; default: 40 million"),
        ("--max-images", whole(1), 16, "N", "limit on the images of a request; default: %(default)s"),
        ("--timeout", real(above=0), 60.0, "SECONDS", "limit on the time for an answer; default: %(default)g"),
    )


def run(arguments: argparse.Namespace) -> int:
    import os

    # OpenCV reads it when it is loaded: a second guard, behind the check of the header.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(arguments.max_pixels))

    from denseport.runtime.bundle.preprocessing import needs_pillow
    from denseport.runtime.serving.http.limits import Limits
    from denseport.runtime.serving.http.server import serve
    from denseport.runtime.system.machine import require

    given, bundle = arguments, open_bundle(arguments)
    if needs_pillow(bundle.manifest.preprocess):
        require(("PIL",), "pillow")
    names = ("max_bytes", "max_pixels", "max_images", "concurrency", "queue", "timeout")
    limits = Limits(**{name: getattr(given, name) for name in names})
    accepted = serve(bundle, limits, given.host, given.port, artifact=given.artifact, threads=given.threads)
    print(f"stopped; requests accepted: {accepted}", file=sys.stderr)
    return 0

"""``denseport triton``: a bundle as a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from denseport.runtime.cli.arguments import add_bundle, add_values, open_bundle, path, real, size, whole

if TYPE_CHECKING:
    from denseport.runtime.bundle.manifest import Manifest
    from denseport.runtime.serving.triton.variants import Options

HELP = "export a bundle to a Triton model repository"
WARMUP_HEIGHT = 512  # pixels of the image, where the bundle gives none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("-o", "--output", metavar="REPO", type=path, required=True, help="the repository's folder")
    parser.add_argument(
        "--backend",
        choices=("python", "onnxruntime", "tensorrt_plan"),
        default="python",
        help="what runs the network: Denseport's runtime, or Triton's own back end; default: %(default)s",
    )
    parser.add_argument("--name", help="name of the model on the server; default: the bundle's")
    parser.add_argument(
        "--artifact",
        metavar="NAME",
        nargs="+",
        default=[],
        help="default: model.onnx; tensorrt_plan: all TensorRT engines, one for each GPU",
    )
    parser.add_argument("--ensemble", action="store_true", help="add NAME_encoded: an image file in, mask or depth out")
    work = parser.add_argument_group("running")
    add_values(
        work,
        ("--instances", whole(1), None, "N", "processes that run the model; default: the CPUs here"),
        ("--threads", whole(1), 1, "N", "CPU threads of each instance; default: 1"),
        ("--network-instances", whole(1), 1, "N", "onnxruntime, tensorrt_plan; default: 1"),
        ("--warmup", _warmup_size, None, "WxH|none", "size of the warm-up image; default: by the bundle"),
        ("--versions", str, "latest:1", "WHICH", "to serve: latest:N, all, or 1,3; default: %(default)s"),
    )
    work.add_argument("--gpu", action="store_true", help="onnxruntime: the network runs on GPUs")
    queue = parser.add_argument_group("requests")
    add_values(
        queue,
        ("--max-batch", whole(1), 8, "N", "images in a batch; default: 8"),
        ("--delay", whole(0), 0, "MICROSECONDS", "longest wait for a fuller batch; default: 0"),
        ("--queue", whole(0), 128, "N", "limit on waiting requests, 0: none; default: 128"),
        ("--timeout", real(0), 0, "SECONDS", "limit on the wait in the queue; default: no limit"),
        ("--max-pixels", whole(1), 4096 * 4096, "N", "limit on the pixels of an image; default: 4096 x 4096"),
    )
    queue.add_argument("--cache", action="store_true", help="keep answers; the server needs --cache-config too")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.serving.triton.repository import export_repository

    bundle = open_bundle(arguments)
    done = export_repository(bundle, arguments.output, _options(arguments, bundle.manifest))
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(done), "repository": str(done.repository)}, indent=1))
    else:
        others = [name for name in done.models if name != done.model]
        print(f"{done.repository}: {done.model}, version {done.version}" + "".join(f", {name}" for name in others))
        print(f"{done.repository / 'README.md'} says how to start a server on it")
    return 0


def _options(arguments: argparse.Namespace, manifest: Manifest) -> Options:
    from denseport.runtime.serving.triton.variants import Options

    same = ("backend", "name", "instances", "network_instances", "threads", "max_batch", "max_pixels", "queue", "gpu")
    return Options(
        **{name: getattr(arguments, name) for name in (*same, "cache", "versions", "ensemble")},
        artifacts=tuple(arguments.artifact),
        delay_us=arguments.delay,
        timeout_us=round(arguments.timeout * 1e6),
        warmup=_warmup(arguments.warmup, manifest),
    )


def _warmup_size(text: str) -> tuple[int, int] | str:
    return text if text == "none" else size(99_999)(text)


def _warmup(given: tuple[int, int] | str | None, manifest: Manifest) -> tuple[int, int] | None:
    """Height and width of the warm-up image: a landscape of 4 x 3 that is not resized, unless told otherwise."""
    from denseport.runtime.bundle.preprocessing import resizing
    from denseport.runtime.bundle.steps import Resize

    if given is None:
        resize = resizing(manifest.preprocess)
        height = min(resize.size) if isinstance(resize, Resize) else WARMUP_HEIGHT
        return height, height * 4 // 3
    return given if isinstance(given, tuple) else None

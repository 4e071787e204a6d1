"""``denseport run``: images, folders and videos to masks or depths, and overlays."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import add_bundle, add_values, open_bundle, path, real, refuse_given, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.cli.predict import Model, Predictions, RemoteModel
    from denseport.runtime.cli.writing import Writing
    from denseport.runtime.media.inputs import Input

HELP = "run a bundle on images and videos: masks or depths, overlays with legend, JSON"
CONNECT_SECONDS = 5.0  # that a server may take to answer at first; a mistyped address should not cost a minute


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="image, video, folder, or glob in quotes")
    parser.add_argument("-o", "--output", metavar="OUT", type=path, required=True, help="folder for the results")
    protocol = "reference (as the checkpoint was tested), ms-flip, slide, fixed:WIDTHxHEIGHT, …; default: %(default)s"
    smoothing = "videos: weight of the earlier frames against flicker, from 0 to below 1; default: 0"
    scale = "depth PNGs: values a unit; default: of metres 1000 (256 beyond 54 m), else what spreads each image's"
    formats = "what is written, with commas between: png (masks; depths of 16 bits), overlay, npz; of masks scores "
    formats += "(probabilities, 16-bit PNG), coco, geojson; of depths npy; default: png,overlay"
    add_values(
        parser,
        ("--artifact", str, None, "NAME", "which artifact runs; default: the best for this machine"),
        ("--threads", whole(1), None, "N", "CPU threads; default: all this process may use"),
        ("--opacity", real(0, 1), None, "X", "opacity of the colours, 0 to 1; default: 0.5, of depth 1"),
        ("--protocol", str, "reference", "NAME", protocol),
        ("--temporal-smoothing", real(0, below=1), 0.0, "W", smoothing),
        ("--depth-scale", real(above=0), None, "N", scale),
        ("--format", _formats, None, "LIST", formats),
        ("--ray", str, None, "ADDRESS", "run on a Ray cluster, or 'local' for one on this machine"),
        ("--server", str, None, "URL", "a Triton server runs the model: http://HOST:PORT or grpc://HOST:PORT"),
        ("--model", str, None, "NAME", "its name on the server; default: as denseport triton names it"),
    )
    words = "ONNX Runtime's execution providers, best first; default: automatic"
    parser.add_argument("--provider", nargs="+", metavar="NAME", help=words)
    words = "write masks as grey PNGs, whose pixels OpenCV reads as class indices too"
    parser.add_argument("--grey", action="store_true", help=words)
    parser.add_argument("--no-overlay", action="store_true", help="write masks or depths only")
    parser.add_argument("--no-mask", action="store_true", help="write overlays only")
    parser.add_argument("--json", action="store_true", help="print what was found and written as JSON")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from denseport.runtime.bundle.preprocessing import needs_pillow
    from denseport.runtime.cli.predict import Predictions
    from denseport.runtime.errors import InputError
    from denseport.runtime.media.inputs import find_inputs
    from denseport.runtime.system.machine import require

    _check(arguments)
    bundle = open_bundle(arguments)
    manifest = bundle.manifest
    writing, inputs = _writing(arguments, manifest.task), find_inputs(arguments.inputs)
    if needs_pillow(manifest.preprocess) and arguments.ray is None and any(each.kind == "image" for each in inputs):
        require(("PIL",), "pillow")  # once, and not for each file
    smoothing = arguments.temporal_smoothing
    if smoothing and not any(item.kind == "video" for item in inputs):
        raise InputError("--temporal-smoothing is for videos, and no input is one", "Leave it out.")
    job = Predictions(arguments.output, _chosen(arguments), writing, smoothing)
    job.refuse_overwriting(inputs)
    bar = tqdm(total=len(inputs), unit="file", disable=len(inputs) < 2 or not sys.stderr.isatty())
    try:
        if arguments.ray is not None:
            _run_on_ray(arguments, bundle, inputs, job, bar)
        else:
            with _open(arguments, bundle) as segmenter:
                for item in inputs:
                    job.add(segmenter, item)
                    bar.update()
    finally:  # what was done is told, whatever ended the run
        bar.close()
        if job.results or job.failures:
            _report(job, as_json=arguments.json)
    if job.failures:
        reasons = (f"  {each['error']}\n    {each['remedy'] or ''}".rstrip() for each in job.failures)
        raise InputError("\n".join([f"{len(job.failures)} of {count(len(inputs), 'input')} failed", *reasons]))
    return 0


def _formats(text: str) -> tuple[str, ...]:
    """The names of a list, each once."""
    from denseport.runtime.cli.writing import FORMATS

    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"no format is called {unknown[0]!r}; there are {', '.join(FORMATS)}")
    return names


def _chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What is written."""
    if arguments.format is not None:
        return tuple(arguments.format)
    return ("png",) * (not arguments.no_mask) + ("overlay",) * (not arguments.no_overlay)


def _writing(arguments: argparse.Namespace, task: str) -> Writing:
    """How the results of a task are written; refuses the options of the other one."""
    from denseport.runtime.cli.writing import DepthWriting, MaskWriting
    from denseport.runtime.errors import InputError

    opacity = {} if arguments.opacity is None else {"opacity": arguments.opacity}
    others = {"depth": ("grey", "no_mask"), "segmentation": ("depth_scale",)}[task]
    remedy = "Leave it out; --format says what is written."
    refuse_given(arguments, others, f"{{}} is not for a network of {task}", remedy)
    if arguments.depth_scale is not None and "png" not in _chosen(arguments):
        raise InputError("--depth-scale applies to PNGs, and none is written", "Leave it out, or add png to --format.")
    if arguments.opacity is not None and "overlay" not in _chosen(arguments):
        raise InputError(
            "--opacity applies to overlays, and none is written", "Leave it out, or add overlay to --format."
        )
    made: Writing = MaskWriting(**opacity, grey=arguments.grey)
    if task == "depth":
        made = DepthWriting(**opacity, scale=arguments.depth_scale)
    made.check(_chosen(arguments))
    return made


def _check(arguments: argparse.Namespace) -> None:
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.files import refuse_unwritable

    if arguments.format is not None and (arguments.no_overlay or arguments.no_mask):
        raise InputError("--format says what is written, and so does --no-overlay or --no-mask", "Give one of them.")
    if arguments.server is not None and "scores" in _chosen(arguments):
        raise InputError("--format scores: a server sends masks alone", "Leave it out, or run on this machine.")
    if arguments.no_overlay and arguments.no_mask and not arguments.json:
        raise InputError("--no-overlay and --no-mask leave nothing to write", "Leave one out, or add --json.")
    if arguments.model is not None and arguments.server is None:
        raise InputError("--model names a model on a server", "Give --server too.")
    if arguments.server is not None:
        names = ("artifact", "threads", "provider", "trust", "ray", "protocol", "temporal_smoothing")
        what = "--server decides how the model runs; {} is for running it on this machine"
        refuse_given(arguments, names, what, "Leave it out, or give it to denseport triton.")
    if arguments.ray is None:  # on a cluster it is its machines that write
        refuse_unwritable(arguments.output)


@contextmanager
def _open(arguments: argparse.Namespace, bundle: Bundle) -> Iterator[Model]:
    """The model that runs on the images; its description goes to standard error."""
    from denseport.runtime.segmenter.opening import open_predictor

    if arguments.server is not None:
        with _connect(arguments, bundle) as server:
            yield server
        return
    with open_predictor(bundle, **_settings(arguments), threads=arguments.threads) as segmenter:
        print(segmenter.description, file=sys.stderr)
        for name, reason in segmenter.selection.others.items():
            print(f"  not {name}: {reason}", file=sys.stderr)
        if segmenter.selection.caution:
            print(f"warning: {segmenter.selection.caution}", file=sys.stderr)
        if segmenter.selection.hint and sys.stderr.isatty():  # for people: a log would have it each time
            print(f"hint: {segmenter.selection.hint}", file=sys.stderr)
        yield segmenter


@contextmanager
def _connect(arguments: argparse.Namespace, bundle: Bundle) -> Iterator[RemoteModel]:
    from denseport.runtime.cli.predict import RemoteModel
    from denseport.runtime.errors import InputError
    from denseport.runtime.serving.triton.client import Client
    from denseport.runtime.serving.triton.variants import model_name

    manifest, name = bundle.manifest, model_name(bundle, arguments.model)
    with Client(arguments.server, name, deadline=CONNECT_SECONDS) as client:
        other = "classes" if client.classes() != manifest.classes else ""
        if manifest.depth is not None and client.depth() != asdict(manifest.depth):
            other = "depths (unit, direction or limit)"
    if other:
        raise InputError(
            f"{arguments.server}: {name} has other {other} than {arguments.bundle}",
            "Give the bundle that was exported to the server, or another --model.",
        )
    with Client(arguments.server, name) as client:
        print(f"{name} on {arguments.server}", file=sys.stderr)
        yield RemoteModel(name, manifest, client)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"artifact": arguments.artifact, "protocol": arguments.protocol, "providers": arguments.provider}


def _open_actor(
    bundle: Path, settings: dict[str, Any], job: Predictions, threads: int
) -> Callable[[Sequence[Input]], Predictions]:
    """The work of an actor of ``--ray``: a batch of inputs to results and failures."""
    from denseport.runtime.segmenter.opening import open_predictor

    segmenter = open_predictor(bundle, **settings, threads=threads)

    def handle(items: Sequence[Input]) -> Predictions:
        done = replace(job, results=[], failures=[])
        for item in items:
            done.add(segmenter, item)
        return done

    return handle


def _run_on_ray(arguments: argparse.Namespace, bundle: Bundle, inputs: list[Input], job: Predictions, bar: Any) -> None:
    """Add the results and failures of a Ray cluster's actors to ``job``, in the order of ``inputs``."""
    from denseport.runtime.evaluation.shards import connect

    # Whole paths: the actors work in folders of their own.
    items = [replace(item, path=item.path.absolute()) for item in inputs]
    job_there = replace(job, folder=job.folder.absolute())
    settings = {**_settings(arguments), "trust": arguments.trust and [file.absolute() for file in arguments.trust]}
    work = partial(_open_actor, bundle.path.absolute(), settings, job_there)
    with connect(arguments.ray, arguments.threads) as cluster:
        print(count(cluster.count, "Ray actor"), file=sys.stderr)
        for done in cluster.map(work, items):
            job.results += done.results
            job.failures += done.failures
            bar.update(len(done.results) + len(done.failures))
    order = {str(item.path): place for place, item in enumerate(items)}
    for entries in (job.results, job.failures):
        entries.sort(key=lambda entry: order[entry["input"]])


def _report(job: Predictions, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"results": job.results, "failures": job.failures}, indent=1))
        return
    for result in job.results:
        top = ", ".join(f"{c['name']} {c['percent']:.1f} %" for c in result.get("classes", [])[:4])
        if "unit" in result:
            top = f"{result['least']:.4g} to {result['most']:.4g} {result['unit']}, larger is {result['larger_is']}"
        found = top or count(result.get("frames", 0), "frame")
        if "colours" in result:
            found += ", all in the colours of {:.4g} to {:.4g}, the first frame's depths".format(*result["colours"])
        print(f"{result['input']}: {found}" + "".join(f"\n  {file}" for file in result["files"]))
        if "warning" in result:
            print(f"  warning: {result['warning']}")

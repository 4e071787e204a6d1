"""``denseport run``: pictures, folders and videos to masks and overlays."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from denseport.runtime.client import Client
    from denseport.runtime.inputs import Input
    from denseport.runtime.manifest import Manifest
    from denseport.runtime.segmenter import Segmenter

    Model: TypeAlias = "Segmenter | _Server"

HELP = "segment pictures and videos: masks, overlays with legend, JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="picture, video, folder, or glob in quotes")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    parser.add_argument("--artifact", metavar="NAME", help="which artifact runs; default: the best for this machine")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all this process may use")
    parser.add_argument(
        "--opacity", type=float, default=0.5, metavar="X", help="of the colours, 0 to 1; default: %(default)s"
    )
    parser.add_argument(
        "--protocol",
        default="reference",
        metavar="NAME",
        help="reference (as the checkpoint was tested), ms-flip, slide, fixed:HEIGHTxWIDTH, …; default: %(default)s",
    )
    parser.add_argument(
        "--provider",
        nargs="+",
        metavar="NAME",
        help="ONNX Runtime's execution providers, best first; default: automatic",
    )
    parser.add_argument(
        "--grey", action="store_true", help="write masks as grey PNGs, whose pixels OpenCV reads as class indices too"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="spread over a Ray cluster, or 'local' for one on this machine"
    )
    parser.add_argument("--no-overlay", action="store_true", help="write masks only")
    parser.add_argument("--no-mask", action="store_true", help="write overlays only")
    parser.add_argument(
        "--server", metavar="URL", help="a Triton server runs the model: http://HOST:PORT or grpc://HOST:PORT"
    )
    parser.add_argument("--model", metavar="NAME", help="on the server; default: as denseport triton names the bundle")
    parser.add_argument("--json", action="store_true", help="print what was found and written as JSON")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from denseport.runtime.errors import InputError
    from denseport.runtime.inputs import find_inputs

    _check(arguments)
    inputs = find_inputs(arguments.inputs)
    job = _Job(arguments.output, arguments.opacity, not arguments.no_mask, not arguments.no_overlay, arguments.grey)
    bar = tqdm(total=len(inputs), unit="file", disable=len(inputs) < 2 or not sys.stderr.isatty())
    if arguments.ray is not None:
        _run_on_ray(arguments, inputs, job, bar)
    else:
        with _open(arguments) as segmenter:
            for item in inputs:
                job.add(segmenter, item)
                bar.update()
    bar.close()
    job.report(as_json=arguments.json)
    if job.failures:
        raise InputError(
            f"{len(job.failures)} of {len(inputs)} inputs failed\n"
            + "\n".join(f"  {failure['error']}\n    {failure['remedy'] or ''}".rstrip() for failure in job.failures)
        )
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from denseport.runtime.errors import InputError

    if not 0 <= arguments.opacity <= 1:
        raise InputError(f"--opacity {arguments.opacity} is not between 0 and 1")
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"--threads {arguments.threads} is below 1")
    if arguments.no_overlay and arguments.no_mask and not arguments.json:
        raise InputError("--no-overlay and --no-mask leave nothing to write", "Leave one out, or add --json.")
    if arguments.model is not None and arguments.server is None:
        raise InputError("--model names a model on a server", "Give --server too.")
    local = [name for name in ("artifact", "threads", "provider") if getattr(arguments, name) is not None]
    local += ["protocol"] if arguments.protocol != "reference" else []
    local += ["ray"] if arguments.ray is not None else []
    if arguments.server is not None and local:
        raise InputError(
            f"--server decides how the model runs; --{local[0]} is for running it here",
            "Leave it out, or give it to denseport triton.",
        )


@contextmanager
def _open(arguments: argparse.Namespace) -> Iterator[Model]:
    """What segments the pictures; says on standard error what it is."""
    from denseport.runtime.segmenter import Segmenter

    if arguments.server is not None:
        with _connect(arguments) as server:
            yield server
        return
    with Segmenter(arguments.bundle, **_settings(arguments), threads=arguments.threads) as segmenter:
        print(segmenter.description, file=sys.stderr)
        for name, reason in segmenter.choice.others.items():
            print(f"  not {name}: {reason}", file=sys.stderr)
        yield segmenter


@contextmanager
def _connect(arguments: argparse.Namespace) -> Iterator[_Server]:
    from denseport.runtime.bundle import Bundle
    from denseport.runtime.client import Client
    from denseport.runtime.errors import InputError
    from denseport.runtime.triton.forms import model_name

    bundle = Bundle(arguments.bundle)
    name = model_name(bundle, arguments.model)
    with Client(arguments.server, name) as client:
        if client.classes() != bundle.manifest.classes:
            raise InputError(
                f"{arguments.server}: {name} has other classes than {arguments.bundle}",
                "Give the bundle that was exported to the server, or another --model.",
            )
        print(f"{name} on {arguments.server}", file=sys.stderr)
        yield _Server(bundle.manifest, client)


@dataclass(frozen=True)
class _Server:
    """A model on a server, in the place of a Segmenter."""

    manifest: Manifest
    client: Client

    def __call__(self, image: NDArray[np.uint8]) -> _Answer:
        return _Answer(self.client.segment(image))


@dataclass(frozen=True)
class _Answer:
    mask: NDArray[np.unsignedinteger[Any]]  # (H, W) of class indices


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the segmenter."""
    return {"artifact": arguments.artifact, "protocol": arguments.protocol, "providers": arguments.provider}


@dataclass(frozen=True)
class _Labelling:
    """What an actor of ``--ray`` does: the results and failures of a batch of inputs."""

    bundle: Path
    settings: dict[str, Any]
    job: _Job

    def open(self, threads: int) -> Callable[[Sequence[Input]], _Job]:
        from denseport.runtime.segmenter import Segmenter

        segmenter = Segmenter(self.bundle, **self.settings, threads=threads)

        def handle(items: Sequence[Input]) -> _Job:
            done = replace(self.job, results=[], failures=[])
            for item in items:
                done.add(segmenter, item)
            return done

        return handle


def _run_on_ray(arguments: argparse.Namespace, inputs: list[Input], job: _Job, bar: Any) -> None:
    """Fill ``job`` with what the actors of a Ray cluster did, in the order of ``inputs``."""
    from denseport.runtime.bundle import Bundle
    from denseport.runtime.scale import connect

    bundle = Bundle(arguments.bundle)  # a missing one is refused before a cluster starts
    # Whole paths: the actors work in folders of their own.
    items = [replace(item, path=item.path.absolute()) for item in inputs]
    work = _Labelling(bundle.path.absolute(), _settings(arguments), replace(job, folder=job.folder.absolute()))
    with connect(arguments.ray, arguments.threads) as cluster:
        print(f"{cluster.actors.count} Ray actors", file=sys.stderr)
        for done in cluster.map(work, items):
            job.results += done.results
            job.failures += done.failures
            bar.update(len(done.results) + len(done.failures))
    order = {str(item.path): place for place, item in enumerate(items)}
    for entries in (job.results, job.failures):
        entries.sort(key=lambda entry: order[entry["input"]])


@dataclass
class _Job:
    """What is written for each input, and what came of it."""

    folder: Path
    opacity: float
    masks: bool
    overlays: bool
    grey: bool
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, segmenter: Model, item: Input) -> None:
        """Do one input; what is wrong with it is kept, and the next can follow."""
        from denseport.runtime.errors import DenseportError, OutputError, ServerError

        try:
            self.results.append(self.video(segmenter, item) if item.kind == "video" else self.picture(segmenter, item))
        except (OutputError, ServerError):
            raise  # the next file would fail alike
        except DenseportError as err:
            self.failures.append({"input": str(item.path), "error": err.message, "remedy": err.remedy})

    def picture(self, segmenter: Model, item: Input) -> dict[str, Any]:
        from denseport.runtime.images import read_image, write_image, write_mask

        image = read_image(item.path)
        mask = segmenter(image).mask
        written = []
        if self.masks:
            written.append(item.output(self.folder, "_mask.png"))
            write_mask(written[-1], mask, self._palette(segmenter))
        if self.overlays:
            written.append(item.output(self.folder, "_overlay.png"))
            write_image(written[-1], self._overlay(segmenter, image, mask))
        return {
            "input": str(item.path),
            "width": image.shape[1],
            "height": image.shape[0],
            "classes": _shares(segmenter, mask),
            "files": [str(path) for path in written],
        }

    def video(self, segmenter: Model, item: Input) -> dict[str, Any]:
        """A video becomes a video of overlays, and a folder of masks, one a frame."""
        from contextlib import ExitStack

        from tqdm import tqdm

        from denseport.runtime.images import write_mask
        from denseport.runtime.videos import VideoReader, VideoWriter

        target = item.output(self.folder, "_overlay.webm")
        with ExitStack() as stack:
            reader = stack.enter_context(VideoReader(item.path))
            writer = stack.enter_context(VideoWriter(target, reader.fps or 25.0)) if self.overlays else None
            frames: Iterable[NDArray[np.uint8]] = tqdm(
                reader, total=reader.frames or None, unit="frame", desc=item.path.name, disable=not sys.stderr.isatty()
            )
            count = 0
            for count, frame in enumerate(frames, start=1):
                mask = segmenter(frame).mask
                if self.masks:
                    write_mask(item.output(self.folder, f"_mask/{count:06}.png"), mask, self._palette(segmenter))
                if writer is not None:
                    writer.write(self._overlay(segmenter, frame, mask))
        files = [str(item.output(self.folder, "_mask"))] if self.masks else []
        return {"input": str(item.path), "frames": count, "files": files + ([str(target)] if self.overlays else [])}

    def _overlay(self, segmenter: Model, image: NDArray[np.uint8], mask: NDArray[Any]) -> NDArray[np.uint8]:
        from denseport.runtime.visualize import overlay

        manifest = segmenter.manifest
        return overlay(image, mask, manifest.classes, manifest.palette, opacity=self.opacity)

    def _palette(self, segmenter: Model) -> tuple[tuple[int, int, int], ...] | None:
        """The colours for an indexed PNG, which holds 256 at most; None makes it grey."""
        palette = segmenter.manifest.palette
        return palette if len(palette) <= 256 and not self.grey else None

    def report(self, *, as_json: bool) -> None:
        if as_json:
            print(json.dumps({"results": self.results, "failures": self.failures}, indent=1))
            return
        for result in self.results:
            top = ", ".join(f"{c['name']} {c['percent']:.1f} %" for c in result.get("classes", [])[:4])
            found = top or f"{result.get('frames', 0)} frames"
            print(f"{result['input']}: {found}" + "".join(f"\n  {file}" for file in result["files"]))


def _shares(segmenter: Model, mask: NDArray[Any]) -> list[dict[str, Any]]:
    from denseport.runtime.visualize import class_shares

    classes = segmenter.manifest.classes
    return [
        {"index": index, "name": classes[index], "percent": round(100 * share, 3)}
        for index, share in class_shares(mask, len(classes))
        if index < len(classes)
    ]

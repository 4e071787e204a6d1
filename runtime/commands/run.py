"""``denseport run``: pictures, folders and videos to masks and overlays."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from denseport.runtime.inputs import Input
    from denseport.runtime.segmenter import Segmenter

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
        "--smooth",
        type=float,
        default=0.0,
        metavar="W",
        help="videos: weight of the frames before, 0 to below 1, against flicker; default: none",
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
    parser.add_argument("--no-overlay", action="store_true", help="write masks only")
    parser.add_argument("--no-mask", action="store_true", help="write overlays only")
    parser.add_argument("--json", action="store_true", help="print what was found and written as JSON")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from denseport.runtime.errors import DenseportError, InputError, OutputError
    from denseport.runtime.inputs import find_inputs
    from denseport.runtime.segmenter import Segmenter

    _check(arguments)
    inputs = find_inputs(arguments.inputs)
    job = _Job(
        arguments.output,
        arguments.opacity,
        not arguments.no_mask,
        not arguments.no_overlay,
        arguments.grey,
        arguments.smooth,
    )
    with Segmenter(
        arguments.bundle,
        artifact=arguments.artifact,
        protocol=arguments.protocol,
        threads=arguments.threads,
        providers=arguments.provider,
    ) as segmenter:
        print(segmenter.description, file=sys.stderr)
        for name, reason in segmenter.choice.others.items():
            print(f"  not {name}: {reason}", file=sys.stderr)
        for item in tqdm(inputs, unit="file", disable=len(inputs) < 2 or not sys.stderr.isatty()):
            try:
                job.results.append(job.video(segmenter, item) if item.kind == "video" else job.picture(segmenter, item))
            except OutputError:
                raise  # the next file would fail alike
            except DenseportError as err:
                job.failures.append({"input": str(item.path), "error": err.message, "remedy": err.remedy})
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
    if not 0 <= arguments.smooth < 1:
        raise InputError(f"--smooth {arguments.smooth} is not in [0, 1)", "0.6 is usual; 0 smooths nothing.")
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"--threads {arguments.threads} is below 1")
    if arguments.no_overlay and arguments.no_mask and not arguments.json:
        raise InputError("--no-overlay and --no-mask leave nothing to write", "Leave one out, or add --json.")


@dataclass
class _Job:
    """What is written for each input, and what came of it."""

    folder: Path
    opacity: float
    masks: bool
    overlays: bool
    grey: bool
    smoothing: float
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def picture(self, segmenter: Segmenter, item: Input) -> dict[str, Any]:
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

    def video(self, segmenter: Segmenter, item: Input) -> dict[str, Any]:
        """A video becomes a video of overlays, and a folder of masks, one a frame."""
        from contextlib import ExitStack, closing

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
            results = stack.enter_context(closing(segmenter.stream(frames, smoothing=self.smoothing)))
            count = 0
            for count, result in enumerate(results, start=1):
                if self.masks:
                    write_mask(item.output(self.folder, f"_mask/{count:06}.png"), result.mask, self._palette(segmenter))
                if writer is not None:
                    writer.write(self._overlay(segmenter, result.image, result.mask))
        files = [str(item.output(self.folder, "_mask"))] if self.masks else []
        return {"input": str(item.path), "frames": count, "files": files + ([str(target)] if self.overlays else [])}

    def _overlay(self, segmenter: Segmenter, image: NDArray[np.uint8], mask: NDArray[Any]) -> NDArray[np.uint8]:
        from denseport.runtime.visualize import overlay

        manifest = segmenter.manifest
        return overlay(image, mask, manifest.classes, manifest.palette, opacity=self.opacity)

    def _palette(self, segmenter: Segmenter) -> tuple[tuple[int, int, int], ...] | None:
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


def _shares(segmenter: Segmenter, mask: NDArray[Any]) -> list[dict[str, Any]]:
    from denseport.runtime.visualize import class_shares

    classes = segmenter.manifest.classes
    return [
        {"index": index, "name": classes[index], "percent": round(100 * share, 3)}
        for index, share in class_shares(mask, len(classes))
        if index < len(classes)
    ]

"""From a depth network's output to the depth of each pixel: one resize, by torch's rules, and the result.

Upstream resizes once: transformers bicubic with half-pixel centres, the original Depth Anything bilinear with aligned
corners, isl-org's DPT bicubic with half-pixel centres. Sources: ``post_process_depth_estimation`` of transformers'
image processors, ``infer_image`` of Depth-Anything-V2, ``run_monodepth.py`` of isl-org/DPT.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.errors import OutputError
from denseport.runtime.media.depth_map import DepthPng, coloured, encode_depth_png, with_colour_bar
from denseport.runtime.media.images import write_image
from denseport.runtime.pipeline.pipeline import Job, Logits, Pipeline
from denseport.runtime.pipeline.resample import LogitMap, ResampleMatrix
from denseport.runtime.pipeline.results import Timings
from denseport.runtime.pipeline.views import View
from denseport.runtime.system.files import write_atomic

__all__ = ["Depth", "DepthPipeline", "resized_depth"]

ENDINGS = (".png", ".jpg", ".npy", ".npz")


@dataclass(frozen=True, eq=False, repr=False)
class Depth:
    """The result for one image, or for the region of it that was asked for."""

    depth: NDArray[np.float32]  # (H, W), at the image's own size, in `unit`
    unit: str  # "metres"; "relative": known up to a scale and a shift, which differ from image to image
    larger_is: str  # "farther" or "nearer"
    largest: float | None  # the network's limit, in the unit
    artifact: str  # the artifact that ran
    image: NDArray[np.uint8]  # (H, W, 3) BGR: the caller's array, or decoded
    timings: Timings = field(default_factory=Timings)

    def __repr__(self) -> str:
        height, width = self.depth.shape
        least, most = self.span
        return f"<Depth {width} x {height} by {self.artifact}: {least:.4g} to {most:.4g} {self.unit}>"

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest depth."""
        return float(self.depth.min()), float(self.depth.max())

    def overlay(
        self, *, opacity: float = 1.0, legend: bool = True, span: tuple[float, float] | None = None
    ) -> NDArray[np.uint8]:
        """The depths in colours, near ones bright, (H, W, 3) BGR; larger by the colour bar where there is one.

        Args:
            opacity: of the colours over the image, 0 to 1.
            legend: False leaves the colour bar out.
            span: what the ends of the colours stand for; default: the smallest and the largest depth.

        Raises:
            InputError: an opacity outside [0, 1].
        """
        span, nearer = span or self.span, self.larger_is == "nearer"
        colours = coloured(self.depth, span, near_is_large=nearer, image=self.image, opacity=opacity)
        return with_colour_bar(colours, span, self.unit, near_is_large=nearer) if legend else colours

    def to_png(self, scale: float | None = None) -> DepthPng:
        """A grey PNG of 16 bits, whose values are ``(depth - offset) * scale``; it holds both as text.

        Args:
            scale: values a unit, with an offset of 0; default: of metres 1000 where the network's limit is below 54,
                else 256; of relative depth what spreads the image's own over all values.

        Raises:
            OutputError: a relative depth is below 0 at a given scale, or a depth is too large for the scale.
        """
        return encode_depth_png(self.depth, self.unit, self.larger_is, self.largest, scale)

    def to_npz(self) -> bytes:
        """``depth``, ``unit`` and ``larger_is``, compressed."""
        packed = BytesIO()
        np.savez_compressed(packed, depth=self.depth, unit=self.unit, larger_is=self.larger_is)
        return packed.getvalue()

    def save(self, path: Path | str, *, scale: float | None = None) -> None:
        """Write the result as the end of the name says; the file is whole or not there.

        .png: `to_png`; .jpg: the overlay; .npy: the depths; .npz: `to_npz`.

        Args:
            scale: of a .png.

        Raises:
            OutputError: another ending, a place that cannot be written, or as `to_png`.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in ENDINGS or (scale is not None and ending != ".png"):
            what = f"{path}: no depth is such a file" if scale is None else f"{path}: a scale applies to .png files"
            raise OutputError(what, f"One is {', '.join(ENDINGS)}.")
        if ending == ".png":
            write_atomic(path, self.to_png(scale).data)
        elif ending == ".jpg":
            write_image(path, self.overlay())
        elif ending == ".npz":
            write_atomic(path, self.to_npz())
        else:
            packed = BytesIO()
            np.save(packed, self.depth)
            write_atomic(path, packed.getvalue())


@dataclass(frozen=True)
class DepthPipeline(Pipeline[Depth]):
    """What a depth estimator does to every image."""

    gives = "depths"

    @property
    def channels(self) -> int:
        return 1

    @property
    def output(self) -> DepthOutput:
        """What the numbers mean."""
        assert self.manifest.depth is not None  # the manifest's own check
        return self.manifest.depth

    def _of_channels(self, found: int) -> str:
        return f"{self.name} gives {found} channels; a depth has one"

    def _maps(self, job: Job, view: View, logits: Sequence[Logits]) -> list[LogitMap]:
        """The one resize to the image; what was padded is cut off at the size of the network's input before it."""
        (depth,) = logits
        rows, cols = (
            self._matrix(*sides) for sides in zip(depth.shape[1:], view.size, view.cut, job.size, strict=True)
        )
        return [LogitMap(depth, rows, cols)]

    def _matrix(self, found: int, seen: int, cut: int, size: int) -> ResampleMatrix:
        """From ``found`` depths along an axis, of an input of ``seen`` pixels, to the ``size`` of the image."""
        resize = ResampleMatrix.cubic if self.output.interpolation == "bicubic" else ResampleMatrix.linear
        corners = self.manifest.align_corners
        if not cut:
            return resize(found, size, corners)
        return resize(seen - cut, size, corners).widened(seen).after(resize(found, seen, corners))

    def finish(self, job: Job) -> Depth:
        """Resize the depths to the image's own size."""
        begin = time.perf_counter()
        assert job.maps is not None  # infer fills them in
        depth, output = resized_depth(job.maps), self.output
        spent = 1000 * (time.perf_counter() - begin)
        timings = replace(job.timings, postprocess=spent)
        return Depth(depth, output.unit, output.larger_is, output.largest, self.name, job.image, timings)


def resized_depth(views: Sequence[Sequence[LogitMap]]) -> NDArray[np.float32]:
    """(H, W) of the one map of the one view, of `Predictor.predict`."""
    ((part,),) = views
    wide = part.cols.apply(np.ascontiguousarray(part.logits[0].T))  # (W, h)
    return part.rows.apply(np.ascontiguousarray(wide.T))

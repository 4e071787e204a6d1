"""What a caller asks a segmenter for, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError, OutputError
from denseport.runtime.system.arguments import whole

if TYPE_CHECKING:
    from denseport.runtime.media.shapes import Polygon, Transform

__all__ = ["MASK_ONLY", "RequestedOutputs", "Segmentation", "Timings"]


@dataclass(frozen=True)
class RequestedOutputs:
    """What a caller wants beside the mask."""

    scores: bool = False  # the probability of each pixel's class
    top_k: int = 0  # so many likeliest classes and their probabilities

    def check(self, classes: int, has_scores: bool = True) -> None:
        """Raises InputError for more classes than there are, no number of them, or scores where there are none."""
        whole("top_k", self.top_k, 0, classes)
        if not has_scores and self != MASK_ONLY:
            what = "the network tells the class of a pixel, not how likely it is: there are no scores"
            raise InputError(what, "Ask for the mask alone.")


MASK_ONLY = RequestedOutputs()


@dataclass(frozen=True)
class Timings:
    """Wall time that one image spent in each stage, milliseconds; waiting between stages is not counted."""

    decode: float = 0.0  # reading and decoding a file; 0 for an array
    preprocess: float = 0.0  # resize, normalise; 0 where the GPU does it, within `infer`
    infer: float = 0.0  # the session; of a batch: its time divided by its images
    postprocess: float = 0.0  # logits to mask and scores, at the image's own size

    @property
    def total(self) -> float:
        """The stages' sum, milliseconds."""
        return self.decode + self.preprocess + self.infer + self.postprocess


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The result for one image, or for the region of it that was asked for.

    Classes are named by their index or their name. Coordinates are pixels from the upper left corner of ``mask``; the
    pixel (x, y) covers the square from (x, y) to (x + 1, y + 1).
    """

    mask: NDArray[np.unsignedinteger[Any]]  # (H, W), class index of each pixel, at the image's own size
    artifact: str  # the artifact that ran
    image: NDArray[np.uint8]  # (H, W, 3) BGR, what was segmented: the caller's array, or decoded
    classes: tuple[str, ...]  # names, by index
    palette: tuple[tuple[int, int, int], ...]  # RGB, by index
    timings: Timings = field(default_factory=Timings)
    scores: NDArray[np.float32] | None = None  # (H, W), probability of each pixel's class, if asked for
    top_classes: NDArray[np.unsignedinteger[Any]] | None = None  # (k, H, W), the likeliest first, if asked for
    top_scores: NDArray[np.float32] | None = None  # (k, H, W), their probabilities

    def __repr__(self) -> str:
        height, width = self.mask.shape
        found = [f"{name} {100 * share:.1f} %" for name, share in self.shares().items()]
        more = f", {len(found) - 3} more" if len(found) > 3 else ""
        return f"<Segmentation {width} x {height} by {self.artifact}: {', '.join(found[:3])}{more}>"

    def shares(self) -> dict[str, float]:
        """The classes that occur, largest first, each with its share of all pixels, (0, 1]; one name, one share."""
        from denseport.runtime.media.overlay import class_shares

        shares: dict[str, float] = {}
        for index, share in class_shares(self.mask, len(self.classes)):
            shares[self.classes[index]] = shares.get(self.classes[index], 0.0) + share
        return dict(sorted(shares.items(), key=lambda each: -each[1]))

    def region(self, which: int | str) -> NDArray[np.bool_]:
        """(H, W), the pixels of a class.

        Raises:
            InputError: there is no such class; of every method that takes one.
        """
        return np.asarray(self.mask == self._index(which))

    def area(self, which: int | str) -> int:
        """How many pixels a class has."""
        return int(np.count_nonzero(self.region(which)))

    def polygons(self, which: int | str, *, simplify: float = 0.0) -> list[Polygon]:
        """The outlines of a class, with holes; `denseport.runtime.media.shapes.polygons` has the details."""
        from denseport.runtime.media.shapes import polygons

        return polygons(self.region(which), simplify)

    def rle(self, which: int | str) -> dict[str, Any]:
        """A class as COCO's compressed run lengths, as pycocotools takes them, with ``counts`` a text."""
        from denseport.runtime.media.shapes import run_lengths

        return run_lengths(self.region(which))

    def to_coco(self, *, file_name: str = "", image_id: int = 1) -> dict[str, Any]:
        """A document of COCO's: an annotation for each class that occurs."""
        from denseport.runtime.media.shapes import coco

        return coco(self.mask, self.classes, file_name, image_id)

    def to_geojson(self, *, transform: Transform | None = None, simplify: float = 0.0) -> dict[str, Any]:
        """A FeatureCollection of GeoJSON: a MultiPolygon for each class that occurs.

        Args:
            transform: a, b, c, d, e, f from pixels to places: x' = a x + b y + c, y' = d x + e y + f; rasterio's
                ``dataset.transform`` is one. Default: pixels.
            simplify: as of `polygons`.
        """
        from denseport.runtime.media.shapes import geojson

        return geojson(self.mask, self.classes, transform, simplify)

    def overlay(self, *, opacity: float = 0.5, legend: bool = True) -> NDArray[np.uint8]:
        """The image under the colours of its classes, (H, W, 3) BGR; larger by the legend where there is one."""
        from denseport.runtime.media.overlay import overlay

        return overlay(self.image, self.mask, self.classes, self.palette, opacity=opacity, legend=legend)

    def to_png(self) -> bytes:
        """The mask as a PNG: class indices, shown in the palette's colours; beyond 256 classes, 16-bit grey."""
        from denseport.runtime.media.images import encode_palette_png

        if len(self.palette) <= 256:
            return encode_palette_png(self.mask, self.palette)
        import cv2

        return cv2.imencode(".png", self.mask.astype(np.uint16))[1].tobytes()

    def save(self, path: Path | str) -> None:
        """Write the result as the end of the name says; the file is whole or not there.

        .png: the mask, whose pixels are class indices, indexed in the palette's colours; .jpg: the overlay; .json:
        COCO; .geojson: GeoJSON in pixels; .npz: ``mask``, and ``scores``, ``top_classes``, ``top_scores`` where there
        are any.

        Raises:
            OutputError: another ending, or a place that cannot be written.
        """
        from denseport.runtime.pipeline.saving import BY_ENDING

        path = Path(path)
        if (save := BY_ENDING.get(path.suffix.lower())) is None:
            what = f"a {path.suffix} file" if path.suffix else "a file without an ending"
            raise OutputError(f"{path}: no result is {what}", f"One is {', '.join(BY_ENDING)}.")
        save(path, self)

    def _index(self, which: int | str) -> int:
        if not isinstance(which, str):
            return whole("the class", which, 0, len(self.classes) - 1)
        if which not in self.classes:
            raise InputError(f"there is no class {which!r}", f"The classes are: {', '.join(self.classes)}.")
        if self.classes.count(which) > 1:
            raise InputError(f"several classes are called {which!r}", "Give the index of one.")
        return self.classes.index(which)

"""The regions of a mask as other tools take them: polygons, run lengths, documents of COCO's and of GeoJSON.

Coordinates are pixels from the mask's upper left corner, x to the right, y down. The pixel (x, y) covers the square
from (x, y) to (x + 1, y + 1), as in COCO and in rasterio, so that an outline encloses the area of its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.system.arguments import real

__all__ = ["Polygon", "Transform", "coco", "geojson", "polygons", "run_lengths"]

Polygon = list[NDArray[np.int32]]  # rings, each (N, 2) of x, y, not closed: the outline, then its holes
Transform = Sequence[float]  # a, b, c, d, e, f: x' = a x + b y + c, y' = d x + e y + f, as of rasterio and affine


def polygons(region: NDArray[np.bool_], simplify: float = 0.0) -> list[Polygon]:
    """The outlines of a region, one polygon for each part whose pixels share sides, from the top down.

    Args:
        region: (H, W).
        simplify: how far, in pixels, an outline may be moved to have fewer corners; 0: it runs along the pixels' sides
            and, filled, gives the region to the last pixel. A part that would be left without area is left out.

    Raises:
        InputError: ``simplify`` is negative or no number.
    """
    simplify = real("simplify", simplify, 0)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    found = []
    for label in range(1, count):
        x, y, width, height = map(int, boxes[label, :4])
        part = (labels[y : y + height, x : x + width] == label).astype(np.uint8)
        if rings := _rings(part, (x, y), simplify):
            found.append(rings)
    return found


def _rings(part: NDArray[np.uint8], corner: tuple[int, int], simplify: float) -> Polygon:
    """The outline of a connected part and its holes; empty where simplifying leaves no area.

    OpenCV's contours go through the centres of the outermost pixels. In a mask of twice the size, each pixel is two
    wide: the even coordinate 2 x lies on its left side, the odd one, 2 x + 1, on its right.
    """
    contours, hierarchy = cv2.findContours(part.repeat(2, 0).repeat(2, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines: Polygon = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        ring = (contour[:, 0] + 1) // 2
        ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]  # a corner was two points
        if simplify:
            ring = cv2.approxPolyDP(ring.reshape(-1, 1, 2), simplify, closed=True)[:, 0]
        if len(ring) >= 3:
            outlines.insert(len(outlines) if parent >= 0 else 0, ring + np.array(corner, np.int32))
        elif parent < 0:
            return []
    return outlines


def run_lengths(region: NDArray[np.bool_]) -> dict[str, Any]:
    """A region (H, W) as COCO's compressed run lengths: ``{"size": [H, W], "counts": "..."}``.

    The lengths of the runs of 0 and 1 in turn, down the columns; each but the first three as its difference from the
    last but one, in groups of five bits with a sixth that says whether more follow, as letters from "0" on.

    Source: pycocotools, ``maskApi.c`` (rleEncode, rleToString).
    """
    flat = region.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat, prepend=0))  # the first run is of zeros
    lengths = np.diff(ends, prepend=0, append=flat.size).tolist()
    letters = []
    for number, length in enumerate(lengths):
        value = length - lengths[number - 2] if number > 2 else length
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + 32 * more))
    return {"size": list(region.shape), "counts": "".join(letters)}


def coco(mask: NDArray[Any], classes: Sequence[str], file_name: str = "", image_id: int = 1) -> dict[str, Any]:
    """A document of COCO's for one image: an annotation, with run lengths, for each class that occurs.

    Args:
        mask: (H, W) of class indices, which are the ``category_id``.
    """
    height, width = mask.shape
    annotations: list[dict[str, Any]] = []
    for index in _occurring(mask, classes):
        region = mask == index
        rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": index,
                "segmentation": run_lengths(region),
                "area": int(region.sum()),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],  # x, y, width, height
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
    }


def geojson(
    mask: NDArray[Any], classes: Sequence[str], transform: Transform | None = None, simplify: float = 0.0
) -> dict[str, Any]:
    """A FeatureCollection of GeoJSON: for each class that occurs a MultiPolygon, with its index, name and pixels.

    Args:
        mask: (H, W) of class indices.
        transform: from pixels to longitude and latitude in WGS 84, which GeoJSON has by its standard; default: pixels.
        simplify: as of `polygons`.

    Raises:
        InputError: ``transform`` is not six numbers, or keeps no area.
    """
    matrix = _matrix(transform)
    features = []
    for index in _occurring(mask, classes):
        region = mask == index
        shapes = [
            [_closed(ring, matrix, hole) for hole, ring in enumerate(rings)] for rings in polygons(region, simplify)
        ]
        features.append(
            {
                "type": "Feature",
                "properties": {"class": index, "name": classes[index], "pixels": int(region.sum())},
                "geometry": {"type": "MultiPolygon", "coordinates": shapes},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _occurring(mask: NDArray[Any], classes: Sequence[str]) -> list[int]:
    """The classes of a mask; pixels outside, such as 255 for "ignore", are of none."""
    return [int(index) for index in np.unique(mask) if index < len(classes)]


def _matrix(transform: Transform | None) -> NDArray[np.float64]:
    """(2, 3)"""
    try:
        found = np.array((1, 0, 0, 0, 1, 0) if transform is None else tuple(transform)[:6], np.float64).reshape(2, 3)
    except (TypeError, ValueError):
        found = np.full((2, 3), np.nan)
    if not np.isfinite(found).all() or not np.linalg.det(found[:, :2]):
        raise InputError(
            f"the transform {transform!r} does not map pixels to places",
            "Give a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f, as rasterio's dataset.transform.",
        )
    return found


def _closed(ring: NDArray[np.int32], matrix: NDArray[np.float64], hole: int) -> list[list[float]]:
    """A ring as GeoJSON wants it: its first place again at the end, outlines counter-clockwise and holes clockwise."""
    places = ring @ matrix[:, :2].T + matrix[:, 2]
    (x, y), (next_x, next_y) = places.T, np.roll(places, -1, axis=0).T
    if ((x * next_y - next_x * y).sum() > 0) == bool(hole):
        places = places[::-1]
    return [*places.tolist(), places[0].tolist()]
